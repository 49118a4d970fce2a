"""Writes report.html of a run: all its results as one page, made from the run's own files."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from clip_ood.data.benchmark import Benchmark
from clip_ood.metrics.curves import METRICS
from clip_ood.report.charts import colour_of, histogram, precision_recall, roc
from clip_ood.report.failures import failures
from clip_ood.report.galleries import Maps, accepted_ood, rejected_id
from clip_ood.report.joint_table import joint_table
from clip_ood.report.page import write_page
from clip_ood.report.results import Results, Value, all_metrics, mean_row, tables, value
from clip_ood.report.stream_table import stream_table
from clip_ood.report.suspects import answer
from clip_ood.runs.few_images import held_out_cautions, ranks_caution
from clip_ood.runs.files import read_results
from clip_ood.runs.results_table import intervals_told, left_out, missing_seeds, remarks, told
from clip_ood.runs.run_folder import REPORT
from clip_ood.runs.scores import ScoredSet, read_scores, thresholds


@dataclass(frozen=True)
class Panel:
    """A detector's charts, its threshold, and how many images of each set that accepts."""

    detector: str
    auroc: Value | None
    fpr95: Value | None
    threshold: float
    charts: dict[str, Markup]
    sets: list[Accepted]


@dataclass(frozen=True)
class Accepted:
    """The number of a set's `total` images that a threshold accepts, and the set's colour in the charts."""

    name: str
    colour: int
    accepted: int
    total: int


def write_report(folder: Path, benchmark: Benchmark, maps: Maps | None = None) -> Path:
    """Writes `folder`/report.html from results.json, scores.parquet and config.yaml there; pictures are read from the
    image sets, and beside them stand heat maps, if there are `maps`.
    """
    results = _read(folder)
    scored = read_scores(folder / "scores.parquet")
    id_test = next(each for each in scored if each.role == "id")
    chosen = thresholds(results.get("calibration"), id_test)
    calibration = results.get("calibration")
    default = default_detector([calibration] if calibration else [], list(id_test.scores))
    panels = [_panel(results, scored, name, chosen.of[name]) for name in id_test.scores]
    galleries = [find(scored, default, chosen.of[default], benchmark, maps) for find in (accepted_ood, rejected_id)]
    found = {"panels": panels, "how": chosen.how, "accepted_ood": galleries[0], "rejected_id": galleries[1]}
    found["maps"] = maps
    found["answer"] = answer(folder, benchmark, maps)
    found["failures"] = failures(scored, calibration, results.get("by_folds") or (), default)
    return _write(folder, results, default, seeds=None, **found)


def write_seeds_report(folder: Path) -> Path:
    """Writes `folder`/report.html of a run over several seeds: means, and links to the page of each seed."""
    results = _read(folder)
    pages = {seed: f"seed-{seed}/{REPORT}" for seed in results["seeds"]}
    there = {seed: page for seed, page in pages.items() if (folder / page).is_file()}
    detectors = list(dict.fromkeys(row["detector"] for row in results["rows"]))
    default = default_detector(results["calibration"] or [], detectors)
    return _write(folder, results, default, seeds=there, answer=None, failures=None, maps=None)


def default_detector(calibrations: list[dict[str, Any]], detectors: list[str]) -> str | None:
    """Returns the detector that a run, or every seed of one, is calibrated for, or otherwise the first."""
    named = {each["default"] for each in calibrations}
    return named.pop() if len(named) == 1 and named <= {*detectors} else next(iter(detectors), None)


def _read(folder: Path) -> Results:
    return read_results(folder / "results.json")


def _write(folder: Path, results: Results, default: str | None, **found: Any) -> Path:
    row = None if default is None else mean_row(results, default)
    facts = [line for line in remarks(results | {"notes": []})]
    if results["accuracy"] is None:
        facts.append("No ID accuracy: nothing here predicts classes that the ID test images are labelled with")
    notes = defaultdict(list)
    for each in results["notes"]:
        notes[told(each, "note")].append(each["detector"])
    path = folder / REPORT
    write_page(
        path,
        "run.html.j2",
        results=results,
        default=default,
        auroc=row and value(row, "auroc"),
        fpr95=row and value(row, "fpr95"),
        tables=tables(results),
        metrics=METRICS,
        all_metrics=all_metrics(results),
        joint=joint_table(results.get("joint")),
        stream=stream_table(results.get("stream")),
        facts=facts,
        intervals=intervals_told(results),
        few=missing_seeds(results),
        notes=dict(notes),
        ranks_caution=(ranked := results.get("suspects")) and ranks_caution(ranked["images"]),
        held_out_cautions=held_out_cautions(held_out) if (held_out := results.get("held_out")) else [],
        left_out=left_out(results),
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
        versions=results.get("versions") or {},
        **found,
    )
    return path


def _panel(results: Results, scored: list[ScoredSet], detector: str, threshold: float) -> Panel:
    id_test = next(each for each in scored if each.role == "id")
    ood = [each for each in scored if each.role == "ood"]
    shown = [id_test, *ood, *(each for each in scored if each.role == "csid")]
    charts = {"Scores": histogram(shown, detector, threshold)}
    if ood:
        charts["ROC"] = roc(id_test, ood, detector, threshold)
        charts["Precision and recall"] = precision_recall(id_test, ood, detector)
    row = mean_row(results, detector)
    auroc, fpr95 = (None, None) if row is None else (value(row, "auroc"), value(row, "fpr95"))
    sets = [
        Accepted(each.name, colour_of(number), each.accepted(detector, threshold), len(each))
        for number, each in enumerate(shown)
    ]
    return Panel(detector, auroc, fpr95, threshold, charts, sets)
