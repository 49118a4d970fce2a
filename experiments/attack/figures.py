"""The pictures of an attack: images with their perturbations and targets, and AUROC over steps and smoothness."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from clip_ood.experiments.study.figures import COLOURS, MARKERS

SHOWN = ("knn", "mcm", "msp", "energy", "rmd", "vim")  # of a curve; all are in the table
Curve = dict[str, list[tuple[float, float]]]


def gallery(
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    targets: Sequence[Image.Image | str],
    said: Sequence[str],
) -> Figure:
    """A column a pair: OOD image, perturbation (scaled to the full range around grey), result, target; `said` under each."""
    rows = 3 + bool(targets)
    figure = Figure((1.55 * len(before) + 0.5, 1.62 * rows + 0.35), layout="constrained", dpi=160)
    axes = figure.subplots(rows, len(before), squeeze=False)
    for column, (first, second) in enumerate(zip(before, after, strict=True)):
        p = np.asarray(second, np.float32) - np.asarray(first, np.float32)
        most = max(float(np.abs(p).max()), 1.0)
        scaled = Image.fromarray((127.5 + 127.5 * p / most).round().astype(np.uint8))
        shown = [first, scaled, second, *([targets[column]] if targets else [])]
        for row, picture in enumerate(shown):
            axis = axes[row][column]
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if isinstance(picture, str):
                axis.text(0.5, 0.5, picture, ha="center", va="center", fontsize=9, wrap=True)
            else:
                axis.imshow(picture)
        axes[1][column].set_xlabel(f"× {127.5 / most:.0f}", fontsize=7, labelpad=1)
        axes[2][column].set_xlabel(said[column], fontsize=7, labelpad=1)
    for row, name in enumerate(("OOD image", "perturbation", "result", "target")[:rows]):
        axes[row][0].set_ylabel(name, fontsize=8)
    return figure


def curves(over_steps: Curve, over_smoothness: Curve, pairs: int) -> Figure:
    """AUROC over the steps of the attack, and over λ."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        drawn = [(over_steps, "steps"), (over_smoothness, "smoothness λ")]
        figure = Figure((7.4, 3.3), layout="constrained", dpi=160)
        panels = figure.subplots(1, 2, sharey=True)
        for axis, (curve, label) in zip(panels, drawn, strict=True):
            named = [name for name in SHOWN if name in curve] or list(curve)[: len(SHOWN)]
            for number, name in enumerate(named):
                x, y = zip(*curve[name], strict=True)
                style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4, "linewidth": 1.3}
                axis.plot(x, [100 * value for value in y], label=name, **style)
            axis.axhline(50, color="grey", linewidth=0.7, linestyle=":")
            axis.set_xscale("symlog", linthresh=10 if label == "steps" else 100)
            axis.set_xlim(left=0)
            axis.set(xlabel=label, ylim=(-2, 102))
            axis.grid(axis="y", alpha=0.3)
            axis.set_xticks(sorted({x for points in curve.values() for x, _ in points}))
            axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axis.minorticks_off()
        panels[0].set_ylabel(f"AUROC of {pairs} images (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    return figure
