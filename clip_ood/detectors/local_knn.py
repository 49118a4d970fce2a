"""The similarity of an image's least familiar patch to the patches of ID training images."""

from __future__ import annotations

from math import ceil
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.detector import Detector
from clip_ood.detectors.draws import drawn
from clip_ood.detectors.patches import PatchBank, images_at_once, k_centres
from clip_ood.outputs import Outputs, Reference


class LocalKNN(Detector):
    """The least familiar patch: min_p max_m cos(x_p, b_m).

    x_p: tokens (N, P, E) of an image's patches, of the kind `tokens` (output or value, see `clip_ood.backbones.inside`); b: a coreset
    (M, E) of patches of ID training images. `images`: of at most how many ID training images patches are taken; `patches`: how many of
    these patches are drawn at most; both draws are by a hash of the image's index, the patch's number and `seed`. `coreset`: how many of
    the drawn patches are kept, a number or a share in (0, 1], by a greedy choice of k centres. `lowest`: the share of an image's patches,
    rounded up, whose lowest cosines are averaged; 0 takes the lowest alone. Patches of the image that an image is a copy of (`copy_of`)
    do not count. Raises ValueError for other values.
    After PatchCore (Roth et al., 2022, arXiv 2106.08265), which takes features of middle layers, averages them over neighbouring
    patches, and weights the score by the neighbourhood of the nearest patch in the bank; none of this is done here.
    """

    name: ClassVar[str] = "local_knn"
    requires: ClassVar[tuple[str, ...]] = ("tokens",)
    tokens: ClassVar[str] = "output"
    learns_tokens: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def __init__(
        self,
        reference: Reference | None = None,
        *,
        tokens: str = "output",
        images: int = 1000,
        patches: int = 10_000,
        coreset: int | float = 0.1,
        lowest: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(reference)
        if tokens not in ("value", "output"):
            raise self._error(f"tokens = {tokens}, expected output or value")
        for key, value in (("images", images), ("patches", patches)):
            if value < 1:
                raise self._error(f"{key} = {value}, expected 1 or more")
        if not (coreset >= 1 if isinstance(coreset, int) else 0 < coreset <= 1):
            raise self._error(f"coreset = {coreset}, expected a whole number from 1 on, or a share between 0 and 1")
        if not 0 <= lowest <= 1:
            raise self._error(f"lowest = {lowest}, expected a share from 0 to 1")
        self.tokens, self.most, self.coreset, self.lowest = tokens, patches, coreset, lowest
        self.bank = PatchBank(tokens, images, seed)
        self.register_buffer("patches", None)  # (M, E) float32, unit norm
        self.register_buffer("owners", None)  # (M,) int64, the index of each patch's image

    @classmethod
    def patched(cls, rows: Tensor, images: int = 1000, seed: int = 0, **parameters: object) -> Tensor:
        return drawn(rows, images, seed)

    def at_once(self, rows: Outputs) -> int:
        return images_at_once(rows.tokens[self.tokens], len(self.patches))

    def _fit(self) -> None:
        rows, owners, images = self.bank.draw(self.most)
        count = self.coreset if isinstance(self.coreset, int) else max(1, round(self.coreset * len(rows)))
        kept = k_centres(rows, count)
        self.patches, self.owners = rows[kept], owners[kept]
        if images < self.bank.seen:
            self.notes.append(f"{len(kept):,} patches of {images:,} of the {self.bank.seen:,} ID training images")

    def _score(self, rows: Outputs) -> Tensor:
        return self._of_image(self._local_scores(rows))

    def _local_scores(self, rows: Outputs) -> Tensor:
        tokens = rows.tokens[self.tokens]
        if rows.copy_of is None or not torch.isin(rows.copy_of, self.owners.to(rows.copy_of.device)).any():
            return self._cosines(tokens)
        each = zip(tokens.split(1), rows.copy_of.tolist(), strict=True)
        return torch.cat([self._cosines(token, but=self.owners == copy) for token, copy in each])

    def _cosines(self, tokens: Tensor, but: Tensor | None = None) -> Tensor:
        """Returns the largest cosine (n, P) of each patch of tokens (n, P, E) to the kept patches, but those marked (M,)."""
        cosines = normalize(tokens.float(), dim=2) @ self.patches.to(tokens.device).T  # (n, P, E) @ (E, M) -> (n, P, M)
        if but is not None:
            cosines = cosines.masked_fill(but.to(cosines.device), -1.0)
        return cosines.amax(dim=2)

    def _of_image(self, cosines: Tensor) -> Tensor:
        """Returns the score (n,) of images by the cosines (n, P) of their patches."""
        count = max(1, ceil(self.lowest * cosines.shape[1] - 1e-9))
        if count == 1:
            return cosines.amin(dim=1)
        return cosines.topk(count, dim=1, largest=False).values.mean(dim=1)
