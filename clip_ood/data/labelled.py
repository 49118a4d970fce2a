"""Rows of a part with their labels: as stored features, or as images."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_ood.data.benchmark import Part
from clip_ood.features.stored_set import Features
from clip_ood.outputs import Outputs


class LabelledTable(Protocol):
    """What an evaluation knows of a loader's images: rows (n,) of the image set, in order, and labels (n,), -1 where there is none."""

    part: Part
    rows: Tensor
    labels: Tensor


class ImageTable:
    """All rows of one part, with their labels."""

    def __init__(self, part: Part, labels: list[int]) -> None:
        self.part = part
        self.rows, self.labels = (torch.tensor(each, dtype=torch.long) for each in (part.rows, labels))

    def __len__(self) -> int:
        return len(self.rows)


class FeatureTable(Dataset):
    """The readable rows of one part: (n,) positions -> Outputs with features, embeddings, labels and indices.

    indices are rows of the image set; labels are the true ones, -1 where there is none.
    """

    def __init__(self, part: Part, stored: Features, labels: list[int]) -> None:
        rows = torch.tensor(part.rows, dtype=torch.long)
        readable = stored.valid[rows]
        self.part, self.stored = part, stored
        self.rows = rows[readable]
        self.labels = torch.tensor(labels, dtype=torch.long)[readable]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Tensor) -> Outputs:
        rows = self.rows[positions]
        embeddings = None if self.stored.embeddings is None else self.stored.embeddings.take(rows)
        return Outputs(self.stored.features.take(rows), embeddings, None, self.labels[positions], rows)


class LabelledImages(NamedTuple):
    """images (B, 3, H, W), labels (B,) with -1 where there is none, indices (B,): rows of the image set."""

    images: Tensor
    labels: Tensor
    indices: Tensor
