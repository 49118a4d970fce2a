"""Draws score histograms and ROC / PR curves as figures for loggers, under the same tags in every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from clip_ood.metrics.curves import pr_curve, roc_curve
from clip_ood.runs.scores import ScoredSet

POINTS = 500  # in a drawn curve
DPI = 110
PLAIN = {"text.parse_math": False}  # a $ in the name of a set begins no formula
ID_COLOUR, OOD_COLOUR = "#0072B2", "#D55E00"  # colour-blind readers can distinguish them too


def figures(sets: Sequence[ScoredSet]) -> Iterator[tuple[str, Figure]]:
    """Yields a histogram figure and a curve figure for each OOD set that a run was scored on, with the tag of each."""
    id_scores = next(each.scores for each in sets if each.role == "id")
    for each in sets:
        if each.role == "ood":
            yield f"ood/{each.name}/histograms", histograms(id_scores, each.scores, each.name)
            yield f"ood/{each.name}/curves", curves(id_scores, each.scores, each.name)


@matplotlib.rc_context(PLAIN)
def histograms(id_scores: Mapping[str, np.ndarray], ood_scores: Mapping[str, np.ndarray], name: str) -> Figure:
    """Draws a panel for each detector with the densities of ID and OOD scores."""
    columns = min(3, len(id_scores))
    rows = -(-len(id_scores) // columns)
    width, height = 3.6 * columns, 2.3 * rows  # inches
    figure = Figure((width, height), dpi=DPI)
    edges = {"left": 0.2 / width, "right": 1 - 0.2 / width, "bottom": 0.3 / height, "top": 1 - 0.35 / height}
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False, gridspec_kw=edges | {"wspace": 0.1, "hspace": 0.4}))
    for axis in axes[len(id_scores) :]:
        axis.set_visible(False)
    for axis, detector in zip(axes, id_scores, strict=False):
        inside, outside = id_scores[detector], ood_scores[detector]
        bins = bin_edges([inside, outside])
        for scores, colour, label in ((inside, ID_COLOUR, "ID test"), (outside, OOD_COLOUR, name)):
            density, _ = np.histogram(scores, bins, density=True)
            axis.stairs(density, bins, fill=True, alpha=0.6, color=colour, label=label)
        axis.set_title(detector, fontsize=10)
        axis.set_yticks([])
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    return figure


@matplotlib.rc_context(PLAIN)
def curves(id_scores: Mapping[str, np.ndarray], ood_scores: Mapping[str, np.ndarray], name: str) -> Figure:
    """Draws ROC and precision-recall curves of all detectors; ID is positive."""
    figure = Figure((10, 4.6), layout="constrained", dpi=DPI)
    roc, pr = figure.subplots(1, 2)
    colours = matplotlib.colormaps["tab10"].colors
    for number, detector in enumerate(id_scores):
        inside, outside = (torch.from_numpy(scores[detector]) for scores in (id_scores, ood_scores))
        line = {"color": colours[number % 10], "linewidth": 1.4, "linestyle": "-" if number < 10 else "--"}
        roc.plot(*thin(*roc_curve(inside, outside), POINTS), label=detector, **line)
        pr.plot(*thin(*pr_curve(inside, outside), POINTS), **line)
    roc.axhline(0.95, color="grey", linewidth=0.7, linestyle=":")
    roc.set(xlabel="OOD accepted (FPR)", ylabel="ID accepted (TPR)", title=f"ROC, ID against {name}")
    pr.set(xlabel="recall of ID", ylabel="precision of ID", title="precision and recall")
    roc.legend(fontsize=7, loc="lower right")
    return figure


def bin_edges(scores: list[np.ndarray]) -> np.ndarray:
    """Returns (31,) edges of histogram bins over the range that holds 99 % of every set of scores."""
    ends = np.array([np.quantile(each, [0.005, 0.995]) for each in scores], dtype=np.float64)
    low, high = ends[:, 0].min(), ends[:, 1].max()
    return np.linspace(low, high, 31) if low < high else np.linspace(low - 0.5, high + 0.5, 31)


def thin(x: Tensor, y: Tensor, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most this many points of a curve, including its ends."""
    keep = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
    return x.cpu().numpy()[keep], y.cpu().numpy()[keep]
