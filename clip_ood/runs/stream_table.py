"""Prints the table of test-time methods in the terminal, apart from that of detectors, and says what its figures are."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from clip_ood.metrics.ood import MEAN
from clip_ood.stream.evaluation import Spread
from clip_ood.terminal.console import Terminal

TITLE = "Test-time methods, on a stream: not comparable with detectors"
USED = "These scores used the test stream: each method learnt from the images that it scored, in their order, OOD images among them"


def print_stream(stream: dict[str, Any] | None, console: Terminal) -> None:
    """Prints AUROC / FPR95 in percent, mean ± standard deviation over orders, of `stream` in a results.json; a run without one has none."""
    if stream is None:
        return
    rows = {(row["method"], row["ood"]): row for row in stream["rows"]}
    table = Table(Column("test-time method", overflow="fold"), box=SIMPLE_HEAD, title=TITLE)
    sets = {row["ood"]: row["n_ood"] for row in stream["rows"]}
    for name, count in sets.items():
        table.add_column(escape(name) + ("" if name == MEAN else f"\nn = {count}"), justify="right", overflow="fold")
    for method in dict.fromkeys(method for method, _ in rows):
        table.add_row(
            escape(method),
            *(f"{figure(rows[method, name]['auroc'])} / {figure(rows[method, name]['fpr95'])}" for name in sets),
        )
    console.print(table)
    console.print(f"{USED}.", highlight=False, markup=False)
    console.print(streams_told(stream), highlight=False, markup=False)


def figure(values: list[float]) -> str:
    """Returns the mean over orders in percent, with the standard deviation if there are several.

    >>> figure([0.9, 0.92]), figure([0.9])
    ('91.0 ± 1.4', '90.0')
    """
    spread = Spread.of(values)
    return f"{100 * spread.mean:.1f}" + ("" if spread.std is None else f" ± {100 * spread.std:.1f}")


def streams_told(stream: dict[str, Any]) -> str:
    """Says in words how the streams were made.

    >>> streams_told({"seeds": [4, 5], "batch_size": 8, "ood_share": None, "rows": [{"n_id": 9}]})
    'AUROC / FPR95, percent: mean ± standard deviation over 2 orders (seeds 4 to 5), which is no interval for other images; batches of 8; all 9 ID test images and all images of one OOD set in a stream; stream.csv: minimum and maximum'
    """
    seeds, share, runs = stream["seeds"], stream["ood_share"], dict.fromkeys(stream.get("run_seeds") or ())
    several = len(seeds) > 1
    over = (
        f"mean ± standard deviation over {len(seeds)} orders ({_drawn(seeds, list(runs))}), which is no interval for other images"
        if several
        else f"one order (seed {seeds[0]}), without a spread"
    )
    n_id = min(row["n_id"] for row in stream["rows"])
    mixed = (
        f"all {n_id:,} ID test images and all images of one OOD set in a stream"
        if share is None
        else f"{100 * share:g} % of the images of a stream are of one OOD set, and {n_id:,} or more of ID test"
    )
    mixed += " (on average over seeds)" if n_id % 1 else ""
    more = "; stream.csv: minimum and maximum" if several else ""
    return f"AUROC / FPR95, percent: {over}; batches of {stream['batch_size']:,}; {mixed}{more}"


def _drawn(seeds: list[int], runs: list[int]) -> str:
    """Says by which seeds orders were drawn and, over several seeds of a run, in how many.

    >>> _drawn([4, 5], []), _drawn([0, 1, 3, 4], [0, 3])
    ('seeds 4 to 5', 'all of 2 seeds of the run, 0 and 3')
    """
    if len(runs) < 2:
        return f"seeds {min(seeds)} to {max(seeds)}"
    return f"all of {len(runs)} seeds of the run, {', '.join(map(str, runs[:-1]))} and {runs[-1]}"
