"""Prints the table in the terminal from a run's results.json."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from statistics import mean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from clip_ood.class_predictions import HEAD, TEXT, ClassPredictor
from clip_ood.leaks.told import leaks_told
from clip_ood.metrics.intervals import share_told
from clip_ood.process.called import called
from clip_ood.runs.few_images import auroc_cautions
from clip_ood.runs.stream_table import print_stream
from clip_ood.terminal.console import Terminal

MEAN = "mean"
NAME = 24  # letters of an OOD set's name in one line
PLP_WAYS = (
    "Look at data.id.class_names and data.prompts, lower method.plp.min_confidence, or take --method='{zero_shot: {}}'"
)
USELESS = 0.2  # width of an interval above which an AUROC tells little


def print_table(results: dict[str, Any], console: Terminal | None = None) -> None:
    """Prints AUROC / FPR95 in percent, with a line for each detector and a column for each OOD set, whose best AUROC is bold.

    If that is too wide, intervals are left to results.json, then OOD sets move to further tables below: no figure is cut off.
    `results` is the content of results.json.
    """
    console = console or Terminal()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file or a pipe can take long lines
    for setting in dict.fromkeys(row["setting"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["setting"] == setting]
        sets = list(dict.fromkeys(row["ood"] for row in rows))
        title = escape(f"{results['run']}: {results['method']} on {results['encoder']}, {setting}")
        caption = " / FPR95, percent; ID is positive: FPR95 = share of OOD accepted at 95 % of ID"
        table = _table(results, rows, sets, intervals=True)
        if _fits(table, console):
            table.title, table.caption = title, f"AUROC {_spread_name(results)}{caption}"
            console.print(table)
            continue
        while sets:
            number, table = 1, _table(results, rows, sets[:1])
            while number < len(sets) and _fits(wider := _table(results, rows, sets[: number + 1]), console):
                number, table = number + 1, wider
            sets = sets[number:]
            table.title, title = title, None
            table.caption = None if sets else f"AUROC (intervals: results.json){caption}"
            console.print(table)
    if results["rows"] and len(results["seeds"]) > 1:
        console.print(intervals_told(results), highlight=False)
    reasons = [f"Left out: {', '.join(detectors)} ({reason})" for reason, detectors in left_out(results).items()]
    for line in remarks(results) + reasons:
        console.print(line, highlight=False, markup=False)
    print_stream(results.get("stream"), console)


def _fits(table: Table, console: Terminal) -> bool:
    """Says whether no cell need be folded."""
    return console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width


def _table(results: dict[str, Any], rows: list[dict[str, Any]], sets: list[str], intervals: bool = False) -> Table:
    """Returns the rows of some of the OOD sets. Names may be folded, but figures may not."""
    cell = {(row["detector"], row["ood"]): row for row in rows}
    detectors = list(dict.fromkeys(row["detector"] for row in rows))
    table = Table(Column("detector", overflow="fold"), box=SIMPLE_HEAD)
    columns = []
    for name in sets:
        best = max(cell[detector, name]["auroc"] for detector in detectors)
        columns.append([Text.from_markup(_cell(cell[detector, name], best, intervals)) for detector in detectors])
        width = max(each.cell_len for each in columns[-1])
        count = "" if name == MEAN else f"\nn = {cell[detectors[0], name]['n_ood']}"
        table.add_column(
            escape(name) + count, justify="right", overflow="fold", min_width=width, max_width=max(width, NAME)
        )
    if len(results["seeds"]) > 1 and MEAN in sets:
        columns.append([Text(_interval(cell[detector, MEAN])) for detector in detectors])
        table.add_column("mean AUROC,\n95 % interval", justify="right")
    for figure in chain(*columns):
        figure.no_wrap = True
    for detector, *figures in zip(detectors, *columns, strict=True):
        table.add_row(escape(detector), *figures)
    return table


def _spread_name(results: dict[str, Any]) -> str:
    seeds = len(results["seeds"])
    return escape("[its 95 % interval]") if seeds == 1 else f"± its standard deviation over {seeds} seeds"


def intervals_told(results: dict[str, Any]) -> str:
    """Says what the intervals of a run over several seeds are computed from and describe, or why it has none."""
    if (split := results.get("split")) is None:
        return (
            "No 95 % intervals: a seed was run by an earlier version, which did not record how it divided the images "
            f"({called('eval')} --run …/{results['run']} does)"
        )
    return f"95 % intervals over {over_seeds(split, len(results['seeds']))}"


def over_seeds(split: dict[str, Any], seeds: int) -> str:
    """Says in words how 95 % intervals over several seeds are made, and what they describe."""
    if not split["redrawn"]:
        return (
            f"the images (DeLong, on each image's mean over {seeds} seeds): they speak of other images, with the same "
            "trainings; how far these differ, the standard deviation over the seeds tells"
        )
    return (
        f"{seeds} seeds, corrected for splits that overlap (Nadeau and Bengio: t(J − 1) · s · √(1/J + {split['test']}/"
        f"{split['train']}), J = {seeds}): they speak of other draws of this pool of ID images, against the same OOD images"
    )


def _interval(row: dict[str, Any]) -> str:
    ends = row["intervals"].get("auroc")
    return "–" if ends is None else f"{100 * ends[0]:.1f} – {100 * ends[1]:.1f}{_doubt(row)}"


def is_useless(row: dict[str, Any], metric: str = "auroc") -> bool:
    """Says whether a metric's interval is wider than 20 points."""
    low, high = row["intervals"].get(metric, (0, 0))
    return high - low > USELESS


