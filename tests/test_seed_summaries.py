"""What a run over several seeds says of them: nothing of one seed stands for all, what a seed lacks is named, and intervals
come from the images where these are as published."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from report_runs import Page
from sklearn.metrics import roc_auc_score

import eval as evaluation
import study
import train
from clip_ood.metrics import auroc_influence, rank_scores
from clip_ood.metrics.intervals import wilson
from clip_ood.report.run_page import write_seeds_report
from clip_ood.runs.results_files import write_mean_table
from clip_ood.runs.results_table import print_table
from clip_ood.runs.summary import mean_rows, summarise

PROBE = {"linear_probe": {"epochs": 4, "batch_size": 16, "lr": 0.01}}
SEEDS = ("1", "2", "3")
TRAIN, TEST = 17, 9
SPLIT = {"redrawn": True, "train": TRAIN, "val": 20, "test": TEST}  # 46 images, divided class by class


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny_clip.make(tmp_path_factory.mktemp("summaries"))
    for part, numbers in {"train": range(8), "test": range(8, 14)}.items():
        for name in tiny_clip.CLASSES:
            (root / "data" / "published" / part / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(root / "data" / "id" / name / f"{number}.png", root / "data" / "published" / part / name)
    return root


@pytest.fixture(scope="module")
def redrawn(root):
    keys = {"data": {"root": f"{root}/data", "id": "id", "ood": {"near": "near", "far": "far"}, "batch_size": 8}}
    keys["data"]["splits"] = {"val": 0.45, "test": 0.2}
    train.main(["--config", tiny_clip.config(root, "redrawn", PROBE, **keys), "--seeds", *SEEDS])
    evaluation.main(["--config", tiny_clip.config(root, "untrained", {"zero_shot": {}}, **keys), "--seeds", *SEEDS])
    return root / "runs" / "redrawn"


def published(root, name, method, **sets):
    """A run over seeds on images that come divided; `sets` are further keys of its train, test and OOD images."""
    of_id = {part: {"folder": f"published/{part}"} | sets.get(part, {}) for part in ("train", "test")}
    data = {"root": f"{root}/data", "id": of_id, "ood": {"near": "near", "far": {"folder": "far"}}, "batch_size": 8}
    keys = {"data": data | {"splits": {"val": 0.25}}}
    main = train.main if "linear_probe" in method else evaluation.main
    main(["--config", tiny_clip.config(root, name, method, **keys), "--seeds", *SEEDS])
    return root / "runs" / name


def copied(run: Path, place: Path) -> Path:
    return shutil.copytree(run, place / run.name)


def changed(run: Path, seed: str, change) -> None:
    """Changes results.json of one seed of a run."""
    path = run / f"seed-{seed}" / "results.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def summed(run: Path) -> dict:
    """The run's own results, written again from its seeds'."""
    content = summarise(run, list(map(int, SEEDS)))
    (run / "results.json").write_text(json.dumps(content))
    write_mean_table(run / "results.csv", content["rows"])
    write_seeds_report(run)
    return content


def without(run: Path, detector: str, *seeds: str) -> None:
    """The run as if the detector had been left out in these seeds."""

    def leave_out(content):
        content["rows"] = [row for row in content["rows"] if row["detector"] != detector]
        content["omitted"].append({"detector": detector, "reason": "a class has no image that is predicted right"})

    for seed in seeds:
        changed(run, seed, leave_out)
        path = run / f"seed-{seed}" / "scores.parquet"
        pq.write_table(pq.read_table(path).drop_columns([detector]), path)


# Nothing of one seed stands for all


def test_the_split_is_recorded(redrawn, root):
    assert tiny_clip.results(redrawn)["split"] == SPLIT
    assert tiny_clip.results(redrawn / "seed-2")["split"] == SPLIT


@pytest.mark.parametrize("keys", [{"evaluation.bank_per_class": 2}, {"method.linear_probe.per_class": 2}])
def test_draws_of_training_images_do_not_shrink_the_split(redrawn, root, keys):
    options = [f"--{key}={value}" for key, value in keys.items()]
    train.main(["--config", str(root / "redrawn.yaml"), "--seeds", "1", "2", "--name=few", "--overwrite", *options])
    assert tiny_clip.results(root / "runs" / "few")["split"] == SPLIT


def test_calibrations_are_listed_by_seed(redrawn):
    listed = tiny_clip.results(redrawn)["calibration"]
    own = {seed: tiny_clip.results(redrawn / f"seed-{seed}")["calibration"] for seed in SEEDS}
    assert [each["seed"] for each in listed] == [1, 2, 3]
    assert all({key: each[key] for key in each if key != "seed"} == own[str(each["seed"])] for each in listed)
    assert len({json.dumps(each["thresholds"]) for each in listed}) == 3


def test_values_that_differ_are_averaged_or_all_told(redrawn, tmp_path):
    run = copied(redrawn, tmp_path)
    for seed, number in zip(SEEDS, (3, 5, 9), strict=True):
        told = {"images": number, "classes": 3, "fewest": number - 2, "most": number + 2}
        bank, versions = {"images": 10 * number, "per_class": None}, {"torch": "2.6" if seed == "1" else "2.7"}
        note = [{"detector": "knn", "note": f"k = {number}"}, {"detector": "msp", "note": "as always"}]
        changed(run, seed, lambda c, n=note, t=told, b=bank, v=versions: c.update(
            notes=n, trained_on=t, bank=b, versions=v, knn_accuracy=None if n[0]["note"] == "k = 3" else 0.5))  # fmt: skip
    content = summed(run)
    assert content["trained_on"] == {"images": 5.7, "classes": 3, "fewest": 1, "most": 11}
    assert content["bank"] == {"images": 56.7, "per_class": None} and content["versions"] == {"torch": "2.6, 2.7"}
    assert content["notes"] == [
        {"detector": "knn", "note": "k = 3", "seeds": [1]},
        {"detector": "msp", "note": "as always"},
        {"detector": "knn", "note": "k = 5", "seeds": [2]},
        {"detector": "knn", "note": "k = 9", "seeds": [3]},
    ]
    text = Page(run / "report.html").text
    assert "knn: k = 5 (seed 2)" in text and "k-NN accuracy 50.0 % (2 of 3 seeds)" in text


@pytest.mark.parametrize("lacking", [("1",), ("2",), ("1", "3")])
def test_a_detector_that_some_seeds_lack_is_named_with_its_number_of_seeds(redrawn, tmp_path, capsys, lacking):
    run = copied(redrawn, tmp_path)
    without(run, "she", *lacking)
    content, having = summed(run), [seed for seed in SEEDS if seed not in lacking]
    few = f"{len(having)} of 3 seeds"
    rows = [row for row in content["rows"] if row["detector"] == "she"]
    own = [tiny_clip.results(run / f"seed-{seed}")["rows"] for seed in having]
    assert len(rows) == 3 and {row["seeds"] for row in content["rows"] if row["detector"] != "she"} == {3}
    for row in rows:
        values = [
            each["auroc"] for listed in own for each in listed if (each["detector"], each["ood"]) == ("she", row["ood"])
        ]
        assert row["seeds"] == len(values) and row["auroc"] == pytest.approx(np.mean(values))
        alone = len(values) == 1
        assert (row["std"]["auroc"] is None) == alone and (row["intervals"] == {}) == alone
    print_table(content)
    shown = capsys.readouterr().out
    assert (
        f"she: {few}" in shown
        and f"predicted right (seed{'s' if len(lacking) > 1 else ''} {', '.join(lacking)})" in shown
    )
    assert f"she | {few}" in [cell for line in Page(run / "report.html").tables[0] for cell in line]
    with (run / "results.csv").open(newline="") as file:
        table = {(row["detector"], row["ood"]): row for row in csv.DictReader(file)}
    assert table["she", "mean"]["seeds"] == str(len(having)) and table["knn", "mean"]["seeds"] == "3"
    low, high = next(
        row["intervals"]["auroc"] for row in content["rows"] if (row["detector"], row["ood"]) == ("knn", "mean")
    )
    assert (table["knn", "mean"]["auroc_low"], table["knn", "mean"]["auroc_high"]) == (
        f"{100 * low:.2f}",
        f"{100 * high:.2f}",
    )


def test_means_are_over_the_seeds_that_have_a_row():
    row = {"setting": "standard", "group": "", "n_id": 9, "n_ood": 4, "intervals": {"auroc": [0, 1]}}
    metrics = ("auroc", "fpr95", "fpr95_ood_positive", "aupr_in", "aupr_out", "f1", "best_f1")
    of_seed = {
        seed: [{"detector": name, "ood": "x", **row, **dict.fromkeys(metrics, seed / 10)} for name in names]
        for seed, names in {1: ["a"], 2: ["b", "a"], 3: ["b", "c"]}.items()
    }
    joined = {each["detector"]: each for each in mean_rows(of_seed, lambda row, rows: {"auroc": [len(rows)] * 2})}
    assert {name: each["intervals"] for name, each in joined.items()} == {
        "a": {"auroc": [2, 2]},
        "b": {"auroc": [2, 2]},
        "c": {},
    }
    assert (joined["a"]["auroc"], joined["b"]["auroc"]) == pytest.approx((0.15, 0.25))
    assert (
        joined["a"]["seeds"] == joined["b"]["seeds"] == 2
        and joined["c"]["seeds"] == 1
        and joined["c"]["std"]["auroc"] is None
    )


def compared(capsys, *specs, page=None):
    """Rows of the CSV by (detector, set, run), the Markdown, and what was printed."""
    capsys.readouterr()
    evaluation.main(["--compare", *map(str, specs), *([] if page is None else ["--html", str(page)])])
    shown = capsys.readouterr().out
    markdown, table = shown.strip().split("Written: ")[1].splitlines()[0].split(", ")[:2]
    with Path(table).open(newline="") as file:
        rows = {(row["detector"], row["ood"], row["run"]): row for row in csv.DictReader(file)}
    return rows, Path(markdown).read_text(), shown


def test_a_comparison_names_detectors_that_some_seeds_lack(redrawn, root, tmp_path, capsys):
    run = copied(redrawn, tmp_path)
    without(run, "rmd", "1")
    without(run, "knn", "2", "3")
    summed(run)
    rows, markdown, shown = compared(capsys, run, root / "runs" / "untrained", page=tmp_path / "page.html")
    left_out = "Left out: knn: 1 of 3 seeds, and a mean over seeds needs two or more"
    assert rows["rmd", "mean", "untrained"]["seeds"] == "2" and rows["mcm", "mean", "untrained"]["seeds"] == "3"
    assert not [key for key in rows if key[0] == "knn"]
    for text in (markdown, shown, Page(tmp_path / "page.html").text):
        assert "rmd: 2 of 3 seeds" in text and left_out in text


def test_captions_say_what_intervals_over_redrawn_splits_speak_of(redrawn, root, capsys, tmp_path):
    _, markdown, shown = compared(capsys, redrawn, root / "runs" / "untrained", page=tmp_path / "page.html")
    told = f"t(J − 1) · s · √(1/J + {TEST}/{TRAIN}), J = 3): they speak of other draws of this pool of ID images, against the same OOD images"
    print_table(tiny_clip.results(redrawn))
    printed = capsys.readouterr().out
    for text in (markdown, shown, printed, Page(tmp_path / "page.html").text):
        assert told in " ".join(text.split())
    assert "standard deviation over 3 seeds" in " ".join(printed.split()) and "± the standard deviation" in markdown


def test_runs_of_an_earlier_version_are_not_guessed_at(redrawn, root, tmp_path, capsys):
    run = copied(redrawn, root / "runs" / "earlier")
    for seed in SEEDS:
        changed(run, seed, lambda content: content.pop("split"))
    assert summed(run)["split"] is None and {str(row["intervals"]) for row in tiny_clip.results(run)["rows"]} == {"{}"}
    print_table(tiny_clip.results(run))
    assert "No 95 % intervals: a seed was run by an earlier version" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match=r"earlier version.* Score it again \(python eval.py --run .*redrawn\)"):
        evaluation.main(["--compare", str(run), str(root / "runs" / "untrained")])
    evaluation.main(["--run", str(run), "--name=scored_again"])
    rows, _, _ = compared(capsys, root / "runs" / "scored_again", root / "runs" / "untrained")
    assert rows["mcm", "mean", "untrained"]["seeds"] == "3"


# Published splits


@pytest.fixture(scope="module")
def given(root):
    return published(root, "given", PROBE), published(root, "given_zero", {"zero_shot": {}})


def scores(run, seed, detector, ood):
    rows = pq.read_table(run / f"seed-{seed}" / "scores.parquet").to_pylist()
    return [np.array([row[detector] for row in rows if row["set"] == name]) for name in ("id_test", ood)]


def delong(of_seed):
    """Mean over seeds of the pairs (ID, OOD) that are won, and its standard error, from each image's mean over the seeds."""
    wins = np.mean([(a[:, None] > b) + 0.5 * (a[:, None] == b) for a, b in of_seed], axis=0)
    return wins.mean(), math.sqrt(wins.mean(1).var(ddof=1) / wins.shape[0] + wins.mean(0).var(ddof=1) / wins.shape[1])


