"""Draws histogram, ROC and precision-recall of one detector as inline SVG, in the colours of the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip_ood.metrics.curves import pr_curve, roc_curve
from clip_ood.report.figures import bin_edges, thin
from clip_ood.runs.scores import ScoredSet

COLOURS = 7  # --c0 (ID) … --c6 of the style sheet; OOD sets take 1 … 6, then again with another dash
DASHES = ("-", "--", ":", "-.")
POINTS = 200  # in a drawn curve

# Colours that stand for those of the page: "#0d00NN" becomes var(--cNN), the others what _PAGE says.
_INK, _LINE = "#0d0080", "#0d0081"
_PAGE = {_INK: "currentColor", _LINE: "var(--line)"}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.3,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
}
_SHARES = {"xlim": (-1, 101), "ylim": (-1, 101), "xticks": (0, 50, 100), "yticks": (0, 50, 100)}


def colour_of(number: int) -> int:
    """Returns the number of the page's colour for the set at a place: 0 for ID, then 1 … 6 repeatedly."""
    return 0 if number == 0 else 1 + (number - 1) % (COLOURS - 1)


def histogram(sets: list[ScoredSet], detector: str, threshold: float) -> Markup:
    """Draws densities over the range that holds 99 % of every set, and the threshold."""
    scores = [each.scores[detector] for each in sets]
    edges = bin_edges(scores)

    def draw(axes: Axes) -> None:
        for number, values in enumerate(scores):
            counts, _ = np.histogram(values, edges)
            density = counts / len(values) / np.diff(edges)
            axes.stairs(density, edges, fill=True, color=colour(number), alpha=0.28 if number == 0 else 0.1)
            axes.stairs(density, edges, color=colour(number), linestyle=_dash(number), linewidth=1.1)
        axes.axvline(threshold, color=_INK, linestyle=(0, (3, 2)), linewidth=0.9)
        axes.set(
            yticks=[], xlabel="score", ylabel="density", xlim=(min(edges[0], threshold), max(edges[-1], threshold))
        )
        axes.locator_params(axis="x", nbins=4)

    return svg(draw, f"histogram {detector}")


def roc(id_test: ScoredSet, ood: list[ScoredSet], detector: str, threshold: float) -> Markup:
    """Draws accepted ID over accepted OOD, with a line for each OOD set and dots at the threshold."""

    def draw(axes: Axes) -> None:
        axes.axhline(95, color=_LINE, linewidth=0.8)
        inside = torch.from_numpy(id_test.scores[detector])
        kept = 100 * id_test.accepted(detector, threshold) / len(id_test)
        for number, each in enumerate(ood, start=1):
            fpr, tpr = thin(*roc_curve(inside, torch.from_numpy(each.scores[detector])), POINTS)
            axes.plot(100 * fpr, 100 * tpr, color=colour(number), linestyle=_dash(number))
            passed = 100 * each.accepted(detector, threshold) / len(each)
            axes.plot(passed, kept, "o", color=colour(number), markersize=3.5)
        axes.set(xlabel="OOD accepted (%)", ylabel="ID accepted (%)", **_SHARES)

    return svg(draw, f"roc {detector}")


def precision_recall(id_test: ScoredSet, ood: list[ScoredSet], detector: str) -> Markup:
    """Draws the precision of ID over its recall, with a line for each OOD set."""

    def draw(axes: Axes) -> None:
        inside = torch.from_numpy(id_test.scores[detector])
        for number, each in enumerate(ood, start=1):
            recall, precision = thin(*pr_curve(inside, torch.from_numpy(each.scores[detector])), POINTS)
            axes.plot(100 * recall, 100 * precision, color=colour(number), linestyle=_dash(number))
        axes.set(xlabel="recall of ID (%)", ylabel="precision of ID (%)", **_SHARES)

    return svg(draw, f"pr {detector}")


def colour(number: int) -> str:
    """Returns what stands in matplotlib for the page's colour of the set at a place."""
    return f"#0d00{colour_of(number):02d}"


def _dash(number: int) -> str:
    return DASHES[0 if number == 0 else (number - 1) // (COLOURS - 1) % len(DASHES)]


def svg(
    draw: Callable[[Axes], None],
    salt: str,
    size: tuple[float, float] = (3.4, 2.4),
    place: tuple[float, float, float, float] = (0.14, 0.17, 0.83, 0.79),
) -> Markup:
    """Returns what `draw` puts on axes as inline SVG in the page's colours; equal charts with the same `salt` are equal byte for byte.

    size: width and height in inches; place: left, bottom, width and height of the axes as shares of them.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": salt}):
        figure = Figure(size)
        axes = figure.add_axes(place)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Markup(_inline(file.getvalue()))


def _inline(text: str) -> str:
    """Adapts matplotlib's SVG to a page in which ids, styles and colours are shared."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    text = re.sub(r'="[^"]*"', lambda value: re.sub(r"(\.\d\d)\d+", r"\1", value[0]), text)  # hundredths of a point
    text = re.sub(r"#0d000(\d)", r"var(--c\1)", text)
    for colour, name in _PAGE.items():
        text = text.replace(colour, name)
    return re.sub(r">\s+<", "><", text)
