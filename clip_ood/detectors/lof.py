"""The local outlier factor: how dense the surroundings of an image are, against those of its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import Detector, exact
from clip_ood.detectors.neighbour_count import check_count, count_of, told
from clip_ood.outputs import Outputs, Reference

NEAREST = 1e-3  # distances below it are due to the rounding of float32 cosines, and count as this
SAME = 1e-6  # so little scores differ by rounding


class LOF(Detector):
    """Local outlier factor: −mean_{o ∈ top k} lrd(o) / lrd(g), where 1 / lrd(g) = mean_{o ∈ top k} max(d_k(o), ‖g^ − o^‖).

    g: features (N, D), ^ = L2-normalised; top k: the nearest of the bank; d_k(o): the distance of a bank image o to the k-th of the
    others; lrd(o): its local reachability density among them. k is a number, or a share of the bank as for `knn`. About −1 where
    images lie as densely as around their neighbours, lower where they lie alone. The same numbers as scikit-learn's
    `LocalOutlierFactor` with Euclidean distances on the unit sphere: `score_samples` for new images and, given `copy_of`,
    `negative_outlier_factor_` for those of the bank, to 5e-5 (1e-3 where rounding of float32 cosines settles which image is the k-th);
    but no d_k is below 0.001, so that copies have a finite density. The fit searches
    the bank once for each of its images, and needs O(n k) memory for n images in this process.
    Raises ValueError for any other k, and at `fit` for k above the number of other images, for images without indices, and if all
    images lie as densely as their neighbours, as two images do, or equal ones. Breunig et al., 2000 (SIGMOD).
    """

    name: ClassVar[str] = "lof"
    requires: ClassVar[tuple[str, ...]] = ("features",)
    leaves_one_out: ClassVar[bool] = True

    def __init__(self, reference: Reference | None = None, *, k: int | float = 10) -> None:
        super().__init__(reference)
        check_count(self.name, k)
        self.k = k
        self.bank = Bank()
        for buffer in ("images", "squares", "densities"):
            self.register_buffer(buffer, None)

    @property
    def count(self) -> int:
        """Returns the number of neighbours."""
        return count_of(self.k, len(self.bank))

    def _fit(self) -> None:
        self.bank.check(self.name, self.count, itself=True)
        self.bank.expect(self.count)
        gather = self.bank.exchange.gather
        self.images, order = torch.cat(gather(torch.cat(self.bank.indices))).sort()
        found = []
        for rows in self.bank.itself():
            with exact(rows):
                cosines, neighbours = self.bank.nearest(rows, self.count)
            found.append((_squares(cosines), self._places(neighbours).int()))  # 8 bytes a neighbour
        farthest = torch.cat([squares[:, -1] for squares, _ in found]).clamp_min(NEAREST**2)
        self.squares = torch.cat(gather(farthest))[order]
        reach = [self._reach(*each) for each in found]
        self.densities = torch.cat(gather(1 / torch.cat(reach)))[order]
        factors = torch.cat([self._factor(each, places) for each, (_, places) in zip(reach, found, strict=True)])
        if torch.cat(gather(factors)).std(correction=0) < SAME:
            raise self._error(f"all {len(self.bank)} ID training images lie as densely as their {self.count} nearest")
        self.notes += told(self.k, len(self.bank))

    def traceable(self) -> Callable[[Outputs], Tensor]:
        self.check_fitted()
        columns, count = self.bank.dense(), self.count  # (D, N)
        places = self._places(torch.cat(self.bank.indices))  # of the columns

        def scores(rows: Outputs) -> Tensor:
            cosines, nearest = (normalize(rows.features.float(), dim=1) @ columns).topk(count, dim=1)
            return self._scored(cosines, places[nearest])

        return scores

    def _score(self, rows: Outputs) -> Tensor:
        cosines, neighbours = self.bank.nearest(rows, self.count)
        return self._scored(cosines, self._places(neighbours))

    def _scored(self, cosines: Tensor, places: Tensor) -> Tensor:
        """Returns the score (n,) from the cosines (n, k) of the nearest and their places (n, k) in the buffers."""
        return self._factor(self._reach(_squares(cosines), places), places)

    def _factor(self, reach: Tensor, places: Tensor) -> Tensor:
        return -self.densities[places].mean(dim=1) * reach

    def _reach(self, squares: Tensor, places: Tensor) -> Tensor:
        """Returns the mean reachability distance (n,), 1 / lrd, from squared distances (n, k)."""
        return torch.maximum(squares, self.squares[places]).double().sqrt().mean(dim=1)

    def _places(self, indices: Tensor) -> Tensor:
        """Returns where in the buffers the images with these indices stand."""
        return torch.searchsorted(self.images, indices.contiguous())


def _squares(cosines: Tensor) -> Tensor:
    """Returns squared distances on the unit sphere."""
    return 2 - 2 * cosines
