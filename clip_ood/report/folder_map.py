"""Draws a map of a folder's images, on which the most suspect ones and the groups that lie apart are marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from clip_ood.features.rows import Rows
from clip_ood.folder.groups import Group
from clip_ood.folder.principal import plane
from clip_ood.report.charts import COLOURS, colour, svg

POINTS = 3_000  # at most, of images that are neither suspect nor in a group that is marked


def folder_map(features: Rows, suspects: np.ndarray, groups: Sequence[Group]) -> Markup:
    """Draws the images (N, D) by their first two principal components as inline SVG, in the page's colours, light or dark.

    Images at the places `suspects` (m,) are drawn as rings, and those of the first COLOURS − 2 groups in a colour each, 2 for the group that lies
    farthest apart. Of more than POINTS other images, as many are shown, evenly drawn. Images that lie apart in other directions than
    these two may lie among the others on the map.
    """
    x, y = plane(features).numpy().T
    marked = [each.images for each in groups[: COLOURS - 2]]
    others = np.setdiff1d(np.arange(len(x)), np.concatenate([np.empty(0, int), *marked]))
    others = others[np.unique(np.linspace(0, len(others) - 1, min(len(others), POINTS)).round().astype(int))]

    def draw(axes: Axes) -> None:
        axes.plot(x[others], y[others], "o", color=colour(0), markersize=2.2, markeredgewidth=0, alpha=0.5)
        for number, images in enumerate(marked, start=2):
            axes.plot(x[images], y[images], "o", color=colour(number), markersize=3.2, markeredgewidth=0)
        axes.plot(x[suspects], y[suspects], "o", color=colour(1), fillstyle="none", markersize=6, markeredgewidth=0.8)
        axes.set(xticks=[], yticks=[], xlabel="1st principal component", ylabel="2nd principal component")

    return svg(draw, "folder map")