def around(value, error, found):
    """The interval of `clip_ood.metrics.interval`."""
    (id_1, ood_1), (k_id, k_ood) = found[0].largest, (min(each.misplaced[k] for each in found) for k in (0, 1))
    extra = max(
        id_1 / (k_id + 12) * max(1, (k_ood + 1) / (k_id + 1)) ** 0.25,
        ood_1 / (k_ood + 12) * max(1, (k_id + 1) / (k_ood + 1)) ** 0.25,
    )
    extra = extra if min(k_id, k_ood) and error else max(id_1, ood_1)
    if value in (0, 1):
        return wilson(value, 1 / extra, 1.959964)
    spread = value * (1 - value)
    logit, margin = (
        math.log(value / (1 - value)),
        1.959964 * math.sqrt((error**2 / spread + extra) / spread),
    )
    return [1 / (1 + math.exp(-(logit - margin))), 1 / (1 + math.exp(-(logit + margin)))]


def test_intervals_on_published_images_come_from_the_images(given):
    content = tiny_clip.results(given[0])
    assert content["split"] == {"redrawn": False, "train": 18, "val": 6, "test": 18}
    for row in content["rows"]:
        if row["ood"] == "mean":
            continue
        of_seed = [scores(given[0], seed, row["detector"], row["ood"]) for seed in SEEDS]
        value, error = delong(of_seed)
        found = [auroc_influence(rank_scores(*map(torch.from_numpy, each))) for each in of_seed]
        ends = around(value, error, found)
        assert row["auroc"] == pytest.approx(value) and row["intervals"] == {"auroc": pytest.approx(ends, abs=1e-6)}
        aurocs = [roc_auc_score(np.repeat([1, 0], list(map(len, each))), np.concatenate(each)) for each in of_seed]
        assert row["std"]["auroc"] == pytest.approx(np.std(aurocs, ddof=1), abs=1e-9)


