"""Decides which images are OOD: each by a threshold, or a whole batch of them by its p-values."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

import torch
from torch import Tensor

from clip_ood.calibration import MORE, Calibration, benjamini_hochberg, needed
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError

SHOWN = 5  # classes that are named


@dataclass(frozen=True)
class Decision:
    """The threshold of a detector, which accepts a share `accept` of new ID images, by its scores of the ID images that calibrate it.

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

    def p_values(self, scores: Tensor, classes: Tensor | None) -> Tensor:
        """Returns the p-values (n,) of scores (n,)."""
        return self.calibration.p_values(scores)

    def is_ood(self, scores: Tensor, classes: Tensor | None) -> Tensor:
        """Says which scores (n,) are below the threshold."""
        return scores < torch.tensor(self.threshold, dtype=scores.dtype)

    def told(self, images: int, flagged: int) -> str:
        """Says by what images were flagged, and what that promises."""
        choice = self.calibration.choice
        return (
            f"{self.column} below {self.threshold:.6g}, which accepts {self.calibration.claim}{100 * self.expected:.1f} % of "
            f"new ID images (calibrated on {len(self.calibration):,}"
            + (f", which also chose among {choice.candidates} candidates)" if choice else ")")
        )


@dataclass(frozen=True)
class ClassDecision(Decision):
    """A threshold for each predicted class with enough calibration images; the other classes share that of all images.

    `class_names` are those of the classes by number. Raises: UserError for too few images, and where their classes are not known.
    """

    class_names: Sequence[str] = ()
    expected = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration.classes is None:
            raise UserError(
                f"{self.column} has no threshold for each class, since the predicted classes of its calibration images are not saved: its run "
                "has no classes, is of an earlier version, or predicts classes zero-shot beside a head. Leave --per-class out (in Python "
                "per_class), or run the experiment again"
            )

    @cached_property
    def of_class(self) -> dict[int, Calibration]:
        """The calibration of each class with enough images."""
        return self.calibration.by_class(self.accept)

    def p_values(self, scores: Tensor, classes: Tensor | None) -> Tensor:
        """Returns the p-values (n,) of scores (n,) among calibration images of the same predicted class (n,)."""
        found = self.calibration.p_values(scores)
        for label, calibration in self.of_class.items():
            rows = classes == label
            found[rows] = calibration.p_values(scores[rows])
        return found

    def is_ood(self, scores: Tensor, classes: Tensor | None) -> Tensor:
        """Says which scores (n,) are below the threshold of the predicted class (n,)."""
        found = super().is_ood(scores, classes)
        for label, calibration in self.of_class.items():
            rows = classes == label
            found[rows] = scores[rows] < torch.tensor(calibration.threshold(self.accept), dtype=scores.dtype)
        return found

    def told(self, images: int, flagged: int) -> str:
        """Says by what images were flagged, and what that promises."""
        others = [name for label, name in enumerate(self.class_names) if label not in self.of_class]
        if not self.of_class:
            of_all = Decision(self.column, self.calibration, self.accept).told(images, flagged)
            few = f"fewer than {needed(self.accept)} calibration images are predicted as each"
            return f"{of_all}; no class has a threshold of its own, since {few}"
        sure = self.calibration.choice is None and self.calibration.by == "split"
        own = (
            f"{self.column} by a threshold for each predicted class: of new ID images that are predicted as one of {len(self.of_class)} "
            f"classes it accepts {'' if sure else 'about '}{100 * self.accept:g} % or more"
        )
        if not others:
            return own
        listed = f"{', '.join(others[:SHOWN])}{', …' if len(others) > SHOWN else ''}"
        return (
            f"{own}; {len(others)} with fewer than {needed(self.accept)} calibration images share the threshold of all, {self.threshold:.6g}, "
            f"which promises nothing for each of them ({listed})"
        )


@dataclass(frozen=True)
class BatchDecision:
    """The false discovery rate at which a detector flags images of a whole batch; it has no threshold for a single image.

    Raises: ValueError if there are too few ID images to calibrate on to flag any image.
    """

    column: str
    calibration: Calibration
    fdr: float
    accept = threshold = expected = None

    def __post_init__(self) -> None:
        self.calibration.fewest(1, self.fdr)

    def p_values(self, scores: Tensor, classes: Tensor | None) -> Tensor:
        """Returns the p-values (n,) of scores (n,)."""
        return self.calibration.p_values(scores)

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
            "as those that calibrate it were"
        )

    def caution(self, images: int) -> str | None:
        """Says how many of `images` must be odd before any is flagged, if that is more than one."""
        fewest, n = self.calibration.fewest(images, self.fdr), len(self.calibration)
        if fewest <= 1:
            return None
        return (
            f"With {n:,} ID images to calibrate on, no p-value is below 1/{n + 1}, so that of {images:,} images "
            f"none is flagged unless at least {fewest:,} are odd at the same time. To flag a single one takes "
            f"{ceil(images / Fraction(str(self.fdr))) - 1:,} of them ({MORE})"
        )


def decisions_of(
    saved: SavedDetector,
    columns: Sequence[str],
    accept: float | None = None,
    fdr: float | None = None,
    per_class: bool = False,
) -> list[Decision] | list[BatchDecision]:
    """Returns a decision for each detector: at the false discovery rate `fdr`, or otherwise by `accept` (None: the run's), `per_class` by
    a threshold for each predicted class.

    Raises: UserError for both, for too few val images, and where predicted classes are not known.
    """
    if fdr is None:
        accept = saved.accept if accept is None else accept
        if per_class:
            names = saved.manifest["class_names"] or ()
            return [ClassDecision(column, saved.calibration(column), accept, names) for column in columns]
        return [Decision(column, saved.calibration(column), accept) for column in columns]
    if per_class:
        raise UserError("per_class sets a threshold for each class, and fdr has none: give one of them")
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
