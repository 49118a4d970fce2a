"""A summary of runs: their numbers are those of the runs, and its page sorts and chooses detectors without scripts."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import judged_run
import pytest
import tiny_clip

import eval as evaluation
from clip_ood.errors import ConfigError, UserError
from clip_ood.metrics.ood import MEAN
from clip_ood.report.summary import Figure, Line, summarize
from clip_ood.report.summary_page import _ranks


@pytest.fixture(scope="module")
def runs(root):
    sets = {"ood": {"near": {"folder": "near", "group": "near"}, "far": {"folder": "far", "group": "far"}}}
    detectors = ["knn", "msp"]
    made = [judged_run.make(root, name, data=sets, detectors=detectors) for name in ("one", "two")]
    alone = {"ood": {"far": "far"}}
    return [*made, judged_run.make(root, "other", "zero_shot", data=alone, detectors=["mcm", "knn"])]


def rows_of(run, detector):
    rows = tiny_clip.results(run)["rows"]
    return {row["ood"]: row for row in rows if row["detector"] == detector and row["setting"] == "standard"}


def test_runs_on_the_same_sets_stand_together_with_their_own_numbers(runs):
    first, second = summarize([str(runs[0]), f"{runs[1]}:msp", str(runs[2])])
    assert [(line.folder, line.detector) for line in first.lines if line.first] == [(runs[0], "knn"), (runs[1], "msp")]
    assert [line.detector for line in second.lines if line.first] == ["mcm"] and second.sets == {"far": 7}
    line = next(line for line in first.lines if (line.folder, line.detector) == (runs[1], "msp"))
    rows, results = rows_of(runs[1], "msp"), tiny_clip.results(runs[1])
    assert line.figures[MEAN, "auroc"].value == rows[MEAN]["auroc"]
    assert [line.figures[MEAN, "fpr95"].low, line.figures[MEAN, "fpr95"].high] == rows[MEAN]["intervals"]["fpr95"]
    assert line.figures["near (mean)", "auroc"].value == rows["near"]["auroc"]
    assert line.figures["ID", "accuracy"].value == results["accuracy"]
    (joint,) = [row for row in results["joint"]["rows"] if (row["detector"], row["ood"]) == ("msp", MEAN)]
    assert line.figures[MEAN, "auoscr"].value == joint["auoscr"]


def test_the_page_and_the_table_hold_every_detector(root, runs, capsys):
    page = root / "summary.html"
    evaluation.main(["--summary", *map(str, runs), "--html", str(page)])
    text, told = page.read_text(encoding="utf-8"), capsys.readouterr().out
    assert f"Written: {page}, {root / 'summary.csv'}" in told and "3 runs side by side" in text
    assert len(re.findall(r'class="line is-\d+ is-first"', text)) == 3
    assert len(re.findall(r'class="line is-\d+"', text)) == 3 and "<script" not in text
    with (root / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (mean,) = [
        row
        for row in rows
        if (row["run"], row["detector"], row["on"], row["metric"]) == (str(runs[0]), "knn", MEAN, "auroc")
    ]
    assert mean["value"] == f"{100 * rows_of(runs[0], 'knn')[MEAN]['auroc']:.2f}" and mean["first"] == "true"


def test_runs_on_sets_of_other_sizes_stand_apart(root, runs):
    (root / "data/few").mkdir()
    for image in sorted((root / "data/far").rglob("*.png"))[:3]:
        shutil.copy(image, root / "data/few")
    small = judged_run.make(root, "small", "zero_shot", data={"ood": {"far": "few"}}, detectors=["knn"])
    first, second = summarize([str(runs[2]), str(small)])
    assert (first.sets, second.sets) == ({"far": 7}, {"far": 3}) and [len(first.lines), len(second.lines)] == [2, 1]


def test_the_best_line_of_a_column_comes_first_and_one_without_a_number_last():
    def line(auroc, fpr95):
        figures = {(MEAN, "auroc"): auroc, (MEAN, "fpr95"): fpr95}
        kept = {column: Figure(value) for column, value in figures.items() if value is not None}
        return Line(Path("a"), "", "probe", "knn", True, 1, kept)

    lines = [line(0.7, 0.1), line(0.9, None), line(0.8, 0.3)]
    assert [_ranks(lines, (MEAN, metric)) for metric in ("auroc", "fpr95")] == [[2, 0, 1], [0, 2, 1]]


def test_the_page_lies_beside_the_first_run_by_itself(root, runs):
    evaluation.main(["--summary", str(runs[2])])
    assert (root / "runs/summary.html").is_file() and (root / "runs/summary.csv").is_file()


@pytest.mark.parametrize("name", ["x.csv", "x.CSV"])
def test_a_page_by_the_name_of_its_table_is_refused(root, runs, name):
    with pytest.raises(UserError, match=r"x\.(csv|CSV) has the name of a table.*call the page .*x\.html"):
        evaluation.main(["--summary", str(runs[2]), "--html", str(root / name)])
    assert not (root / name).exists()


@pytest.mark.browser
def test_a_click_sorts_by_a_column_and_another_shows_a_detector(root, runs, browser):
    path = root / "clicked.html"
    evaluation.main(["--summary", str(runs[0]), str(runs[1]), "--html", str(path)])
    page = browser.new_page()
    page.goto(path.as_uri())

    def shown():
        lines = page.locator(".line:visible")
        found = [(line.bounding_box()["y"], line) for line in lines.all()]
        return [line for _, line in sorted(found, key=lambda each: each[0])]

    def detectors():
        return {line.locator("small").first.inner_text().split(" · ")[0] for line in shown()}

    assert detectors() == {"knn"} and len(shown()) == 2
    page.get_by_text("msp", exact=True).click()
    assert detectors() == {"msp"}
    for title, metric, sign in (("mean", "FPR95", 1), ("near", "AUROC", -1)):
        page.locator(".head label", has=page.get_by_text(metric, exact=True)).filter(has_text=title).last.click()
        column = page.locator(".head [role=columnheader]").evaluate_all(
            "(heads, [title, metric]) => heads.findLastIndex((each) => each.innerText.startsWith(title) && each.innerText.includes(metric))",
            [title, metric],
        )
        values = [float(line.locator("> *").nth(column).inner_text().split()[0]) for line in shown()]
        assert values == sorted(values, key=lambda value: sign * value)
    page.close()


def test_what_cannot_be_summarized_is_told(root, runs):
    with pytest.raises(ConfigError, match=r"--summary: .*nowhere is no finished run"):
        evaluation.main(["--summary", str(root / "nowhere")])
    with pytest.raises(ConfigError, match=r"has no detector 'mps'\. Did you mean msp"):
        evaluation.main(["--summary", f"{runs[0]}:mps"])
    bare = judged_run.make(root, "bare", "zero_shot", data={"ood": {}}, detectors=["knn"])
    with pytest.raises(ConfigError, match="was tested against no OOD set"):
        evaluation.main(["--summary", str(bare)])


def test_detectors_of_one_run_stand_side_by_side_and_no_line_stands_twice(runs):
    (found,) = summarize([f"{runs[0]}:msp", str(runs[0]), f"{runs[0]}/../{runs[0].name}"])
    assert [(line.detector, line.first) for line in found.lines] == [("knn", True), ("msp", True)]


def test_names_are_no_markup_and_numbers_of_images_are_exact(root, runs, capsys):
    folder = root / "runs/marked"
    shutil.copytree(runs[0], folder)
    text = (folder / "results.json").read_text(encoding="utf-8")
    text = re.sub(r'"n_id": \d+', '"n_id": 1281167', text).replace('"near"', '"[/red] [near]"')
    (folder / "results.json").write_text(text, encoding="utf-8")
    evaluation.main(["--summary", str(folder), "--html", str(root / "marked.html")])
    assert "1,281,167 ID images against far, [/red] [near]" in " ".join(capsys.readouterr().out.split())
    with (root / "marked.csv").open(newline="") as file:
        assert {row["n_id"] for row in csv.DictReader(file)} == {"1281167"}


def test_an_attack_is_not_called_damaged(tmp_path):
    (tmp_path / "results.json").write_text('{"kind": "attack"}')
    for option in ("--summary", "--compare"):
        with pytest.raises(ConfigError, match=f"{tmp_path.name} is an attack"):
            evaluation.main([option, str(tmp_path), *([str(tmp_path)] * (option == "--compare"))])


@pytest.mark.browser
def test_only_the_tables_scroll_sideways_on_a_phone(root, runs, browser):
    path = root / "phone.html"
    evaluation.main(["--summary", str(runs[0]), str(runs[2]), "--html", str(path)])
    page = browser.new_page(viewport={"width": 320, "height": 700})
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.close()
