"""The Mahalanobis and the relative Mahalanobis distance, on features and on head logits."""

from __future__ import annotations

from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from clip_ood.detectors.detector import Detector
from clip_ood.detectors.gaussian import SHRINKAGE, Moments, Spectrum, eigh, in_space
from clip_ood.detectors.single import single
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs, Reference

WITHIN, OVERALL = "within-class", "overall"


class Mahalanobis(Detector):
    """Distance to the nearest class: −min_c MD_c, MD_c = (v − μ_c)ᵀ Σ⁻¹ (v − μ_c), Σ pooled within classes.

    v: features (N, D). With one whitening A, A Aᵀ = Σ⁻¹, all classes take one product: a = Aᵀ(v − μ),
    m_c = Aᵀ(μ_c − μ), MD_c = ‖a‖² − 2⟨a, m_c⟩ + ‖m_c‖². Where few images leave most directions empty, Σ⁻¹ = κ I − A Aᵀ with
    as many columns as they fill, and MD_c = κ ‖v − μ_c‖² − ‖a − m_c‖². Rows with label −1 are skipped; a class without rows is at
    distance +inf. A feature covariance below full rank is shrunk, and `notes` says so, unless the features themselves have that
    rank: then, and for logits, the pseudo-inverse is used. `normalize` puts rows on the unit sphere first (Mahalanobis++,
    Müller and Hein, 2025); there, the direction that a final LayerNorm empties holds a trace of the features' length, which
    rounding hides in half precision. `beta` divides rows by ‖v‖^beta first, which keeps directions and draws lengths together (0 to 1)
    or apart (below 0): radially scaled normalisation, of which `normalize` is beta = 1 (Janiak et al., 2025, arXiv 2510.15202, who choose
    beta by the geometry of ID images; here it is given). Raises ValueError for both at once, for a label beyond the reference's class
    names, and at `fit` if no row has a label or rows do not vary within classes. Lee et al., 2018 (arXiv 1807.03888).
    """

    name: ClassVar[str] = "mahalanobis"
    requires: ClassVar[tuple[str, ...]] = ("features", "labels")
    may_lack: ClassVar[frozenset[str]] = frozenset({"isotropic", "offsets"})
    space: ClassVar[str] = "features"
    spread: ClassVar[str] = WITHIN  # the covariance Σ

    def __init__(
        self, reference: Reference | None = None, *, normalize: bool = False, beta: float | None = None
    ) -> None:
        super().__init__(reference)
        if normalize and beta is not None:
            raise self._error(f"normalize is beta = 1, and beta = {beta} is given as well: give one of them")
        if beta is not None and not isfinite(beta):
            raise self._error(f"beta = {beta}, expected a finite number")
        self.beta = float(normalize if beta is None else beta)
        self.moments = self._moments()
        for buffer in ("center", "within", "means", "norms", "isotropic", "offsets"):
            self.register_buffer(buffer, None)

    def distances(self, outputs: Outputs) -> Tensor:
        """Returns the distance MD_c of N images to each class, (N, C) float64."""
        return self._distances(self._centred(outputs))

    def _distances(self, x: Tensor) -> Tensor:
        a = x @ self.within  # (N, D) @ (D, r) -> (N, r)
        squares = a.square().sum(dim=1, keepdim=True)
        products = a @ self.means.T  # (N, r) @ (r, C) -> (N, C)
        if self.isotropic is not None:
            squares = self.isotropic * x.square().sum(dim=1, keepdim=True) - squares
            products = self.isotropic * (x @ self.offsets.T) - products
        return products.mul_(-2).add_(squares).add_(self.norms).clamp_min_(0)

    def _fit(self) -> None:
        if not self.moments.labelled().sum() > 0:
            raise self._error("no ID training image has a class label; expected at least two in one class")
        self.center = self.moments.mean()
        whitening, self.isotropic = self._whitening(self.spread)
        self.within, offsets = single(whitening), self.moments.means() - self.center
        if self.isotropic is None:
            self.offsets = None
            self.means = single(offsets @ self.within)  # (C, D) @ (D, r) -> (C, r)
            norms = self.means.square().sum(dim=1)
        else:
            self.offsets = single(offsets)
            self.means = self.offsets @ self.within
            norms = self.isotropic * self.offsets.square().sum(dim=1) - self.means.square().sum(dim=1)
        self.norms = norms.masked_fill(self.moments.labelled() == 0, torch.inf)

    def _score(self, rows: Outputs) -> Tensor:
        return -self.distances(rows).amin(dim=1)

    def _moments(self) -> Moments:
        return Moments(self.space, beta=self.beta)

    def _centred(self, rows: Outputs) -> Tensor:
        return in_space(rows, self.space, self.beta).to(self.center) - self.center

    def _spectrum(self, which: str) -> Spectrum:
        covariance = {WITHIN: self.moments.within, OVERALL: self.moments.total}[which]
        try:
            return self.moments.once(which, lambda: Spectrum.of(covariance(), self.moments.rounding()))
        except UserError as error:
            raise self._error(f"{which} {self.space}: {error}; expected rows that differ") from error

    def _whitening(self, which: str) -> tuple[Tensor, Tensor | None]:
        """Returns A (D, r) and None with A Aᵀ = Σ⁻¹ or its substitute, or A and κ () with κ I − A Aᵀ for it."""
        found = self._spectrum(which)
        if found.is_full or self.space == "logits" or self._fill_their_space():
            return found.inverted(), None
        width = len(found.values)
        self.notes.append(
            f"{which} covariance of rank {found.rank} < {width}, shrunk: {1 - SHRINKAGE} Σ + {SHRINKAGE} (tr Σ / D) I"
        )
        return (found.shrunk(), None) if self._spectrum(OVERALL).is_full else found.shrunk_from_isotropic()

    def _fill_their_space(self) -> bool:
        """Says whether rows vary within classes wherever features can lie.

        This holds if there are enough rows, and if class means vary in no other direction.
        """
        counts = self.moments.labelled()
        enough = counts.sum() - (counts > 0).sum() >= self.moments.sums.shape[1]
        return bool(enough) and self._spectrum(self.spread).rank == self._spectrum(OVERALL).rank


