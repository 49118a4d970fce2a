"""Streams in whole runs on a tiny random CLIP: the table of its own, what stays apart from it, and what cannot be asked for."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import tiny_clip

import eval as evaluation
import train
from clip_ood.errors import ConfigError, UserError
from clip_ood.files.records import Damaged
from clip_ood.runs.files import read_results
from clip_ood.runs.stream_summary import joined_streams
from clip_ood.runs.stream_table import TITLE, USED

pytestmark = pytest.mark.slow

WORDS = ["sea star", "iron gate", "paper boat", "old nail", "blue ring", "wet stone", "round table", "loud bell"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny_clip.make(tmp_path_factory.mktemp("stream"))
    (root / "words.txt").write_text("\n".join(WORDS))
    return root


def run(root, name, *options, method=None, script=evaluation, **stream):
    keys = {"figures": False, "report": True, "save_detector": False, "stream": {"orders": 3, "batch_size": 8} | stream}
    config = tiny_clip.config(root, name, method or {"zero_shot": {}}, detectors=["knn", "mcm"], evaluation=keys)
    words = [f"--data.negative_words={root}/words.txt", "--data.negative_choice=given"]
    script.main(["--config", config, *words, *options])
    return root / "runs" / name


@pytest.fixture(scope="module")
def finished(root):
    return run(root, "finished")


def test_results_name_orders_mixture_batch_and_seeds(finished):
    found = tiny_clip.results(finished)["stream"]
    assert (found["seeds"], found["batch_size"], found["ood_share"]) == ([42, 43, 44], 8, None)
    assert {(row["method"], row["ood"]) for row in found["rows"]} == {
        (method, ood) for method in ("adaneg", "oodd", "clipscope") for ood in ("near", "far", "lone", "mean")
    }
    sizes = {row["ood"]: (row["n_id"], row["n_ood"]) for row in found["rows"]}
    assert sizes == {"near": (14, 9), "far": (14, 7), "lone": (14, 1), "mean": (14, 17)}
    for row in found["rows"]:
        assert len(row["auroc"]) == len(row["fpr95"]) == 3
    assert any(len(set(row["auroc"])) > 1 for row in found["rows"])


def test_stream_csv_says_the_same_in_percent(finished):
    rows = tiny_clip.results(finished)["stream"]["rows"]
    with (finished / "stream.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert (line["method"], line["ood"]) == (row["method"], row["ood"])
        for metric in ("auroc", "fpr95"):
            values = 100 * np.array(row[metric])
            told = [float(line[f"{metric}_{name}"]) for name in ("mean", "std", "min", "max")]
            assert told == pytest.approx([values.mean(), values.std(ddof=1), values.min(), values.max()], abs=0.006)
        assert (line["orders"], line["seeds"], line["batch_size"], line["ood_share"]) == ("3", "42-44", "8", "")


def test_no_other_file_has_scores_that_used_the_stream(finished):
    results = tiny_clip.results(finished)
    assert {row["detector"] for row in results["rows"]} == {"knn", "mcm"}
    for name in ("results.csv", "joint.csv", "classes.csv", "config.yaml"):
        text = (finished / name).read_text()
        assert ("adaneg" in text) == (name == "config.yaml")


def test_terminal_and_report_show_it_apart_with_the_sentence(root, capsys, finished):
    run(root, "told")
    told = capsys.readouterr().out
    assert told.index(USED[:40]) > told.index(TITLE) > told.index("mcm")
    page = (finished / "report.html").read_text()
    section = page[page.index("Test-time methods, on a stream") :]
    section = section[: section.index("</section>")]
    assert USED in page and "adaneg" in section and ">mcm<" not in section
    assert "adaneg" not in page[: page.index("Test-time methods, on a stream")]


def test_comparisons_never_show_it(root, capsys, finished):
    other = run(root, "other")
    capsys.readouterr()
    evaluation.main(["--compare", str(finished), str(other)])
    told = capsys.readouterr().out
    assert "knn" in told and not any(name in told for name in ("adaneg", "oodd", "clipscope", TITLE))
    for file in [each for each in root.rglob("compare-*") if each.is_file()]:
        assert not any(name in file.read_text(errors="replace") for name in ("adaneg", "clipscope"))


def test_the_same_run_has_the_same_stream_and_another_seed_another(root, finished):
    again = tiny_clip.results(run(root, "again"))["stream"]
    assert again == tiny_clip.results(finished)["stream"]
    assert tiny_clip.results(run(root, "seed7", "--seed=7"))["stream"]["seeds"] == [7, 8, 9]


def test_several_seeds_have_one_table_over_all_their_orders(root, capsys):
    folder = run(root, "seeds", "--seeds", "0", "10")
    told = capsys.readouterr().out
    joined = tiny_clip.results(folder)["stream"]
    each = [tiny_clip.results(folder / f"seed-{seed}")["stream"] for seed in (0, 10)]
    assert joined["seeds"] == [0, 1, 2, 10, 11, 12] and joined["run_seeds"] == [0, 0, 0, 10, 10, 10]
    assert joined["methods"] == each[0]["methods"] and len(joined["rows"]) == len(each[0]["rows"]) == 12
    with (folder / "stream.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for line, row, one, other in zip(lines, joined["rows"], each[0]["rows"], each[1]["rows"], strict=True):
        assert (row["method"], row["ood"]) == (one["method"], one["ood"]) == (line["method"], line["ood"])
        assert row["auroc"] == one["auroc"] + other["auroc"] and row["n_id"] == 14
        values = 100 * np.array(row["auroc"])
        assert float(line["auroc_mean"]) == pytest.approx(values.mean(), abs=0.006)
        assert float(line["auroc_std"]) == pytest.approx(values.std(ddof=1), abs=0.006)
        assert (line["orders"], line["seeds"], line["run_seeds"]) == ("6", "0-12", "2")
    told = told[told.rindex(TITLE) :]
    assert "over 6 orders (all of 2 seeds of the run, 0 and 10)" in told
    assert "all of 2 seeds of the run, 0 and 10" in (folder / "report.html").read_text()
    evaluation.main(["--run", str(folder)])
    assert tiny_clip.results(root / "runs/seeds-eval")["stream"] == joined


def test_seeds_with_other_numbers_of_images_name_their_mean_and_those_without_a_stream_are_left_out():
    row = {"method": "oodd", "ood": "near", "auroc": [0.5], "fpr95": [1.0], "n_id": 14, "n_ood": 9}
    about = {"batch_size": 8, "ood_share": None, "methods": {}}
    one = {"seeds": [0], **about, "rows": [row]}
    joined = joined_streams({0: one, 1: None, 2: {**one, "seeds": [2], "rows": [row | {"auroc": [0.7], "n_id": 15}]}})
    assert joined["rows"] == [row | {"auroc": [0.5, 0.7], "fpr95": [1.0, 1.0], "n_id": 14.5}]
    assert joined["run_seeds"] == [0, 2] and joined_streams({0: None}) is None


def test_a_share_and_parameters_are_carried_out(root):
    methods = [{"name": "oodd", "size": 5, "k": 2, "as": "small"}, "oodd"]
    found = tiny_clip.results(run(root, "share", methods=methods, ood_share=0.25, orders=1))["stream"]
    assert found["methods"] == {"small": {"name": "oodd", "size": 5, "k": 2}, "oodd": {"name": "oodd"}}
    assert {(row["n_id"], row["n_ood"]) for row in found["rows"] if row["ood"] == "near"} == {(14, 5)}


def test_an_earlier_table_does_not_stay(root):
    folder = run(root, "gone")
    config = tiny_clip.config(root, "gone", {"zero_shot": {}}, detectors=["knn"])
    evaluation.main(["--config", config, "--overwrite"])
    assert tiny_clip.results(folder)["stream"] is None and not (folder / "stream.csv").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--detectors=[knn, adaneg]"], "adaneg learns from the images that it scores.*evaluation.stream"),
        (["--evaluation.stream.methods=[adanag]"], "unknown name 'adanag'; nearest: adaneg"),
        (["--evaluation.stream.methods=[]"], "evaluation.stream.methods"),
        (["--evaluation.stream.methods=[{name: oodd, size: 0}]"], "oodd: size = 0, expected a whole number from 1 on"),
        (["--evaluation.stream.methods=[{name: adaneg, proxies: no}]"], "adaneg: proxies"),
        (["--evaluation.stream.batch_size=0"], "evaluation.stream.batch_size"),
        (["--evaluation.stream.orders=0"], "evaluation.stream.orders"),
        (["--evaluation.stream.ood_share=1"], "evaluation.stream.ood_share"),
        (
            ["--data.negative_words=null"],
            "evaluation.stream.methods: adaneg needs negative words: set data.negative_words",
        ),
        (["--data.ood={}"], "needs|mixes OOD images"),
        (["--data.splits.test=0", "--evaluation.cross_fit=2"], "needs ID test images"),
    ],
)
def test_what_cannot_be_is_refused_before_images_are_read(root, options, told, monkeypatch):
    monkeypatch.setattr("clip_ood.experiments.run.load_features", lambda *_: pytest.fail("images are read"))
    with pytest.raises((UserError, SystemExit), match=told):
        run(root, "refused", *options)


def test_fine_tuning_has_none_and_says_so(root):
    with pytest.raises(ConfigError, match="fine-tuning stores none"):
        run(root, "tuned", method={"finetune": {"epochs": 1, "warmup_epochs": 0}}, script=train)


def test_a_damaged_stream_is_reported(finished, tmp_path):
    content = tiny_clip.results(finished)
    content["stream"]["rows"][0]["auroc"].append(0.5)
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(Damaged, match="more or fewer values than orders"):
        read_results(tmp_path / "results.json")
