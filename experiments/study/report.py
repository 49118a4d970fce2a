"""Writes the Markdown table of a study."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from clip_ood.experiments.study.expected import Compared
from clip_ood.experiments.study.fit import least_squares
from clip_ood.experiments.study.plan import Plan
from clip_ood.experiments.study.values import means
from clip_ood.metrics.ood import MEAN
from clip_ood.terminal.markdown import markdown_table

Row = dict[str, Any]
CAPTION = (
    "AUROC / FPR95 in percent; ID is positive: FPR95 = share of OOD accepted at 95 % of ID. Mean: over the OOD sets."
)


def markdown(plan: Plan, rows: list[Any], over: dict[int, str], remarks: list[str]) -> str:
    """Returns title, table, caption (with what the intervals of this many seeds are computed from), what is missing and why, and
    the figure.
    """
    table, caption = TABLES[plan.study.shows](plan, rows)
    title, name = plan.study.title or plan.study.name, plan.study.name
    said = [caption]
    if over:
        spread = "" if plan.study.shows == "shift" else " ± standard deviation"
        said.append(f"Mean{spread} over {' or '.join(map(str, over))} seeds.")
    if over and plan.study.shows != "shift":
        said += [f"{told}." for told in dict.fromkeys(over.values())]
        said.append(f"All AUROCs with their intervals: {name}.csv; differences: eval.py --compare.")
    return "\n\n".join([f"# {title}", table, " ".join(said), *remarks, f"![{title}]({quote(name)}.png)"]) + "\n"


def _results(plan: Plan, rows: list[Row]) -> tuple[str, str]:
    """Returns a table with a row for each axis label and line, a column for each OOD set, and each column's best AUROC in bold."""
    sets = dict.fromkeys(row["ood"] for row in rows if row["ood"] != MEAN) | {MEAN: None}
    counts = {row["ood"]: row["n_ood"] for row in rows}
    best = {ood: max(round(100 * row["auroc"], 1) for row in rows if row["ood"] == ood) for ood in sets}
    several = any(row["auroc_std"] is not None for row in rows)
    interval = ["95 % interval of the mean"] if several else []
    header = [*plan.study.axes, "score", *(_counted(ood, counts) for ood in sets), *interval, "accuracy"]
    lines = []
    for key, found in _grouped(rows, lambda row: (*(row[axis] for axis in plan.study.axes), row["line"])):
        of_set = {row["ood"]: row for row in found}
        cells = [_result(of_set[ood], best[ood]) if ood in of_set else "" for ood in sets]
        cells += [_interval(of_set[MEAN])] if several else []
        lines.append([*(label or "" for label in key), *cells, _percent(found[0]["accuracy"])])
    return markdown_table(header, lines, len(plan.study.axes) + 1), CAPTION


def _scatter(plan: Plan, rows: list[Row]) -> tuple[str, str]:
    axis = next(iter(plan.study.axes))
    header = [axis, "score", "ID k-NN accuracy", "mean AUROC"]
    lines = [[row[axis], row["line"], _percent(row["knn_accuracy"]), _spread(row)] for row in means(rows)]
    fits = []
    for line, found in _grouped(means(rows), lambda row: row["line"]):
        fit = least_squares([row["knn_accuracy"] for row in found], [row["auroc"] for row in found])
        told = f"R² = {fit.r2:.2f}" if fit else "too few for an R², which takes 5"
        fits.append(f"{line}: n = {len(found)}, {told}.")
    return markdown_table(header, lines, 2), " ".join(["Percent.", *fits])


def _curve(plan: Plan, rows: list[Row]) -> tuple[str, str]:
    axis = next(iter(plan.study.axes))
    names = list(dict.fromkeys(row["line"] for row in rows))
    found = {(row[axis], row["line"]): row for row in means(rows)}
    labels = list(dict.fromkeys(row[axis] for row in rows if row[axis] is not None))
    facts = {
        "labels passed": lambda row: _percent(row["labels_passed"]),
        "of them right": lambda row: _percent(row["labels_right"]),
        "labels a class": lambda row: (
            "" if row["most_labels"] is None else _range(row["fewest_labels"], row["most_labels"])
        ),
    }
    of_label = {label: [row for (at, _), row in found.items() if at == label] for label in labels}
    told = {
        name: [next(filter(None, map(tell, of_label[label])), "") for label in labels] for name, tell in facts.items()
    }
    told = {name: cells for name, cells in told.items() if any(cells) and (len(cells) == 1 or len(set(cells)) > 1)}
    lines = [
        [label, *(_spread(found.get((label, name)) or found.get((None, name))) for name in names)]
        + [cells[place] for cells in told.values()]
        for place, label in enumerate(labels)
    ]
    return markdown_table([axis, *names, *told], lines, 1), "Mean AUROC over the OOD sets, percent."


