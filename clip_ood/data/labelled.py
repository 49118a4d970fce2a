"""Rows of a part with their labels, as stored features or as images."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_ood.data.benchmark import Part
from clip_ood.features.stored_set import Features
from clip_ood.outputs import Outputs


class LabelledTable(Protocol):
    """The rows (n,) of a loader's images in the image set, in order, and their labels (n,), -1 where there is none."""

    part: Part
    rows: Tensor
    labels: Tensor


def labels_of(table: LabelledTable, indices: Tensor, device: torch.device) -> Tensor:
    """Returns the labels (n,) of the images at these rows of their set, on a device."""
    return table.labels[torch.searchsorted(table.rows, indices.cpu())].to(device)


class ImageTable:
    """The rows of one part with their labels: all of them, or those of the image set that are `valid` (N,)."""

    def __init__(self, part: Part, labels: list[int], valid: Tensor | None = None) -> None:
        rows, labels = (torch.tensor(each, dtype=torch.long) for each in (part.rows, labels))
        kept = slice(None) if valid is None else valid[rows]
        self.part, self.rows, self.labels = part, rows[kept], labels[kept]

    def __len__(self) -> int:
        return len(self.rows)


class FeatureTable(ImageTable, Dataset):
    """The readable rows of one part: (n,) positions -> Outputs with features, embeddings, labels and indices.

    indices are rows of the image set; labels are the true ones, -1 where there is none.
    """

    def __init__(self, part: Part, stored: Features, labels: list[int]) -> None:
        super().__init__(part, labels, stored.valid)
        self.stored = stored

    def __getitem__(self, positions: Tensor) -> Outputs:
        rows = self.rows[positions]
        embeddings = None if self.stored.embeddings is None else self.stored.embeddings.take(rows)
        return Outputs(self.stored.features.take(rows), embeddings, None, self.labels[positions], rows)


class LabelledImages(NamedTuple):
    """images (B, 3, H, W), labels (B,) with -1 where there is none, indices (B,): rows of the image set."""

    images: Tensor
    labels: Tensor
    indices: Tensor
