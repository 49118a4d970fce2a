"""Finished tiny runs with reports, one of them with names that try to be HTML."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import tiny_clip

import eval as evaluation
from clip_ood.config.loading import load_config
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.report.run_page import write_report

REPORTED = {"figures": False}
NAME = '"><svg onload=alert(1)>'  # of the run
SET = '"><script>alert(2)<' + "/script>"
CLASS = "<b onclick=alert(3)>fox"
FILE = "<img src=x onerror=alert({})>.png"
ENCODER = "<i>tiny</i> 'CLIP'"


def zero_shot(root: Path, name: str, *options: str, **keys) -> Path:
    """A zero-shot run with a report."""
    settings = {"evaluation": REPORTED} | keys
    evaluation.main(["--config", tiny_clip.config(root, name, {"zero_shot": {}}, **settings), *options])
    return root / "runs" / name


def hostile(root: Path) -> Path:
    """A run whose name, OOD set, class, encoder and every file name hold markup."""
    data = root / "data"
    for place in ("id/cat", "id/dog", "id/fox", "near"):
        for number, path in enumerate(sorted((data / place).iterdir())):
            path.rename(path.with_name(FILE.format(number)))
    (data / "id" / "fox").rename(data / "id" / CLASS)
    keys = {
        "data": {"root": str(data), "id": "id", "ood": {SET: "near", "far": "far"}, "splits": {"val": 0, "test": 0.3}},
        "backbone": {"model": f"local-dir:{root}/clip", "label": ENCODER},
    }
    return remade(zero_shot(root, NAME, **keys), calibration=halfway)


def halfway(run: Path) -> dict:
    """A calibration whose thresholds accept about half of all images."""
    table = pq.read_table(run / "scores.parquet")
    names = table.column_names[6:]
    middle = {name: sorted(table[name].to_pylist())[table.num_rows // 2] for name in names}
    return {"n": 31, "accept": 0.95, "expected": 0.96875, "needed": 19, "default": names[1], "thresholds": middle}


def remade(run: Path, calibration=None) -> Path:
    """The run with its page made again from its files, with the results' calibration replaced."""
    results = tiny_clip.results(run)
    if calibration is not None:
        results["calibration"] = calibration(run) if callable(calibration) else calibration
    (run / "results.json").write_text(json.dumps(results))
    write_report(run, load_benchmark(load_config(str(run / "config.yaml"), [])))
    return run


class Page(HTMLParser):
    """A page as a parser sees it: tags with their attributes, and its text outside of the style sheet."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.tables: list[list[list[str]]] = []
        self.text, self._in_style, self._in_cell = "", False, False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._in_style = tag == "style"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True
        elif tag == "small" and self._in_cell:
            self.tables[-1][-1][-1] += " | "

    def handle_endtag(self, tag):
        self._in_style = False
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_style:
            return
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data.strip()

    def named(self, tag: str) -> list[dict]:
        """The attributes of every element of that name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def rows(self, table: int) -> dict[str, list[str]]:
        """The lines of a table by their first cell."""
        return {row[0]: row[1:] for row in self.tables[table]}
