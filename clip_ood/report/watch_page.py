"""A page that shows whether a stream of predictions has changed: the martingale from image to image, and p-values of each file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from clip_ood.calibration import Calibration
from clip_ood.report.charts import colour, svg
from clip_ood.report.page import write_page
from clip_ood.stream.martingale import Martingale
from clip_ood.stream.online_p_values import OnlinePValues

POINTS = 600  # in a drawn curve; each is the highest of its images
ENDS = 0.05  # p-values this near to 0 or 1 are called low and high
BINS = 20


@dataclass(frozen=True)
class Part:
    """What a file adds to the stream: its images, the shares of low and high p-values, the martingale after it and its highest within it,
    as logarithms to the base 10."""

    name: str
    images: int
    low: float
    high: float
    after: float
    highest: float


def write_watch_page(
    path: Path, files: Sequence[tuple[str, np.ndarray]], calibration: Calibration, column: str, delta: float
) -> Martingale:
    """Writes the page of scores, file by file as one stream, and returns the martingale after them. Raises: OSError; UserError for NaN."""
    online, martingale = OnlinePValues(calibration.scores.double().numpy()), Martingale(delta)
    parts, p_values, logs = [], [], []
    for name, scores in files:
        low, high = online.take(scores)
        p_values.append(low)
        logs.append(martingale.take(low, high) / math.log(10))
        parts.append(
            Part(
                name, len(low), (low <= ENDS).mean(), (high <= ENDS).mean(), float(logs[-1][-1]), float(logs[-1].max())
            )
        )
    ends = np.cumsum([part.images for part in parts])[:-1]
    write_page(
        path,
        "watch.html.j2",
        column=column,
        calibrated=len(calibration),
        martingale=martingale,
        highest=martingale.highest / math.log(10),
        last=martingale.log / math.log(10),
        parts=parts,
        curve=_curve(np.concatenate(logs), ends, martingale),
        histogram=_histogram(np.concatenate(p_values)),
        ends=ENDS,
    )
    return martingale


def _curve(logs: np.ndarray, ends: np.ndarray, martingale: Martingale) -> Markup:
    pieces = np.array_split(np.arange(len(logs)), min(POINTS, len(logs)))
    tops = [int(piece[logs[piece].argmax()]) for piece in pieces]

    def draw(axes: Axes) -> None:
        axes.axhline(martingale.limit / math.log(10), color=colour(1), linestyle="--", linewidth=1)
        for end in ends:
            axes.axvline(end + 0.5, color=colour(6), linewidth=0.5, linestyle=":")
        axes.plot(np.array(tops) + 1, logs[tops], color=colour(0))
        axes.set(xlabel="image of the stream", ylabel="martingale, log₁₀")

    return svg(draw, "martingale", size=(7.2, 2.6), place=(0.08, 0.16, 0.9, 0.8))


def _histogram(p_values: np.ndarray) -> Markup:
    def draw(axes: Axes) -> None:
        counts, edges = np.histogram(p_values, BINS, (0, 1))
        axes.axhline(100 / BINS, color=colour(1), linestyle="--", linewidth=1)
        axes.stairs(100 * counts / len(p_values), edges, fill=True, color=colour(0), alpha=0.4)
        axes.set(xlabel="online p-value", ylabel="images (%)", xlim=(0, 1))

    return svg(draw, "p-values", size=(7.2, 2.2), place=(0.08, 0.2, 0.9, 0.74))
