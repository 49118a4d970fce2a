"""Decides which images are OOD: each by a threshold, or a whole batch of them by its p-values."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import torch

from clip_ood.calibration import Calibration, benjamini_hochberg
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError


@dataclass(frozen=True)
class Decision:
    """The threshold of a detector, which accepts a share `accept` of new ID images, by its scores of the ID val images.

    Raises: ValueError for too few of them.
    """

    column: str
    calibration: Calibration
    accept: float

    def __post_init__(self) -> None:
        self.calibration.threshold(self.accept)

    @property
    def threshold(self) -> float:
        """The score below which an image is OOD."""
        return self.calibration.threshold(self.accept)

    @property
    def expected(self) -> float:
        """The share of new ID images that is expected to be accepted."""
        return self.calibration.expected(self.accept)

    def told(self, images: int, flagged: int) -> str:
        """Says by what images were flagged, and what that promises."""
        choice = self.calibration.choice
        return (
            f"{self.column} below {self.threshold:.6g}, which accepts {self.calibration.claim}{100 * self.expected:.1f} % of "
            f"new ID images (calibrated on {len(self.calibration):,}"
            + (f", which also chose among {choice.candidates} candidates)" if choice else ")")
        )


@dataclass(frozen=True)
class BatchDecision:
    """The false discovery rate at which a detector flags images of a whole batch; it has no threshold for a single image.

    Raises: ValueError if there are too few ID val images to flag any image.
    """

    column: str
    calibration: Calibration
    fdr: float
    accept = threshold = expected = None

    def __post_init__(self) -> None:
        self.calibration.fewest(1, self.fdr)

    def told(self, images: int, flagged: int) -> str:
        """Says by what images were flagged, and what that promises."""
        by = (
            f"{self.column} at a false discovery rate of {100 * self.fdr:g} % (calibrated on {len(self.calibration):,})"
        )
        if not flagged:
            return by
        choice, about, how = self.calibration.choice, "", ""
        if choice is not None:
            about = "about "
            how = f" (simulated, not proven: the calibration images also chose among {choice.candidates} candidates)"
        elif self.calibration.by != "split":
            about = "about "
            how = " (simulated, not proven: the detector was fitted on the calibration images)"
        share = 100 * self.calibration.false_share(images, flagged, self.fdr)
        return (
            f"{by}: of the images flagged, at most {about}{share:.3g} % are expected to be ID images{how}, if ID images are drawn "
            "as ID val was"
        )

    def caution(self, images: int) -> str | None:
        """Says how many of `images` must be odd before any is flagged, if that is more than one."""
        fewest, n = self.calibration.fewest(images, self.fdr), len(self.calibration)
        if fewest <= 1:
            return None
        return (
            f"With {n:,} ID val images to calibrate on, no p-value is below 1/{n + 1}, so that of {images:,} images "
            f"none is flagged unless at least {fewest:,} are odd at the same time. To flag a single one takes "
            f"{ceil(images / Fraction(str(self.fdr))) - 1:,} ID val images (data.splits.val, data.id.val)"
        )


def decisions_of(
    saved: SavedDetector, columns: Sequence[str], accept: float | None = None, fdr: float | None = None
) -> list[Decision] | list[BatchDecision]:
    """Returns a decision for each detector: at the false discovery rate `fdr`, or otherwise by `accept` (None: the run's).

    Raises: UserError for both, and for too few val images.
    """
    if fdr is None:
        accept = saved.accept if accept is None else accept
        return [Decision(column, saved.calibration(column), accept) for column in columns]
    if accept is not None:
        raise UserError(
            "accept sets a threshold for each image, and fdr decides over all images together: give one of them"
        )
    return [BatchDecision(column, saved.calibration(column), fdr) for column in columns]


def cutoffs(p_values: Iterable[tuple[str, float]], fdr: float) -> dict[str, float]:
    """Returns the largest p-value that is flagged (0 if none is) for each detector, of pairs of a detector and a p-value."""
    found: dict[str, array] = {}
    for column, p_value in p_values:
        found.setdefault(column, array("d")).append(p_value)
    batches = {column: torch.frombuffer(values, dtype=torch.float64) for column, values in found.items()}
    return {
        column: max(values[benjamini_hochberg(values, fdr)].tolist(), default=0.0) for column, values in batches.items()
    }
