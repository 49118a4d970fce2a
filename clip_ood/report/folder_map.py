"""Draws a map of a folder's images, on which the most suspect ones and the groups that lie apart are marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from clip_ood.report.charts import COLOURS, colour, svg

POINTS = 3_000  # at most, of the images of a group, and of those in none
COLOURED = COLOURS - 2  # groups
SIZE, AXES = (7.2, 4.3), (0.01, 0.02, 0.98, 0.96)


def folder_map(points: np.ndarray, groups: Sequence[Sequence[int]], suspects: Sequence[int]) -> Markup | None:
    """Draws images at points (N, 2) as inline SVG in the page's colours, light or dark; None if a point is not known.

    Groups are the places of their images, the group that lies farthest apart first: COLOURED of them have a colour each, from 2 on, and
    their number beside them. Images at the places `suspects` are drawn as rings. Of more than POINTS images of a group, or of all
    others, as many are shown, evenly drawn.
    """
    if not len(points) or np.isnan(points).any():
        return None
    x, y = points.T
    marked = [np.asarray(each, int) for each in groups[:COLOURED]]
    others = np.setdiff1d(np.arange(len(x)), np.concatenate([np.asarray(suspects, int), *marked]))

    def draw(axes: Axes) -> None:
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_axis_off()
        dots = {"linestyle": "none", "marker": "o", "markeredgewidth": 0}
        some = _some(others)
        axes.plot(x[some], y[some], color=colour(0), markersize=3.6, alpha=0.45, **dots)
        for number, images in enumerate(marked, start=2):
            some = _some(images)
            axes.plot(x[some], y[some], color=colour(number), markersize=4.6, alpha=0.9, **dots)
        axes.plot(x[suspects], y[suspects], "o", color=colour(1), markersize=7.5, fillstyle="none", markeredgewidth=1.2)
        axes.plot(x[suspects], y[suspects], color=colour(1), markersize=2.6, **dots)
        for number, images in enumerate(marked, start=1):
            top = images[y[images].argmax()]
            beside = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 9}
            axes.annotate(f"group {number}", (x[images].mean(), y[top]), color=colour(number + 1), **beside)
        axes.margins(0.04)

    return svg(draw, "folder map", SIZE, AXES)


def _some(places: np.ndarray) -> np.ndarray:
    return places[np.unique(np.linspace(0, len(places) - 1, min(len(places), POINTS)).round().astype(int))]
