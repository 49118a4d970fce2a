"""Draws the figure of a study."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip_ood.experiments.study.expected import Compared
from clip_ood.experiments.study.fit import least_squares
from clip_ood.experiments.study.plan import Plan
from clip_ood.experiments.study.values import means
from clip_ood.files.writing import written_whole
from clip_ood.metrics.ood import MEAN

Row = dict[str, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
MARKERS = "osD^vP*"


def write_figure(path: Path, plan: Plan, rows: list[Any]) -> None:
    """Draws what the study shows as a PNG."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = DRAW[plan.study.shows](plan, rows)
        figure.suptitle(plan.study.title or plan.study.name, fontsize=10)
        with written_whole(path) as file:
            figure.savefig(file, dpi=160)


def _results(plan: Plan, rows: list[Row]) -> Figure:
    """Draws mean AUROC, with a dot for each line and a row for each axis label."""
    rows = means(rows)
    places = list(dict.fromkeys(_place(plan, row) for row in rows))
    lines = _lines(rows)
    if len(lines) > len(MARKERS):
        return _many_results(plan, rows, places, lines)
    figure = Figure((7.2, 1.4 + len(places) * (0.2 + 0.1 * len(lines))), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(lines):
        beside = 0.7 * ((number + 0.5) / len(lines) - 0.5)
        of_line = [row for row in rows if row["line"] == name]
        axes.errorbar(
            [100 * row["auroc"] for row in of_line],
            [places.index(_place(plan, row)) + beside for row in of_line],
            xerr=_errors(of_line),
            linestyle="none",
            **_style(number),
            label=name,
        )
    axes.set(yticks=range(len(places)), yticklabels=places, xlabel=_mean_auroc(rows))
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    _legend(figure)
    return figure


def _many_results(plan: Plan, rows: list[Row], places: list[str], lines: list[str]) -> Figure:
    """Draws mean AUROC with a row for each line, of which there are too many for a mark each, and a mark for each axis label."""
    figure = Figure((7.2, 1.2 + 0.2 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for number, place in enumerate(places):
        there = [row for row in rows if _place(plan, row) == place]
        axes.errorbar(
            [100 * row["auroc"] for row in there],
            [lines.index(row["line"]) for row in there],
            xerr=_errors(there),
            **(_style(number) | {"linestyle": "none"}),
            label=place,
        )
    axes.set(yticks=range(len(lines)), yticklabels=lines, ylim=(len(lines) - 0.5, -0.5), xlabel=_mean_auroc(rows))
    axes.grid(alpha=0.3)
    if len(places) > 1:
        _legend(figure)
    return figure


def _scatter(plan: Plan, rows: list[Row]) -> Figure:
    """Draws mean AUROC over ID k-NN accuracy, with a point for each encoder and the line through them."""
    rows, axis = means(rows), next(iter(plan.study.axes))
    figure = Figure((6.4, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="ID k-NN accuracy (%)", ylabel="mean AUROC over the OOD sets (%)")
    for number, name in enumerate(_lines(rows)):
        of_line = [row for row in rows if row["line"] == name]
        x, y = [100 * row["knn_accuracy"] for row in of_line], [100 * row["auroc"] for row in of_line]
        fit = least_squares(x, y)
        label = f"{name} (n = {len(x)}" + (f", R² = {fit.r2:.2f})" if fit else ")")
        axes.plot(x, y, linestyle="none", **_style(number), label=label)
        if fit:
            ends = [min(x), max(x)]
            axes.plot(ends, [fit.intercept + fit.slope * end for end in ends], color=COLOURS[number], alpha=0.4)
    for label, row in {row[axis]: row for row in rows}.items():
        axes.annotate(
            label, (100 * row["knn_accuracy"], 100 * row["auroc"]), (4, 4), textcoords="offset points", fontsize=7
        )
    axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def _curve(plan: Plan, rows: list[Row]) -> Figure:
    """Draws mean AUROC over the axis and, if there are pseudo-labels, the share that passes and the share of those that is right."""
    rows, axis = means(rows), next(iter(plan.study.axes))
    labels = list(dict.fromkeys(row[axis] for row in rows if row[axis] is not None))
    with_labels = [row for row in rows if row["labels_passed"] is not None and row[axis] is not None]
    told = len({row["labels_passed"] for row in with_labels}) > 1
    figure = Figure((9.6 if told else 6.0, 3.8), layout="constrained")
    axes = figure.add_subplot(1, 2 if told else 1, 1, xlabel=axis, ylabel=_mean_auroc(rows))
    for number, name in enumerate(_lines(rows)):
        of_line = [row for row in rows if row["line"] == name]
        if of_line[0][axis] is None:
            axes.axhline(100 * of_line[0]["auroc"], color=COLOURS[number], linestyle="--", label=name)
            continue
        axes.errorbar(
            [labels.index(row[axis]) for row in of_line],
            [100 * row["auroc"] for row in of_line],
            yerr=_errors(of_line),
            **_style(number),
            label=name,
        )
    axes.set(xticks=range(len(labels)), xticklabels=labels)
    axes.grid(alpha=0.3)
    if told:
        _pseudo_labels(figure.add_subplot(1, 2, 2, xlabel=axis, ylabel="%"), axis, labels, with_labels)
    _legend(figure)
    return figure


def _pseudo_labels(axes: Axes, axis: str, labels: list[str], rows: list[Row]) -> None:
    of_label = {row[axis]: row for row in rows}
    at = [place for place, label in enumerate(labels) if label in of_label]
    for number, (key, name) in enumerate({"labels_passed": "labels passed", "labels_right": "of them right"}.items()):
        shares = [of_label[labels[place]][key] for place in at]
        if None not in shares:
            axes.plot(at, [100 * share for share in shares], **_style(number + 4), label=name)
    axes.set(xticks=range(len(labels)), xticklabels=labels, ylim=(0, 103))
    axes.grid(alpha=0.3)


def _shift(plan: Plan, rows: list[Row]) -> Figure:
    """Draws a panel for each corruption: detection rate of each line and accuracy over severity; 0 is the clean images."""
    corruptions, severities = plan.study.corruptions, plan.study.severities
    found = {(row["ood"], row["line"]): row for row in rows}
    columns = min(4, len(corruptions))
    down = -(-len(corruptions) // columns)
    figure = Figure((2.6 * columns, 2.3 * down + 0.6), layout="constrained")
    for place, corruption in enumerate(corruptions):
        axes = figure.add_subplot(down, columns, place + 1, title=corruption.replace("_", " "), ylim=(0, 103))
        for number, name in enumerate(_lines(rows)):
            of_line = [found[f"{corruption}-{severity}", name] for severity in severities]
            rates = [5.0, *(100 * (1 - row["fpr95"]) for row in of_line)]
            axes.plot([0, *severities], rates, **_style(number), label=name if not place else None)
        if accuracies := _accuracies(found, corruption, plan):
            axes.plot([0, *severities], accuracies, color="grey", linestyle=":", label=None if place else "accuracy")
        axes.set_xticks([0, *severities])
        axes.set_xlabel("severity" if place >= len(corruptions) - columns else "")
        axes.grid(alpha=0.3)
    figure.supylabel("detected, accurate (%)", fontsize=9)
    _legend(figure)
    return figure


def _accuracies(found: dict[tuple[str, str], Row], corruption: str, plan: Plan) -> list[float]:
    """Returns accuracies in percent, on the clean images and at each severity, by the first line whose run predicts classes.

    The list is empty if no run does.
    """
    for name in _lines(list(found.values())):
        sets = [MEAN, *(f"{corruption}-{severity}" for severity in plan.study.severities)]
        shares = [found[ood, name]["accuracy"] for ood in sets]
        if None not in shares:
            return [100 * share for share in shares]
    return []


def _expected(plan: Plan, found: list[Compared]) -> Figure:
    """Draws a row for each expected number that is obtained here: a hollow mark for it, and a dot with its interval for the obtained one."""
    here = [each for each in found if each.obtained is not None]
    figure = Figure((7.2, 1.2 + 0.22 * len(here)), layout="constrained")
    axes = figure.add_subplot(xlabel="percent")
    places = list(range(len(here)))
    for place, each in enumerate(here):
        if each.low is not None:
            axes.plot([each.low, each.high], [place, place], color=COLOURS[0], alpha=0.35, linewidth=3)
    axes.plot(
        [each.obtained for each in here],
        places,
        linestyle="none",
        **_style(0),
        label="obtained, with its 95 % interval",
    )
    hollow = {"marker": "D", "markersize": 6, "markerfacecolor": "none", "color": COLOURS[1]}
    axes.plot([each.expected for each in here], places, linestyle="none", label="expected", **hollow)
    names = [" · ".join(filter(None, (each.place, each.line, each.ood, each.metric))) for each in here]
    axes.set(yticks=places, yticklabels=names, ylim=(len(here) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    _legend(figure)
    return figure


DRAW: dict[str, Callable[[Plan, list[Any]], Figure]] = {
    "table": _results,
    "scatter": _scatter,
    "curve": _curve,
    "shift": _shift,
    "expected": _expected,
}


def _lines(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["line"] for row in rows))


def _place(plan: Plan, row: Row) -> str:
    return " · ".join(row[axis] for axis in plan.study.axes if row[axis] is not None)


def _mean_auroc(rows: list[Row]) -> str:
    """Returns the label of an axis with error bars."""
    spread = ",\nbars: standard deviation over seeds" if _errors(rows) else ""
    return f"mean AUROC over the OOD sets (%){spread}"


def _errors(rows: list[Row]) -> list[float] | None:
    """Returns standard deviations over seeds, in percent, or None if no row has one."""
    found = [row["auroc_std"] for row in rows]
    return [math.nan if std is None else 100 * std for std in found] if any(std is not None for std in found) else None


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}


def _legend(figure: Figure) -> None:
    columns = 4 if figure.get_figwidth() < 8 else 8
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
