"""Finished runs side by side: AUROC by detector and OOD set, and paired differences to the first run."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from clip_ood.metrics.ood import MEAN
from clip_ood.metrics.paired import Line, auroc_difference, seed_difference
from configs.errors import ConfigError, nearest
from experiments.run_folder import FINISHED, of_seed, seed_folder
from reports.compare_page import Side, write_compare_page


@dataclass(frozen=True)
class Finished:
    """A finished run, and the detector that stands for it (None: every one by its own name)."""

    folder: Path
    detector: str | None
    results: dict[str, Any]

    @property
    def title(self) -> str:
        return self.folder.name + (f":{self.detector}" if self.detector else "")

    def auroc(self, detector: str, ood: str) -> float:
        """The AUROC of a detector on an OOD set, or of their mean."""
        return _auroc(self.results, self.detector or detector, ood)


def open_run(spec: str) -> Finished:
    """A run from `FOLDER` or `FOLDER:detector`.

    Raises: ConfigError for a folder without results, and for a detector that it has not.
    """
    folder, detector = Path(spec), None
    if not folder.exists() and ":" in spec:
        place, _, detector = spec.rpartition(":")
        folder = Path(place)
    path = folder / FINISHED
    if not path.is_file():
        raise ConfigError(f"--compare: {folder} is no finished run: there is no {path}")
    results = json.loads(path.read_text(encoding="utf-8"))
    known = dict.fromkeys(row["detector"] for row in results["rows"])
    if not known:
        raise ConfigError(f"--compare: {folder} was scored against no OOD set (data.ood), so it has no AUROC")
    if detector is not None and detector not in known:
        raise ConfigError(f"--compare: {folder} has no detector {detector!r}.{nearest(detector, known)}")
    return Finished(folder, detector, results)


def compare(runs: list[Finished]) -> list[Line]:
    """A line for each detector and OOD set that all runs have, and for the mean over the sets. ID test images only.

    Over the same images intervals are DeLong's, paired; runs over several seeds are paired by seed.
    Raises: ConfigError for runs that cannot be paired.
    """
    _check(runs)
    seeds = _common_seeds(runs)
    for seed in seeds:
        _check_images(runs, [_scores(run, seed) for run in runs])
    images = None if seeds else [_scores(run, run.results["seeds"][0]) for run in runs]
    if images is not None:
        _check_images(runs, images)
    lines = []
    for detector in _detectors(runs):
        sets = _sets(runs, detector)
        for ood in [*sets, MEAN]:
            chosen = sets if ood == MEAN else [ood]
            if seeds:
                of_run = [[_seed_auroc(run, seed, detector, ood) for seed in seeds] for run in runs]
                differences = [seed_difference(of_run[0], other) for other in of_run[1:]]
                aurocs = [sum(each) / len(seeds) for each in of_run]
            else:
                of_run = [_of_sets(run, table, detector, chosen) for run, table in zip(runs, images, strict=True)]
                differences = [auroc_difference(of_run[0], other) for other in of_run[1:]]
                aurocs = [run.auroc(detector, ood) for run in runs]
            lines.append(Line(detector, ood, aurocs, differences))
    return lines


def _check(runs: list[Finished]) -> None:
    if len(runs) < 2:
        raise ConfigError("--compare needs two runs or more")
    if len({run.detector is None for run in runs}) > 1:
        raise ConfigError("--compare: name a detector for each run (runs/demo:msp), or for none")
    if len({len(run.results["seeds"]) > 1 for run in runs}) > 1:
        raise ConfigError(
            "--compare: runs over several seeds can only be compared with each other; use --seeds for all"
        )


def _common_seeds(runs: list[Finished]) -> list[int]:
    if len(runs[0].results["seeds"]) == 1:
        return []
    common = [s for s in runs[0].results["seeds"] if all(s in run.results["seeds"] for run in runs)]
    if len(common) < 2:
        raise ConfigError(f"--compare: the runs share {len(common)} seeds; intervals over seeds need two or more")
    return common


def _detectors(runs: list[Finished]) -> list[str]:
    if runs[0].detector is not None:
        return [" / ".join(dict.fromkeys(run.detector for run in runs))]
    of_run = [dict.fromkeys(row["detector"] for row in run.results["rows"]) for run in runs]
    if shared := [name for name in of_run[0] if all(name in names for names in of_run)]:
        return shared
    have = "; ".join(f"{run.title}: {', '.join(names)}" for run, names in zip(runs, of_run, strict=True))
    raise ConfigError(f"--compare: the runs have no detector in common ({have}); name one of each (FOLDER:detector)")


def _sets(runs: list[Finished], detector: str) -> list[str]:
    of_run = [dict.fromkeys(row["ood"] for row in run.results["rows"] if row["ood"] != MEAN) for run in runs]
    shared = [name for name in of_run[0] if all(name in names for names in of_run)]
    if any(len(names) != len(shared) for names in of_run):
        raise ConfigError(f"--compare: the runs have different OOD sets ({', '.join(map(str, map(list, of_run)))})")
    return shared


def _auroc(results: dict[str, Any], detector: str, ood: str) -> float:
    return next(
        row["auroc"]
        for row in results["rows"]
        if (row["detector"], row["ood"], row["setting"]) == (detector, ood, "standard")
    )


def _seed_auroc(run: Finished, seed: int, detector: str, ood: str) -> float:
    results = json.loads((seed_folder(run.folder, seed) / FINISHED).read_text(encoding="utf-8"))
    return _auroc(results, run.detector or detector, ood)


def _scores(run: Finished, seed: int) -> dict[str, np.ndarray]:
    table = pq.read_table(of_seed(run.folder, seed) / "scores.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def _check_images(runs: list[Finished], images: list[dict[str, np.ndarray]]) -> None:
    first = list(zip(images[0]["set"], images[0]["path"], strict=True))
    for run, table in zip(runs[1:], images[1:], strict=True):
        if list(zip(table["set"], table["path"], strict=True)) != first:
            raise ConfigError(
                f"--compare: {run.folder} was scored on other images than {runs[0].folder}; paired differences need the "
                "same data and the same seed"
            )


def _of_sets(
    run: Finished, table: dict[str, np.ndarray], detector: str, sets: list[str]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    scores = torch.from_numpy(table[run.detector or detector].astype(np.float64))
    of_id = torch.from_numpy(table["role"] == "id")
    return scores[of_id], [scores[torch.from_numpy(table["set"] == name)] for name in sets]


def _cells(line: Line) -> list[str]:
    cells = [f"{100 * value:.2f}" for value in line.aurocs]
    for difference in line.differences:
        cells.append(f"{100 * difference.value:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]")
    return cells


def _titles(runs: list[Finished]) -> list[str]:
    return [run.title for run in runs] + [f"{run.title} − {runs[0].title}" for run in runs[1:]]


def _over(runs: list[Finished]) -> str:
    seeds = _common_seeds(runs)
    return f"{len(seeds)} seeds, paired (Student's t)" if seeds else "the same images, paired (DeLong)"


def _caption(runs: list[Finished]) -> str:
    return f"AUROC in percent and differences with 95 % intervals over {_over(runs)}; * where the interval excludes 0"


def print_comparison(runs: list[Finished], lines: list[Line], console: Console | None = None) -> None:
    """The lines in the terminal; differences whose interval excludes 0 are bold and starred."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 200)
    table = Table(box=SIMPLE_HEAD, title="Comparison", caption=_caption(runs))
    for title in ("detector", "OOD set"):
        table.add_column(title, no_wrap=True)
    for title in _titles(runs):
        table.add_column(title, justify="right")
    for line in lines:
        cells = _cells(line)
        for place, difference in enumerate(line.differences, start=len(runs)):
            cells[place] = f"[bold]{cells[place]} *[/bold]" if difference.claimed else f"{cells[place]}  "
        table.add_row(line.detector, line.ood, *cells, end_section=line.ood == MEAN)
    console.print(table)