def _doubt(row: dict[str, Any]) -> str:
    return "?" if is_useless(row) else ""


def _cell(row: dict[str, Any], best: float, intervals: bool) -> str:
    low, high = row["intervals"].get("auroc", (None, None))
    std = row.get("std", {}).get("auroc")
    spread = ""
    if intervals and std is not None:
        spread = f" ± {100 * std:.1f}"
    elif intervals and low is not None:
        spread = escape(f" [{100 * low:.1f}, {100 * high:.1f}]{_doubt(row)}")
    auroc = f"{100 * row['auroc']:.1f}"
    return f"{f'[bold]{auroc}[/bold]' if row['auroc'] == best else auroc}{spread} / {100 * row['fpr95']:.1f}"


def _choice(head: dict[str, Any]) -> str:
    told = ("seed", "lr", "weight_decay", "min_confidence")
    settings = ", ".join(f"{key} {head[key]:g}" for key in told if key in head)
    return f"Chosen of the sweep on ID val: {settings} (hits {100 * head['val_accuracy']:.1f} %; all heads: sweep.csv)"


def of_seeds(number: int, results: dict[str, Any]) -> str | None:
    """Says how many of the run's seeds have a thing, if not all do."""
    return f"{number} of {len(results['seeds'])} seeds" if number < len(results["seeds"]) else None


def missing_seeds(results: dict[str, Any]) -> dict[str, str]:
    """Returns the detectors that some seeds of the run lack, and how many seeds have them."""
    numbers = {row["detector"]: row.get("seeds", len(results["seeds"])) for row in results["rows"]}
    return {name: few for name, number in numbers.items() if (few := of_seeds(number, results))}


def remarks(results: dict[str, Any]) -> list[str]:
    """Returns what must be said beside the table: useless intervals, accuracies, pseudo-labels, the sweep's choice, the bank,
    copies, notes.
    """
    lines = [f"{name}: {few}" for name, few in missing_seeds(results).items()]
    if not results["rows"]:
        lines.append("No OOD set was named (data.ood): scores were written, there is no AUROC.")
    lines += _of_intervals(results["rows"]) + _of_thresholds(results)
    for key, name in (("accuracy", "ID accuracy"), ("knn_accuracy", "k-NN accuracy")):
        if results[key] is not None:
            few = of_seeds(results.get(f"{key}_seeds", len(results["seeds"])), results)
            lines.append(f"{name} {100 * results[key]:.1f} %" + (f" ({few})" if few else ""))
    lines += calibration_errors_told(results.get("joint"))
    if (pseudo := results["pseudo_labels"]) is not None:
        right = "" if pseudo["accuracy"] is None else f", {100 * pseudo['accuracy']:.1f} % of them right"
        lines.append(f"Pseudo-labels: {pseudo['passed']:,} of {pseudo['images']:,} images passed the filter{right}")
    lines += [_choice(head) for head in results["sweep"] or [] if head["chosen"]]
    lines += predictions_told(results)
    bank = results["bank"]
    sample = f", at most {bank['per_class']} a class" if bank["per_class"] else ""
    lines.append(f"Bank: {bank['images']} ID training images{sample}")
    lines += leaks_told(results)
    return lines + [f"{each['detector']}: {told(each, 'note')}" for each in results["notes"]]


