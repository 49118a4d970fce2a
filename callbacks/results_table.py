"""The table in the terminal, from a run's results.json."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

MEAN = "mean"


def print_table(results: dict[str, Any], console: Console | None = None) -> None:
    """AUROC / FPR95 in percent: a line a detector, a column an OOD set, the best AUROC of a column in bold.

    `results` is the content of results.json.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file or a pipe takes long lines
    for setting in dict.fromkeys(row["setting"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["setting"] == setting]
        table = _table(results, setting, rows, intervals=True)
        narrow = console.measure(table, options=console.options.update(max_width=1000)).maximum > console.width
        console.print(_table(results, setting, rows, intervals=False) if narrow else table)
    reasons = [f"Left out: {', '.join(detectors)} ({reason})" for reason, detectors in left_out(results).items()]
    for line in remarks(results) + reasons:
        console.print(line, highlight=False)


def _table(results: dict[str, Any], setting: str, rows: list[dict[str, Any]], intervals: bool) -> Table:
    sets = dict.fromkeys(row["ood"] for row in rows)
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{results['run']}: {results['method']} on {results['encoder']}, {setting}",
        caption=(f"AUROC ± {_spread_name(results)}" if intervals else "AUROC (intervals: results.json)")
        + " / FPR95, percent; ID is positive: FPR95 = share of OOD accepted at 95 % of ID",
    )
    table.add_column("detector", no_wrap=True)
    cell = {(row["detector"], row["ood"]): row for row in rows}
    detectors = list(dict.fromkeys(row["detector"] for row in rows))
    for name in sets:
        count = "" if name == MEAN else f"\nn = {cell[detectors[0], name]['n_ood']}"
        table.add_column(name + count, justify="right", no_wrap=True)
    best = {name: max(cell[detector, name]["auroc"] for detector in detectors) for name in sets}
    for detector in detectors:
        table.add_row(detector, *(_cell(cell[detector, name], best[name], intervals) for name in sets))
    return table


def _spread_name(results: dict[str, Any]) -> str:
    seeds = len(results["seeds"])
    return "half its 95 % interval" if seeds == 1 else f"its standard deviation over {seeds} seeds"


def _cell(row: dict[str, Any], best: float, intervals: bool) -> str:
    low, high = row["intervals"].get("auroc", (None, None))
    half = 50 * (high - low) if low is not None else 100 * row["std"]["auroc"] if "std" in row else None
    spread = f" ± {half:.1f}" if intervals and half is not None else ""
    auroc = f"{100 * row['auroc']:.1f}"
    return f"{f'[bold]{auroc}[/bold]' if row['auroc'] == best else auroc}{spread} / {100 * row['fpr95']:.1f}"


def _choice(head: dict[str, Any]) -> str:
    told = ("seed", "lr", "weight_decay", "min_confidence")
    settings = ", ".join(f"{key} {head[key]:g}" for key in told if key in head)
    return f"Chosen of the sweep on ID val: {settings} (hits {100 * head['val_accuracy']:.1f} %; all heads: sweep.csv)"


def remarks(results: dict[str, Any]) -> list[str]:
    """What must be said beside the table: accuracies, pseudo-labels, the sweep's choice, the bank, the detectors' notes."""
    lines = []
    if not results["rows"]:
        lines.append("No OOD set was named (data.ood): scores were written, there is no AUROC.")
    for key, name in (("accuracy", "ID accuracy"), ("knn_accuracy", "k-NN accuracy")):
        if results[key] is not None:
            lines.append(f"{name} {100 * results[key]:.1f} %")
    if (pseudo := results["pseudo_labels"]) is not None:
        right = "" if pseudo["accuracy"] is None else f", {100 * pseudo['accuracy']:.1f} % of them right"
        lines.append(f"Pseudo-labels: {pseudo['passed']:g} of {pseudo['images']:g} images passed the filter{right}")
    lines += [_choice(head) for head in results["sweep"] or [] if head["chosen"]]
    bank = results["bank"]
    sample = f", at most {bank['per_class']} a class" if bank["per_class"] else ""
    lines.append(f"Bank: {bank['images']} ID training images{sample}")
    return lines + [f"{each['detector']}: {each['note']}" for each in results["notes"]]


def left_out(results: dict[str, Any]) -> dict[str, list[str]]:
    """Why detectors are not in the table, and which."""
    why: dict[str, list[str]] = defaultdict(list)
    for each in results["omitted"]:
        why[each["reason"]].append(each["detector"])
    return dict(why)