def test_differences_on_published_images_come_from_the_images(given, capsys):
    rows, markdown, _ = compared(capsys, f"{given[1]}:mcm", f"{given[0]}:msp")
    wins = []
    for run, detector in ((given[1], "mcm"), (given[0], "msp")):
        pairs = [scores(run, seed, detector, "near") for seed in SEEDS]
        wins.append(np.array([(a[:, None] > b) + 0.5 * (a[:, None] == b) for a, b in pairs]))
    change = wins[1] - wins[0]
    mean = change.mean(0)
    margin = 1.959964 * math.sqrt(mean.mean(1).var(ddof=1) / len(mean) + mean.mean(0).var(ddof=1) / mean.shape[1])
    row = rows["mcm / msp", "near", "given:msp"]
    expected = [
        100 * x for x in (mean.mean(), mean.mean() - margin, mean.mean() + margin, change.mean((1, 2)).std(ddof=1))
    ]
    assert [float(row[key]) for key in ("difference", "low", "high", "std")] == pytest.approx(expected, abs=0.006)
    assert "each image's mean over 3 seeds" in markdown and "± the standard deviation over the seeds" in markdown


def test_draws_of_published_images_are_followed_by_image(root):
    sets = {"train": {"per_class": 6}, "test": {"per_class": 3}}
    run = published(root, "sampled", {"zero_shot": {}}, **sets)
    assert tiny_clip.results(run)["split"]["redrawn"] is False
    paths = [
        {
            row["path"]
            for row in pq.read_table(run / f"seed-{seed}" / "scores.parquet").to_pylist()
            if row["set"] == "id_test"
        }
        for seed in SEEDS
    ]
    assert len(set.union(*paths)) > len(paths[0]) == 9
    contributions = {}
    for seed in SEEDS:
        rows = [
            r
            for r in pq.read_table(run / f"seed-{seed}" / "scores.parquet").to_pylist()
            if r["set"] in ("id_test", "near")
        ]
        inside, outside = ([r for r in rows if r["set"] == name] for name in ("id_test", "near"))
        wins = np.array([[(a["mcm"] > b["mcm"]) + 0.5 * (a["mcm"] == b["mcm"]) for b in outside] for a in inside])
        for part, means in ((inside, wins.mean(1)), (outside, wins.mean(0))):
            for r, value in zip(part, means, strict=True):
                off = (value - wins.mean()) / math.sqrt(len(part) * (len(part) - 1)) / 3
                contributions[r["set"], r["path"]] = contributions.get((r["set"], r["path"]), 0) + off
    error, of_seed = math.sqrt(sum(each**2 for each in contributions.values())), []
    for seed in SEEDS:
        of_seed.append(auroc_influence(rank_scores(*map(torch.from_numpy, scores(run, seed, "mcm", "near")))))
    (row,) = [r for r in tiny_clip.results(run)["rows"] if (r["detector"], r["ood"]) == ("mcm", "near")]
    ends = around(row["auroc"], error, of_seed)
    assert row["intervals"]["auroc"] == pytest.approx(ends)


