"""Shows finished runs side by side, in the terminal, as Markdown, as CSV, as LaTeX and as a page."""

from __future__ import annotations

import csv
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from clip_ood.files.writing import write_text, written_text
from clip_ood.files.written_names import text_cell
from clip_ood.metrics.ood import MEAN
from clip_ood.metrics.paired import Line
from clip_ood.naming import short
from clip_ood.process.called import called
from clip_ood.process.locks import in_turn
from clip_ood.report.compare_page import Side, write_compare_page
from clip_ood.report.comparison import Comparison, Finished, compare, open_run
from clip_ood.report.latex import latex_table
from clip_ood.runs.going_on import next_step
from clip_ood.runs.run_folder import unreported
from clip_ood.terminal.console import Terminal
from clip_ood.terminal.markdown import markdown_table
from clip_ood.terminal.shown import say, shown


def _cells(line: Line) -> list[str]:
    cells = [f"{100 * value:.2f}" for value in line.aurocs]
    for difference in line.differences:
        spread = "" if difference.std is None else f" ± {100 * difference.std:.2f}"
        interval = f"[{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
        cells.append(f"{100 * difference.value:+.2f}{spread} {interval}")
    return cells


def _titles(runs: list[Finished]) -> list[str]:
    return [run.title for run in runs] + [f"{run.title} − {runs[0].title}" for run in runs[1:]]


def _caption(comparison: Comparison, mark: str = "*") -> str:
    spread = "; ± the standard deviation over the seeds" if len(comparison.runs[0].seeds) > 1 else ""
    return (
        f"AUROC in percent and paired differences, each with its own 95 % interval{spread}; {mark} where the test finds a difference after "
        f"correction for all {comparison.tested} in this table. Intervals over {comparison.over}"
    )


def print_comparison(comparison: Comparison) -> None:
    """Prints the comparison in the terminal; differences that the corrected test finds are bold and starred."""
    runs, console = comparison.runs, Terminal()
    if not console.is_terminal:
        console.width = max(console.width, 200)
    table = Table(box=SIMPLE_HEAD, title="Comparison", caption=_caption(comparison))
    for title in ("detector", "OOD set"):
        table.add_column(title, no_wrap=True)
    for title in _titles(runs):
        table.add_column(escape(title), justify="right")
    for line in comparison.lines:
        cells = _cells(line)
        for place, difference in enumerate(line.differences, start=len(runs)):
            cells[place] = f"[bold]{cells[place]} *[/bold]" if difference.claimed else f"{cells[place]}  "
        table.add_row(escape(line.detector), escape(line.ood), *cells, end_section=line.ood == MEAN)
    console.print(table)
    for remark in comparison.remarks:
        console.print(remark, highlight=False)


def write_comparison(comparison: Comparison) -> list[Path]:
    """Writes the comparison as Markdown, CSV and LaTeX beside the first run: compare-A-B….md, .csv, .tex."""
    runs = comparison.runs
    name = short("compare-" + "-".join(run.title.replace(":", "_") for run in runs))
    stem = runs[0].folder.parent / name
    with in_turn(stem):
        return _write(comparison, stem)


def _write(comparison: Comparison, stem: Path) -> list[Path]:
    runs, lines, name = comparison.runs, comparison.lines, stem.name
    header = ["detector", "OOD set", *_titles(runs)]
    rows = [[line.detector, line.ood, *_starred(line, len(runs))] for line in lines]
    said = [_caption(comparison), *comparison.remarks, comparison.method()]
    text = markdown_table(header, rows, names=2) + "".join(f"\n\n{shown(each).rstrip('.')}." for each in said) + "\n"
    write_text(stem.with_name(name + ".md"), text)
    with written_text(stem.with_name(name + ".csv")) as file:
        writer = csv.writer(file)
        writer.writerow(["detector", "ood", "run", "auroc", "difference", "low", "high", "std", "seeds", "p", "p_holm"])
        for line in lines:
            for run, auroc, change in zip(runs, line.aurocs, [None, *line.differences], strict=True):
                told = [None] * 4 if change is None else [change.value, change.low, change.high, change.std]
                numbers = ["" if each is None else f"{100 * each:.2f}" for each in (auroc, *told)]
                tests = ["", ""] if change is None else [f"{change.p:.3g}", f"{change.corrected:.3g}"]
                writer.writerow([*map(text_cell, (line.detector, line.ood, run.title)), *numbers, line.seeds, *tests])
    titles = [run.title for run in runs]
    write_text(
        stem.with_name(name + ".tex"),
        latex_table(titles, lines, f"{_caption(comparison, 'bold')}. {comparison.method()}"),
    )
    return [stem.with_name(name + suffix) for suffix in (".md", ".csv", ".tex")]


def _starred(line: Line, runs: int) -> list[str]:
    cells = _cells(line)
    return [
        cell + (" *" if place >= runs and line.differences[place - runs].claimed else "")
        for place, cell in enumerate(cells)
    ]


def show(specs: list[str], page: Path | None = None) -> None:
    """Prints the comparison of runs and writes it beside the first; it also writes a page if one is named."""
    comparison = compare([open_run(spec) for spec in specs])
    print_comparison(comparison)
    written = write_comparison(comparison)
    if page is not None:
        sides = [Side(run.title, run.folder, run.results) for run in comparison.runs]
        with in_turn(page):
            written.append(write_compare_page(page, sides, comparison.lines, comparison.over, comparison.remarks))
    say("Written: " + ", ".join(map(str, written)))
    for there in filter(None, (unreported(run.folder) for run in comparison.runs)):
        say(there)
    if page is None:
        html = ["--html", str(comparison.runs[0].folder.parent / "comparison.html")]
        say(next_step([*called("eval").split(), "--compare", *specs, *html], "show it as a page"))
    else:
        say(f"Next: open {page} in a browser")