def _shift(plan: Plan, rows: list[Row]) -> tuple[str, str]:
    names = list(dict.fromkeys(row["line"] for row in rows))
    found = {(row["ood"], row["line"]): row for row in rows}
    lines = []
    clean = next((row["accuracy"] for row in means(rows)), None)
    lines.append(["none", "0", *(["5.0"] * len(names)), _percent(clean)])
    for corruption in plan.study.corruptions:
        for severity in plan.study.severities:
            of_line = [found[f"{corruption}-{severity}", name] for name in names]
            accuracy = next((row["accuracy"] for row in of_line if row["accuracy"] is not None), None)
            lines.append(
                [corruption, str(severity), *(_percent(1 - row["fpr95"]) for row in of_line), _percent(accuracy)]
            )
    caption = (
        "Share of corrupted ID test images that a score detects at the threshold that accepts 95 % of the clean ones, and "
        "accuracy on them, in percent."
    )
    return markdown_table(["corruption", "severity", *names, "accuracy"], lines, 2), caption


def _expected(plan: Plan, found: list[Compared]) -> tuple[str, str]:
    """Returns a table with a row for each expected number, and a list of its sources below."""
    sources = list(dict.fromkeys((each.source, each.convention) for each in found))
    header = [*plan.study.axes, "score", "OOD set", "metric", "expected", "obtained", "difference", "source"]
    lines = []
    for each in found:
        interval = "" if each.low is None else f" [{each.low:.1f}, {each.high:.1f}]"
        obtained = "not here" if each.obtained is None else f"{each.obtained:.2f}{interval}"
        difference = "" if each.obtained is None else f"{each.difference:+.2f}{' missed' if each.is_missed else ''}"
        place = sources.index((each.source, each.convention)) + 1
        cells = [f"{each.expected:.2f}", obtained, difference, str(place)]
        lines.append(
            [*(each.labels.get(axis, "") for axis in plan.study.axes), each.line, each.ood, each.metric, *cells]
        )
    here = [each for each in found if each.obtained is not None]
    bound = [each for each in here if each.within is not None]
    caption = (
        f"Percent, differences in points; ID is positive. {len(here)} of {len(found)} expected numbers are obtained here"
        + (f", {sum(each.is_missed for each in bound)} of {len(bound)} with a tolerance are missed" if bound else "")
        + ". An interval (95 %) says how the number varies over other images; the same images should give a number much closer than that."
    )
    listed = "\n".join(
        f"{number}. {source}{f': {convention}' if convention else ''}"
        for number, (source, convention) in enumerate(sources, start=1)
    )
    return f"{markdown_table(header, lines, len(plan.study.axes) + 2)}\n\n{listed}", caption


TABLES: dict[str, Callable[[Plan, list[Any]], tuple[str, str]]] = {
    "table": _results,
    "scatter": _scatter,
    "curve": _curve,
    "shift": _shift,
    "expected": _expected,
}


def _grouped(rows: list[Row], key: Callable[[Row], Any]) -> Iterable[tuple[Any, list[Row]]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups.items()


def _counted(ood: str, counts: dict[str, int]) -> str:
    return ood if ood == MEAN else f"{ood} (n = {counts[ood]:,})"


def _result(row: Row, best: float) -> str:
    auroc = _spread(row)
    return f"{f'**{auroc}**' if round(100 * row['auroc'], 1) == best else auroc} / {100 * row['fpr95']:.1f}"


def _spread(row: Row | None) -> str:
    if row is None:
        return "—"
    return f"{100 * row['auroc']:.1f}" + (f" ± {100 * row['auroc_std']:.1f}" if row["auroc_std"] is not None else "")


def _interval(row: Row) -> str:
    return "" if row["auroc_low"] is None else f"{100 * row['auroc_low']:.1f} – {100 * row['auroc_high']:.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _range(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest}–{most}"