# Studies


def test_a_study_names_detectors_that_seeds_lack_and_has_intervals(redrawn, root, capsys):
    lines = {"1-NN": {"detector": "knn"}, "SHE": {"detector": "she"}, "MSP": {"detector": "msp"}}
    path = root / "lacking.yaml"
    keys = {"config": str(root / "redrawn.yaml"), "studies_root": f"{root}/studies", "shows": "table", "lines": lines}
    path.write_text(json.dumps(keys | {"changes": {"seeds": [1, 2, 3]}}))
    study.main(["--config", str(path)])
    folder = root / "studies" / "lacking"
    run = folder / "1-nn"
    without(run, "she", "1")
    without(run, "msp", *SEEDS)
    summed(run)
    study.main(["--config", str(path)])
    text = (folder / "lacking.md").read_text()
    assert "SHE, 1-nn: she in 2 of 3 seeds (a class has no image that is predicted right (seed 1))" in text
    assert "MSP, 1-nn: msp in 0 of 3 seeds (a class has no image that is predicted right)" in text
    with (folder / "lacking.csv").open(newline="") as file:
        rows = {(row["line"], row["ood"]): row for row in csv.DictReader(file)}
    assert rows["SHE", "mean"]["seeds"] == "2" and rows["1-NN", "mean"]["seeds"] == "3"
    theirs = next(r for r in tiny_clip.results(run)["rows"] if (r["detector"], r["ood"]) == ("knn", "mean"))
    ends = [100 * each for each in theirs["intervals"]["auroc"]]
    assert [float(rows["1-NN", "mean"][key]) for key in ("auroc_low", "auroc_high")] == pytest.approx(ends, abs=0.006)
    assert f"{ends[0]:.1f} – {ends[1]:.1f}" in text and "Mean ± standard deviation over 3 seeds." in text
    assert "they speak of other draws of this pool" in text
