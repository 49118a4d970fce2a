"""Shows a summary of finished runs in the terminal, and writes it as a page and as CSV."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from clip_ood.metrics.ood import MEAN
from clip_ood.process.locks import in_turn
from clip_ood.report.summary import Benchmark, summarize, write_summary
from clip_ood.report.summary_page import write_summary_page
from clip_ood.runs.results_table import intervals_told
from clip_ood.runs.run_folder import read_results
from clip_ood.terminal.console import Terminal
from clip_ood.terminal.shown import say


def show_summary(places: list[str], page: Path | None = None) -> None:
    """Prints the summary of runs, each with the detector that stands for it, and writes it: with all detectors, as a page and as CSV.

    The page is summary.html beside the first run unless another place is named.
    """
    benchmarks = summarize(places)
    folders = list(dict.fromkeys(line.folder for each in benchmarks for line in each.lines))
    page = page or folders[0].parent / "summary.html"
    table = page.with_suffix(".csv")
    for benchmark in benchmarks:
        Terminal().print(_table(benchmark))
    with in_turn(page):
        write_summary(table, benchmarks)
        write_summary_page(page, benchmarks, _over(folders))
    say(f"Written: {page}, {table}")
    say(f"Next: open {page} in a browser")


def _over(folders: list[Path]) -> list[str]:
    """Says what the intervals of the runs are computed from."""
    found = {}
    for folder in folders:
        results = read_results(folder)
        several = len(results["seeds"]) > 1
        told = intervals_told(results) if several else "95 % intervals of a single seed are over the images"
        found.setdefault(told, []).append(folder.name)
    return list(found) if len(found) == 1 else [f"{', '.join(names)}: {told}" for told, names in found.items()]


def _table(benchmark: Benchmark) -> Table:
    """Returns a table of each run's own detector, the highest mean AUROC first."""
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{benchmark.n_id:,.10g} ID images against {escape(', '.join(benchmark.sets))}",
        title_justify="left",
    )
    for title in ("run", "detector"):
        table.add_column(title)
    columns = [each for each in benchmark.columns if each[0] not in benchmark.sets]
    for title, metric in columns:
        table.add_column(escape(f"{title} {metric}"), justify="right")
    own = [line for line in benchmark.lines if line.first]
    for line in sorted(own, key=lambda line: -line.figures[MEAN, "auroc"].value):
        cells = ["" if (each := line.figures.get(column)) is None else f"{100 * each.value:.1f}" for column in columns]
        table.add_row(escape(line.folder.name), escape(line.detector), *cells)
    return table