class Gaussian(Mahalanobis):
    """One Gaussian for all images, without labels: −(v − μ)ᵀ Σ⁻¹ (v − μ), with the overall mean μ and covariance Σ.

    `Mahalanobis` with a single class, which all rows belong to, whatever their labels: parameters, shapes and what is done about a
    covariance below full rank are its. Raises ValueError for `normalize` and `beta` at once, at `fit` without ID training images, and if
    they do not vary.
    """

    name: ClassVar[str] = "gaussian"
    requires: ClassVar[tuple[str, ...]] = ("features",)
    spread: ClassVar[str] = OVERALL

    def _moments(self) -> Moments:
        return Moments(self.space, beta=self.beta, classes=False)

    def _fit(self) -> None:
        if not self.moments.labelled().sum() > 0:
            raise self._error("no ID training image was taken in; expected at least two")
        super()._fit()


class RMD(Mahalanobis):
    """Relative Mahalanobis distance: −min_c (MD_c − MD_0), with MD_0 to the overall mean μ and covariance Σ_0.

    With a whitening B Bᵀ = Σ_0⁻¹ and w = Bᵀ(v − μ): MD_c − MD_0 = wᵀ K w − 2⟨v − μ, A m_c⟩ + ‖m_c‖², where
    K = B⁺ A (B⁺ A)ᵀ − I = U diag(q) Uᵀ has the rank of the class means: the two distances, D columns each, become one
    product with at most 2 C columns, and large equal terms cancel before any image is seen. Where few images leave most directions
    empty, the two distances are subtracted.
    Parameters, shapes and errors are those of `Mahalanobis`. It also raises at `fit` if only one class has rows, or if all
    classes have the same mean, so that their Gaussians equal the overall one. Ren et al., 2021 (arXiv 2106.09022).
    """

    name: ClassVar[str] = "rmd"
    may_lack: ClassVar[frozenset[str]] = frozenset(
        {"within", "means", "isotropic", "offsets", "columns", "curvature", "overall", "overall_isotropic"}
    )

    def __init__(
        self, reference: Reference | None = None, *, normalize: bool = False, beta: float | None = None
    ) -> None:
        super().__init__(reference, normalize=normalize, beta=beta)
        for buffer in ("columns", "curvature", "overall", "overall_isotropic"):
            self.register_buffer(buffer, None)

    def state(self) -> dict[str, Tensor]:
        unused = () if self.columns is None else ("within", "means")
        return {name: value for name, value in super().state().items() if name not in unused}

    def _fit(self) -> None:
        super()._fit()
        if (self.moments.labelled() > 0).sum() < 2:
            raise self._error("needs images of two classes or more: with one, MD_c and MD_0 are the same distance")
        if (self.moments.total() - self.moments.within()).trace() <= self.moments.rounding().all:
            raise self._error(
                "all classes have the same mean, so MD_c and MD_0 are the same distance; look at the labels"
            )
        total, self.overall_isotropic = self._whitening(OVERALL)  # B (D, r)
        if self.overall_isotropic is not None:
            self.overall, self.columns, self.curvature = single(total), None, None
            return
        h = (total / total.square().sum(dim=0)).T @ self.within  # B⁺ A
        q, u = eigh(h @ h.T - torch.eye(len(h)).to(h))
        keep = q.abs() > torch.finfo(q.dtype).eps * len(q) * q.abs().max()
        self.curvature, self.overall = q[keep], None  # (k,)
        self.columns = torch.cat(
            [total @ u[:, keep], self.within @ self.means.T], dim=1
        )  # (D, k + C), of terms that cancel

    def _score(self, rows: Outputs) -> Tensor:
        x = self._centred(rows)
        if self.columns is None:
            overall = self.overall_isotropic * x.square().sum(dim=1) - (x @ self.overall).square().sum(dim=1)
            return overall - self._distances(x).amin(dim=1)
        w, inner = (x @ self.columns).tensor_split([len(self.curvature)], dim=1)  # (n, D) @ (D, k + C)
        return -(w.square() @ self.curvature + (self.norms - 2 * inner).amin(dim=1))


class MahalanobisLogits(Mahalanobis):
    """`Mahalanobis` on the head logits z (N, C)."""

    name: ClassVar[str] = "mahalanobis_logits"
    requires: ClassVar[tuple[str, ...]] = ("logits", "labels")
    space: ClassVar[str] = "logits"


class RMDLogits(RMD):
    """`RMD` on the head logits z (N, C)."""

    name: ClassVar[str] = "rmd_logits"
    requires: ClassVar[tuple[str, ...]] = ("logits", "labels")
    space: ClassVar[str] = "logits"