def write_comparison(runs: list[Finished], lines: list[Line]) -> list[Path]:
    """Markdown and CSV beside the first run: compare-A-B….md, .csv."""
    name = "compare-" + "-".join(run.title.replace(":", "_") for run in runs)
    stem = runs[0].folder.parent / name
    header = ["detector", "OOD set", *_titles(runs)]
    rows = [[line.detector, line.ood, *_starred(line, len(runs))] for line in lines]
    markdown = [f"| {' | '.join(header)} |", "|" + "---|" * 2 + "---:|" * (len(header) - 2)]
    markdown += [f"| {' | '.join(row)} |" for row in rows]
    stem.with_name(name + ".md").write_text("\n".join([*markdown, "", _caption(runs) + ".", ""]), encoding="utf-8")
    with stem.with_name(name + ".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["detector", "ood", "run", "auroc", "difference", "low", "high"])
        for line in lines:
            for run, auroc, change in zip(runs, line.aurocs, [None, *line.differences], strict=True):
                change = [] if change is None else [f"{100 * x:.2f}" for x in (change.value, change.low, change.high)]
                writer.writerow([line.detector, line.ood, run.title, f"{100 * auroc:.2f}", *(change or ["", "", ""])])
    return [stem.with_name(name + suffix) for suffix in (".md", ".csv")]


def _starred(line: Line, runs: int) -> list[str]:
    cells = _cells(line)
    return [
        cell + (" *" if place >= runs and line.differences[place - runs].claimed else "")
        for place, cell in enumerate(cells)
    ]


def show(specs: list[str], page: Path | None = None) -> None:
    """Prints the comparison of runs and writes it beside the first; as a page too, where one is named."""
    runs = [open_run(spec) for spec in specs]
    lines = compare(runs)
    print_comparison(runs, lines)
    written = write_comparison(runs, lines)
    if page is not None:
        sides = [Side(run.title, run.folder, run.results) for run in runs]
        written.append(write_compare_page(page, sides, lines, _over(runs)))
    print("Written: " + ", ".join(map(str, written)))
