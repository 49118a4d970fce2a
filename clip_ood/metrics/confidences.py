"""Whether what predicts classes is as sure as it is right: torchmetrics' calibration error, over the images of all processes."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import SumMetric
from torchmetrics.classification import BinaryCalibrationError

BINS = 15


class CalibrationErrors:
    """The expected calibration error Σ_b n_b / n · |accuracy_b − confidence_b| of everything that predicts classes, over 15 bins b of
    equal width in confidence.

    References: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    """

    def __init__(self) -> None:
        self._errors: dict[str, BinaryCalibrationError] = {}
        self._bad: dict[str, SumMetric] = {}

    def count(self, by: str, confidence: Tensor, correct: Tensor) -> None:
        """Adds a batch of probabilities (n,) of the predicted classes, and whether these are right (n,)."""
        if by not in self._errors:
            self._errors[by] = BinaryCalibrationError(BINS, norm="l1", validate_args=False).to(confidence.device)
            self._bad[by] = SumMetric().to(confidence.device)
        finite = (
            confidence.isfinite()
        )  # torchmetrics would take a whole batch with NaN, or above 1 by rounding, for logits
        self._bad[by].update((~finite).sum())
        self._errors[by].update(confidence[finite].clamp(0, 1), correct[finite].long())

    def compute(self) -> dict[str, float | str]:
        """Returns the errors, fractions, of all processes together, or why there is none: some probabilities are not finite."""
        bad = {by: int(metric.compute()) for by, metric in self._bad.items()}
        return {
            by: f"{bad[by]:,} of its probabilities are NaN or infinite" if bad[by] else metric.compute().item()
            for by, metric in self._errors.items()
        }
