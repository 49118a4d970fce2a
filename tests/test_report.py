"""report.html and the page of a comparison, as text; test_report_browser.py opens them."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_runs
import tiny_clip
from PIL import Image
from report_runs import Page, remade, zero_shot

import eval as evaluation
import train
from clip_ood.config.loading import load_config
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.metrics.paired import Difference, Line
from clip_ood.report.charts import histogram, precision_recall, roc
from clip_ood.report.compare_page import Side, write_compare_page
from clip_ood.report.galleries import accepted_ood, rejected_id
from clip_ood.report.page import number
from clip_ood.runs.scores import ScoredSet, read_scores, thresholds

PROBE = {"linear_probe": {"epochs": 4, "batch_size": 16, "lr": 0.01}}


@pytest.fixture(scope="module")
def run(root):
    return zero_shot(root, "plain")


@pytest.fixture(scope="module")
def seeded(root):
    settings = {"evaluation": report_runs.REPORTED}
    train.main(["--config", tiny_clip.config(root, "seeded", PROBE, **settings), "--seeds", "1", "2"])
    return root / "runs" / "seeded"


def copied(run, tmp_path, name="copy"):
    return Path(shutil.copytree(run, tmp_path / name))


def page(run):
    return Page(run / "report.html")


def percent(value):
    return f"{100 * value:.1f}"


# Numbers


def test_the_table_holds_the_runs_own_numbers(run):
    results, rows = tiny_clip.results(run), page(run).rows(0)
    sizes = {"mean": "over the sets", "far": "7 images", "lone": "1 image", "near": "9 images"}
    sets = list(sizes)
    assert page(run).tables[0][0][1:] == [f"{name} | {size}" for name, size in sizes.items()]
    for row in results["rows"]:
        auroc, fpr95 = rows[row["detector"]][2 * sets.index(row["ood"]) :][:2]
        for shown, metric in ((auroc, "auroc"), (fpr95, "fpr95")):
            ends = row["intervals"].get(metric)
            spread = f" | {percent(ends[0])} – {percent(ends[1])}" if ends else ""
            assert shown == percent(row[metric]) + spread
    first = next(row for row in results["rows"] if row["ood"] == "mean")
    assert (
        f"{first['detector']} tells known images from 3 unknown sets with {percent(first['auroc'])}" in page(run).text
    )


def test_the_best_of_each_set_is_marked(run):
    rows = tiny_clip.results(run)["rows"]
    best = {s: max(r["auroc"] for r in rows if r["ood"] == s) for s in ("mean", "far", "lone", "near")}
    marked = re.findall(r'<span class="best">([\d.]+)</span>', (run / "report.html").read_text())
    assert sorted(marked) == sorted(percent(r["auroc"]) for r in rows if r["auroc"] == best[r["ood"]])


def test_the_page_says_what_was_left_out_and_what_it_was_made_with(run):
    results, text = tiny_clip.results(run), page(run).text
    assert results["omitted"] and all(each["reason"] in text for each in results["omitted"])
    assert results["versions"]["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(name in text and version in text for name, version in results["versions"].items())
    assert (run / "config.yaml").read_text() in text


def test_a_run_without_a_report(root):
    run = zero_shot(root, "without", evaluation={"figures": False, "report": False})
    assert (run / "results.json").is_file() and not (run / "report.html").exists()


# Thresholds


def scored(name, role, scores):
    paths = [f"{i}.png" for i in range(len(scores))]
    return ScoredSet(
        name, role, paths, None, [None] * len(scores), [None] * len(scores), {"knn": np.array(scores, float)}
    )


@pytest.mark.parametrize("total, rejected", [(1, 0), (14, 0), (20, 1), (46, 2), (100, 5)])
def test_without_a_calibration_thresholds_accept_95_percent_of_id_test(total, rejected):
    id_test = scored("id_test", "id", np.random.default_rng(0).permutation(total))
    found = thresholds(None, id_test)
    assert id_test.accepted("knn", found.of["knn"]) == total - rejected >= 0.95 * total
    assert "accepts 95\N{NO-BREAK SPACE}% of ID test images" in found.how


def test_thresholds_are_those_of_the_calibration_and_say_why_not(run, tmp_path):
    run = copied(run, tmp_path)
    entry = report_runs.halfway(run)
    text = page(remade(run, entry)).text
    assert "which is calibrated to accept 95\N{NO-BREAK SPACE}% of new ID images or more, on 31 ID val images" in text
    assert all(f"with a score of {number(value)} or more" in text for value in entry["thresholds"].values())
    assert text.index(f"{entry['default']} tells known images") and entry["default"] != "knn"
    few = entry | {"n": 7, "thresholds": None, "expected": None}
    text = page(remade(run, few)).text
    assert "too few ID val images to calibrate (n = 7, 19 needed)" in text and "Where mcm is wrong" in text


# Galleries


@pytest.mark.parametrize("find, role, above", [(accepted_ood, "ood", True), (rejected_id, "id", False)])
@pytest.mark.parametrize("every", [False, True])
def test_galleries_hold_each_wrong_image_once_closest_and_furthest(run, find, role, above, every):
    benchmark = load_benchmark(load_config(str(run / "config.yaml"), []))
    rows = pq.read_table(run / "scores.parquet").to_pylist()
    scores = sorted(row["mcm"] for row in rows)
    threshold = scores[len(scores) // 2] if not every else scores[0] - 1 if above else scores[-1] + 1
    gallery = find(read_scores(run / "scores.parquet"), "mcm", threshold, benchmark)
    wrong = [row for row in rows if row["role"] == role and (row["mcm"] >= threshold) == above]
    wrong.sort(key=lambda row: abs(row["mcm"] - threshold))
    assert gallery.wrong == len(wrong) > 0 and gallery.total == {"ood": 17, "id": 14}[role]
    assert [(tile.set, tile.path) for tile in gallery.closest] == [(row["set"], row["path"]) for row in wrong[:8]]
    furthest = wrong[8:][::-1][:8]
    assert [(tile.set, tile.path) for tile in gallery.furthest] == [(row["set"], row["path"]) for row in furthest]
    assert (len(furthest) > 5) == every
    for tile, row in zip(gallery.closest, wrong, strict=False):
        assert (tile.label, tile.prediction) == (row["label"], row["prediction"]) and tile.score == row["mcm"]
        assert tile.picture.startswith("data:image/jpeg;base64,")


def test_images_that_are_gone_or_damaged_are_named_in_their_tile(tmp_path):
    root = tiny_clip.make(tmp_path)
    run = zero_shot(root, "damaged")
    (root / "data" / "far" / "0.png").write_bytes(b"no image")
    for path in (root / "data" / "near").iterdir():
        path.unlink()
    (root / "data" / "near" / "other.png").write_bytes((root / "data" / "far" / "1.png").read_bytes())
    lowest = {name: -1e30 for name in report_runs.halfway(run)["thresholds"]}
    text = page(remade(run, report_runs.halfway(run) | {"thresholds": lowest})).text
    assert "17 of 17 OOD images accepted" in text and "None of 14 ID test images was rejected" in text
    assert "cannot be read: UnidentifiedImageError" in text
    assert "cannot be read: the image set does not list it any more" in text
    assert 0 < len(page(run).named("img")) < 16


# Runs that lack something


def test_without_ood_sets(root):
    run = zero_shot(root, "no_ood", "--data.ood={}")
    found = page(run)
    assert "no OOD set to tell them from" in found.text and "There is no OOD set (data.ood)." in found.text
    assert "there are no ROC and precision-recall curves" in found.text
    assert len(found.named("svg")) == len(read_scores(run / "scores.parquet")[0].scores)  # histograms


def test_without_classes(root):
    flat = root / "data" / "flat"
    flat.mkdir()
    for path in (root / "data" / "id" / "cat").iterdir():
        shutil.copy(path, flat)
    data = {"root": f"{root}/data", "id": "flat", "ood": {"lone": "lone"}, "splits": {"val": 0, "test": 0.3}}
    found = page(zero_shot(root, "flat", data=data))
    assert "No ID accuracy" in found.text and "tells known images from 1 unknown set with" in found.text


def test_with_constant_scores(run, tmp_path):
    run = copied(run, tmp_path)
    table = pq.read_table(run / "scores.parquet")
    for place, name in enumerate(table.column_names[6:], start=6):
        table = table.set_column(place, name, pa.array(np.full(table.num_rows, 0.25, np.float32)))
    pq.write_table(table, run / "scores.parquet")
    text = page(remade(run)).text
    assert "17 of 17 OOD images accepted" in text and "with a score of 0.2500 or more" in text


def test_covariate_shifted_id_has_a_table_of_its_own(root):
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near"}, "csid": {"far": "far"}}
    found = page(zero_shot(root, "shifted", data=data | {"splits": {"val": 0.2, "test": 0.3}}))
    assert "Covariate-shifted images count as ID (full spectrum)" in found.text
    assert found.tables[0][0][0] != found.tables[1][0][0]  # other numbers of ID images
    assert re.search(r"far\s+[\d.]+ %\s+\d of 7", found.text)


def test_several_seeds_show_means_and_link_to_each(seeded):
    found, results = page(seeded), tiny_clip.results(seeded)
    for row in results["rows"]:
        if row["ood"] == "mean":
            low, high = map(percent, row["intervals"]["auroc"])
            shown = f"{percent(row['auroc'])} | ± {percent(row['std']['auroc'])} | {low} – {high}"
            assert found.rows(0)[row["detector"]][0] == shown
    links = [each["href"] for each in found.named("a")]
    assert links == ["seed-1/report.html", "seed-2/report.html"] and all((seeded / link).is_file() for link in links)
    assert not found.named("img") and "standard deviation over 2 seeds" in found.text
    assert re.search(
        r"95.% intervals over 2 seeds, corrected for splits that overlap .*√\(1/J \+ 14/32\), J = 2\)", found.text
    )


def test_a_single_seed_has_its_own_intervals(root):
    run = zero_shot(root, "single", "--seeds", "42")
    found = page(run)
    assert "small: 95 % intervals. " in found.text and "standard deviation" not in found.text
    assert tiny_clip.results(run)["rows"][0]["intervals"] == tiny_clip.results(run / "seed-42")["rows"][0]["intervals"]
    assert [each["href"] for each in found.named("a")] == ["seed-42/report.html"]


# One file, nothing from elsewhere, nothing that runs


def is_self_contained(found):
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in found.tags}
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    sources = [a[key] for _, a in found.tags for key in ("src", "srcset", "data", "xlink:href") if key in a]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)\)", found.source))
    assert "@import" not in found.source
    (policy,) = [each["content"] for each in found.named("meta") if "http-equiv" in each]
    assert policy.startswith("default-src 'none'")


def test_the_page_needs_nothing_but_itself(run, seeded):
    is_self_contained(page(run))
    is_self_contained(page(seeded))


def test_names_stay_text(tmp_path):
    found = page(report_runs.hostile(tiny_clip.make(tmp_path)))
    is_self_contained(found)
    told = [report_runs.NAME, report_runs.SET, report_runs.CLASS, report_runs.ENCODER, "<img src=x onerror=alert("]
    assert all(each in found.text for each in told)
    assert not found.named("i") or all(each.keys() == {"class"} for each in found.named("i"))
    assert all(each["src"].startswith("data:image/jpeg") and each["alt"] for each in found.named("img"))
    assert all(each == {} for each in found.named("b"))


def test_charts_take_the_pages_colours_and_share_no_ids(run):
    found = page(run)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    used = set(re.findall(r"url\(#(\w+)\)", found.source)) | {
        each["xlink:href"].lstrip("#") for each in found.named("use")
    }
    assert used <= set(ids)
    assert "#0d00" not in found.source and "var(--c1)" in found.source and "currentColor" in found.source


def test_charts_draw_the_scores():
    inside, outside = scored("id_test", "id", [3, 4, 5, 6]), scored("$x_{", "ood", [1, 2, 3.5])
    drawn = [histogram([inside, outside], "knn", 2.5), roc(inside, [outside], "knn", 2.5)]
    drawn.append(precision_recall(inside, [outside], "knn"))
    assert all("$" not in chart for chart in drawn)
    points = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--c1\)', drawn[1])[1]
    assert points.count("L") == 7  # from the corner on, a point a distinct score


def test_tick_labels_keep_their_digits():
    chart = histogram([scored("id_test", "id", np.linspace(0.1231, 0.1239, 50))], "knn", 0.1235)
    labels = re.findall(r">(0\.\d+)<", chart)
    assert len(set(labels)) == len(labels) >= 3


# Several runs


@pytest.fixture(scope="module")
def compared(root, run):
    train.main(["--config", tiny_clip.config(root, "probe", PROBE)])  # without a report
    path = root / "pages" / "both.html"
    path.parent.mkdir()
    evaluation.main(["--compare", str(root / "runs" / "probe"), str(run), "--html", str(path)])
    return path


def test_the_page_of_a_comparison_holds_its_numbers(root, compared):
    found = Page(compared)
    is_self_contained(found)
    with (root / "runs" / "compare-probe-plain.csv").open(newline="") as file:
        rows = {(row["detector"], row["ood"], row["run"]): row for row in csv.DictReader(file)}
    for table, ood in enumerate(("mean", "far", "lone", "near")):
        lines = found.rows(table)
        for detector in {name for name, _, _ in rows}:
            first, second = (rows[detector, ood, name] for name in ("probe", "plain"))
            shown = [cell.replace("−", "-").replace("∞", "inf") for cell in lines[detector]]
            difference, interval = shown[1].split(" | ")
            assert shown[2:] == [first["auroc"], second["auroc"]]
            ends = [float(each) for each in interval.split(" … ")]
            assert [float(difference), *ends] == [float(second[key]) for key in ("difference", "low", "high")]


def test_a_comparison_links_to_the_reports_that_there_are(run, compared):
    (link,) = [each["href"] for each in Page(compared).named("a")]
    assert (compared.parent / unquote(link)).resolve() == (run / "report.html").resolve()
    assert "none" in Page(compared).rows(-1)["probe"][-1]


def side(folder, title):
    results = {"method": "plp", "encoder": "CLIP", "accuracy": None, "bank": {"images": 9}, "seeds": [42]}
    return Side(title, folder, results)


def test_dots_lie_where_their_numbers_say(tmp_path):
    better, worse, open_ = (
        Difference(0.1, 0.02, 0.18, p=0.01, corrected=0.04),
        Difference(-0.05, -0.06, -0.04, p=0.001),
        Difference(0.3, -math.inf, math.inf),
    )
    lines = [
        Line("knn", "near", [0.8, 0.9, 1.0], [better, open_]),
        Line("knn", "mean", [0.8, 0.9, 1.0], [better, worse]),
        Line("mcm", "near", [0.8, 0.9, 1.0], [worse, worse]),
        Line("mcm", "mean", [0.8, 0.9, 1.0], [open_, worse]),
    ]
    sides = [side(tmp_path / name, name) for name in "abc"]
    found = Page(write_compare_page(tmp_path / "x.html", sides, lines, "three images"))
    assert re.findall(r"\+(\d+)</text>", found.source) == ["20", "20"]  # of the mean, of near
    dots = [float(each["cx"].rstrip("%")) for each in found.named("circle")]
    assert dots == pytest.approx([75, 37.5, 100, 37.5, 75, 100, 37.5, 37.5])
    bars = [(float(each["x1"].rstrip("%")), float(each["x2"].rstrip("%"))) for each in found.named("line")]
    assert bars[:3] == [(55, 95), (35, 40), (0, 100)]
    assert re.findall(r"(\d+) · (\d+) · (\d+)scores better", found.text) == [("1", "0", "1"), ("0", "2", "0")]
    assert found.source.count('class="better"') == 2 + 2 and "−∞ … +∞" in found.text  # two tiles, two differences


def test_a_folders_name_cannot_become_another_kind_of_link(tmp_path):
    folder = tmp_path / 'javascript:alert(1)"#?'
    folder.mkdir()
    (folder / "report.html").touch()
    lines = [Line("knn", "mean", [0.8, 0.9], [Difference(0.1, 0.0, 0.2)])]
    page = write_compare_page(tmp_path / "x.html", [side(folder, "<b>"), side(tmp_path, "a")], lines, "two images")
    (link,) = Page(page).named("a")
    assert link == {"href": "javascript%3Aalert%281%29%22%23%3F/report.html"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config", "demo.yaml", "--html", "x.html"], "add --compare runs/a runs/b"),
        (["--compare", "a", "b", "--html", "nowhere/x.html"], "would lie in nowhere, which is no folder"),
        (["--compare", "a", "b", "--html", "."], r"--html: \. is a folder; name a file"),
    ],
)
def test_a_page_that_cannot_be_is_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation.main(arguments)


def test_thumbnails_are_small(run):
    for each in page(run).named("img"):
        image = Image.open(io.BytesIO(base64.b64decode(each["src"].split(",")[1])))
        assert image.format == "JPEG" and max(image.size) <= 160 and not image.getexif()