def calibration_errors_told(joint: dict[str, Any] | None) -> list[str]:
    """Says how far the probabilities of the head and of the texts are from how often they are right.

    >>> calibration_errors_told({"calibration_errors": [{"by": "head", "value": 0.14, "n": 46, "bins": 15}]})
    ['Calibration error of the head 14.0 % (46 ID test images in 15 bins; no interval)']
    """
    errors = joint["calibration_errors"] if joint else []
    if not errors:
        return []
    told = ", ".join(
        f"of {'the head' if each['by'] == HEAD else 'the texts'} {100 * each['value']:.1f} %" for each in errors
    )
    n, bins = errors[0]["n"], errors[0]["bins"]
    return [f"Calibration error {told} ({n:,} ID test image{'' if n == 1 else 's'} in {bins} bins; no interval)"]


def predictions_told(results: dict[str, Any]) -> list[str]:
    """Says, for one seed, what detect.py predicts classes by, and whether pseudo-label probing went wrong.

    PLP is judged by ID val if it has labels, otherwise by the images that the classes are learnt from.
    """
    told = results.get("predictor")
    predictors = told if isinstance(told, list) else [told] if told else []
    lines, several = [], len(results["seeds"]) > 1
    if len(predictors) == 1 and len(predictors[0]["accuracy"]) > 1:
        found = {key: predictors[0][key] for key in ("by", "accuracy", "images")}
        lines.append(f"predicted_class of new images is by {ClassPredictor(**found).told()}")
    if results["method"] != "plp":
        return lines
    worse = [each for each in predictors if each["accuracy"][HEAD] < each["accuracy"][TEXT]]
    if worse:
        head, text = (mean(each["accuracy"][by] for each in worse) for by in (HEAD, TEXT))
        lines.append(
            f"PLP went wrong{f' in {len(worse)} of {len(predictors)} seeds' if several else ''}: of ID val its head predicts "
            f"{100 * head:.1f} % right, zero-shot {100 * text:.1f} %. {PLP_WAYS}"
        )
    starved = (results["pseudo_labels"] or {}).get("starved")
    if starved and not predictors:
        lines.append(f"PLP kept fewer than 2 images of {starved:g} classes, which its head cannot learn. {PLP_WAYS}")
    return lines


def _of_intervals(rows: list[dict[str, Any]]) -> list[str]:
    """Says which AUROCs have a useless interval, and which sets can have none."""
    lines = []
    having = [row for row in rows if "auroc" in row["intervals"]]
    if useless := [row for row in having if is_useless(row)]:
        lines.append(
            f"{len(useless)} of {len(having)} AUROCs have a useless 95 % interval (marked where intervals are shown): wider than "
            f"{100 * USELESS:.0f} points, it tells little; more images make it narrower"
        )
    without = [row for row in rows if "auroc" not in row["intervals"]]
    if any(row["n_id"] == 1 for row in without):
        lines.append("There is a single ID test image: no AUROC has an interval")
    sizes = {row["ood"]: (row["ood"], row["n_id"], row["n_ood"]) for row in reversed(rows) if row["ood"] != MEAN}
    lines += auroc_cautions(reversed(sizes.values()))
    alone = dict.fromkeys(row["ood"] for row in without if row["n_ood"] == 1 and row["ood"] != MEAN)
    lines += [f"{name} has a single image: its AUROC has no interval, and neither has a mean with it" for name in alone]
    return lines


def _of_thresholds(results: dict[str, Any]) -> list[str]:
    """Says, for one seed, how many images of each OOD set the threshold of the default detector flags."""
    stated = results.get("calibration")
    flagged = stated.get("flagged", {}).get(stated["default"], {}) if isinstance(stated, dict) else {}
    if not flagged:
        return []
    sizes = {row["ood"]: row["n_ood"] for row in results["rows"]}
    told = [f"{name} {share_told(count, sizes[name])}" for name, count in flagged.items()]
    accept = f"{100 * stated['accept']:g} %"
    return [f"At the threshold that accepts {accept} of new ID images, {stated['default']} flags: {'; '.join(told)}"]


def left_out(results: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the reasons why detectors are not in the table, and for which; for several seeds also in which, unless in all."""
    why: dict[str, list[str]] = defaultdict(list)
    for each in results["omitted"]:
        why[told(each, "reason")].append(each["detector"])
    return dict(why)


def told(each: dict[str, Any], key: str) -> str:
    """Returns a note or a reason, with the seeds that have it if others do not."""
    seeds = each.get("seeds")
    return each[key] + (f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})" if seeds else "")
