"""Virtual-logit matching, which measures the part of a feature outside the space that ID features span."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import Detector, exact
from clip_ood.detectors.gaussian import Moments, Spectrum
from clip_ood.detectors.single import single
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs, Reference

BLOCK = 512  # rows of the bank worked on at once, whose float64 values a cache holds
SHARE = 1e-3  # of the squared length: with less outside, it is computed from what is outside alone


class Residual(Detector):
    """Negative length outside the principal space: −‖(f − u) N‖.

    f: features (N, D); u = −W⁺ b, the point where all logits are 0, from weight W (C, D) and bias b (C,) of the
    reference; N (D, D − d): eigenvectors of E[(f − u)(f − u)ᵀ] over ID training images beyond the d = `dim` largest, P (D, d).
    Where P has fewer columns, the length is √(‖f − u‖² − ‖(f − u) P‖²), unless that would be the difference of nearly equal numbers.
    By default d is the published one: 1000 for D ≥ 2048, 512 for D ≥ 768, otherwise D / 2. If there are no more than D images,
    or if their rank is not above that d, d is half the rank, and `notes` says so. The rank ignores what rounding may cause.
    Raises ValueError at `fit` for a `dim` outside 1 … rank − 1, which would leave nothing, if no row differs from u, and without ID
    training images. Wang et al., 2022 (arXiv 2203.10807).
    """

    name: ClassVar[str] = "residual"
    requires: ClassVar[tuple[str, ...]] = ("features", "weight", "bias")
    may_lack: ClassVar[frozenset[str]] = frozenset({"outside", "principal"})

    def __init__(self, reference: Reference | None = None, *, dim: int | None = None) -> None:
        super().__init__(reference)
        if dim is not None and (type(dim) is not int or dim < 1):
            raise self._error(f"dim = {dim}, expected a whole number from 1 on")
        self.dim = dim
        self.moments = Moments("features")
        for buffer in ("origin", "outside", "principal"):
            self.register_buffer(buffer, None)

    def _fit(self) -> None:
        if not self.moments.counts.sum() > 0:
            raise self._error("no ID training image was taken in; expected at least one")
        self.origin = self._center()  # (D,)
        try:
            spectrum = self.moments.once((type(self)._center, "spectrum"), self._spectrum)
        except UserError as error:
            outside = "nothing but rounding lies outside the principal space of the ID training features"
            raise self._error(f"{outside}; expected rows that differ") from error
        values, vectors, rank = spectrum.values, spectrum.vectors, spectrum.rank
        if self.dim is not None and self.dim >= rank:
            raise self._error(f"dim = {self.dim}, expected less than {rank}, the rank of the ID training features")
        dim = self._usual(len(values), rank) if self.dim is None else self.dim
        outside, principal = vectors.tensor_split([len(values) - dim], dim=1)  # (D, D − d), (D, d)
        by_inside = dim < len(values) / 2 and values[:-dim].sum() > SHARE * values.sum()
        self.outside, self.principal = (None, single(principal)) if by_inside else (single(outside), None)

    def _center(self) -> Tensor:
        """Returns the point u (D,) from which lengths are measured."""
        weight, bias = (value.to(self.moments.sums) for value in (self.reference.weight, self.reference.bias))
        return -torch.linalg.pinv(weight) @ bias

    def _spectrum(self) -> Spectrum:
        return Spectrum.of(self.moments.around(self.origin), self.moments.rounding(self.origin))

    def _usual(self, width: int, rank: int) -> int:
        published = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        images = int(self.moments.counts.sum())
        if images > width and published < rank:
            return published
        self.notes.append(
            f"principal space of {rank // 2} dimensions, half the rank {rank} of {images} ID training images: the published "
            f"{published} needs a rank above {published} and more than {width} images"
        )
        return rank // 2

    def _score(self, rows: Outputs) -> Tensor:
        return -self._lengths(rows.features)

    def _lengths(self, features: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Returns ‖(f − u) N‖ (n,), in float64 or, if it needs no difference of nearly equal numbers, in another dtype."""
        if self.principal is None:
            return ((features.double() - self.origin).to(dtype) @ self.outside.to(dtype)).norm(dim=1)
        x = features.to(self.origin) - self.origin
        return (x.square().sum(dim=1) - (x @ self.principal).square().sum(dim=1)).clamp_min(0).sqrt()


class PCA(Residual):
    """The error of a principal component analysis, without labels and without a head: −‖(f − μ) N‖.

    `Residual` around the mean μ of all ID training images: N are the principal directions beyond the d = `dim` largest, so that the
    score is −‖f − f~‖, f~ being what scikit-learn's `PCA(d)` restores of f. The default of d, shapes and errors are those of `Residual`.
    """

    name: ClassVar[str] = "pca"
    requires: ClassVar[tuple[str, ...]] = ("features",)

    def _center(self) -> Tensor:
        return self.moments.sums.sum(dim=0) / self.moments.counts.sum()


class ViM(Residual):
    """Virtual-logit matching: logsumexp z − α ‖(f − u) N‖, α = mean max_c z_c / mean ‖(f − u) N‖ of ID training images.

    z = W f + b: head logits (N, C). α takes a second pass over the bank, which the detector keeps (shared with k-NN).
    Everything else is as for `Residual`.
    """

    name: ClassVar[str] = "vim"
    requires: ClassVar[tuple[str, ...]] = ("features", "logits", "weight", "bias")
    searches: ClassVar[bool] = False

    def __init__(self, reference: Reference | None = None, *, dim: int | None = None) -> None:
        super().__init__(reference, dim=dim)
        self.bank = Bank()
        self.register_buffer("alpha", None)

    def _fit(self) -> None:
        super()._fit()
        place = self.origin.device
        weight, bias = (value.to(place, torch.float32) for value in (self.reference.weight, self.reference.bias))
        sums = self.origin.new_zeros(2)  # of float32 values, whose rounding the means even out
        for rows in (Outputs(part.to(weight)) for chunk in self.bank.chunks for part in chunk.split(BLOCK)):
            with exact(rows):
                largest = torch.addmm(bias, rows.features, weight.T).amax(dim=1)
                lengths = self._lengths(rows.features, torch.float32)
            sums += torch.stack([each.sum(dtype=sums.dtype) for each in (largest, lengths)])
        largest, length = self.bank.exchange.sum(sums)
        width = len(self.origin)
        share = (self.outside.shape[1] if self.principal is None else width - self.principal.shape[1]) / width
        noise = (share * self.moments.rounding(self.origin).all) ** 0.5
        if length <= noise * len(self.bank):
            raise self._error("nothing but rounding lies outside the principal space of the ID training features")
        self.alpha = largest / length

    def _score(self, rows: Outputs) -> Tensor:
        return rows.logits.to(self.origin).logsumexp(dim=1) - self.alpha * self._lengths(rows.features)
