"""Rows of a part with their labels, as stored features or as images."""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_ood.data.benchmark import Part
from clip_ood.features.stored_set import Features
from clip_ood.outputs import Outputs

TOKENS = 2**16  # that are read at once: 64 MiB of 512 half numbers each


class LabelledTable(Protocol):
    """The rows (n,) of a loader's images in the image set, in order, their labels (n,), -1 where there is none, and the kinds of patch
    tokens that come with them, though the bank's images may have none."""

    part: Part
    rows: Tensor
    labels: Tensor
    tokens: tuple[str, ...]


def labels_of(table: LabelledTable, indices: Tensor, device: torch.device) -> Tensor:
    """Returns the labels (n,) of the images at these rows of their set, on a device."""
    return table.labels[torch.searchsorted(table.rows, indices.cpu())].to(device)


class ImageTable:
    """The rows of one part with their labels: all of them, or those of the image set that are `valid` (N,)."""

    tokens: tuple[str, ...] = ()

    def __init__(self, part: Part, labels: list[int], valid: Tensor | None = None) -> None:
        rows, labels = (torch.tensor(each, dtype=torch.long) for each in (part.rows, labels))
        kept = slice(None) if valid is None else valid[rows]
        self.part, self.rows, self.labels = part, rows[kept], labels[kept]

    def __len__(self) -> int:
        return len(self.rows)


class FeatureTable(ImageTable, Dataset):
    """The readable rows of one part: (n,) positions -> Outputs with features, embeddings, labels and indices.

    indices are rows of the image set; labels are the true ones, -1 where there is none. Layers come along where they are stored, and
    patch tokens where they are stored for all rows that are asked for at once.
    """

    def __init__(self, part: Part, stored: Features, labels: list[int]) -> None:
        super().__init__(part, labels, stored.valid)
        self.stored = stored
        has = {kind: tokens.has(self.rows) for kind, tokens in stored.tokens.items()}
        self.tokens = tuple(kind for kind, of_rows in has.items() if of_rows.all())
        self._some = {kind: of_rows for kind, of_rows in has.items() if of_rows.any()}

    @property
    def groups(self) -> list[tuple[Tensor, int | None]]:
        """The positions of rows that come with tokens and those of the others, and how many should be read at once (None: any number)."""
        if not self._some:
            return [(torch.arange(len(self)), None)]
        with_tokens = torch.stack(list(self._some.values())).all(dim=0)
        most = max(1, TOKENS // max(self.stored.tokens[kind].width for kind in self._some))
        found = ((with_tokens, most), (~with_tokens, None))
        return [(of_rows.nonzero()[:, 0], limit) for of_rows, limit in found if of_rows.any()]

    def with_tokens(self, kinds: Collection[str], rows: Tensor | None = None) -> FeatureTable:
        """Returns the same images, of which patch tokens of these kinds alone are read, and only of those at `rows` (n,) of the image set."""
        table, here = copy(self), True if rows is None else torch.isin(self.rows, rows)
        wanted = {kind: of_rows & here for kind, of_rows in self._some.items() if kind in kinds}
        table._some = {kind: of_rows for kind, of_rows in wanted.items() if of_rows.any()}
        table.tokens = tuple(kind for kind, of_rows in table._some.items() if of_rows.all())
        return table

    def __getitem__(self, positions: Tensor) -> Outputs:
        rows = self.rows[positions]
        embeddings = None if self.stored.embeddings is None else self.stored.embeddings.take(rows)
        layers = {name: each.take(rows) for name, each in self.stored.layers.items()}
        tokens = {
            kind: self.stored.tokens[kind].take(rows)
            for kind, of_rows in self._some.items()
            if of_rows[positions].all()
        }
        features, labels = self.stored.features.take(rows), self.labels[positions]
        return Outputs(features, embeddings, None, labels, rows, layers or None, tokens or None)


class LabelledImages(NamedTuple):
    """images (B, 3, H, W), labels (B,) with -1 where there is none, indices (B,): rows of the image set."""

    images: Tensor
    labels: Tensor
    indices: Tensor
