"""A study puts expected numbers beside those it obtained, for what is on this machine, and ends with an error if one is missed."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace

import pytest
import tiny_clip
import yaml
from studies import load_study

import study
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.study.expected import compared

PROBE = {"linear_probe": {"epochs": 2, "batch_size": 16}}
LINES = {"1-NN": {"detector": "knn"}, "probe": {"detector": "msp"}}
SOURCE = {"source": "a paper", "convention": "ID is positive"}


def written(root, name, sets, expected, **keys):
    path = root / f"{name}.yaml"
    keys = {
        "config": tiny_clip.config(root, "base", PROBE),
        "studies_root": f"{root}/studies",
        "shows": "expected",
        "changes": {"data.ood": sets},
        "axes": {"seed": {"seed": [1, 2]}},
        "lines": LINES,
        "expected": [each | SOURCE for each in expected],
    } | keys
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return str(path)


def lines_of(root, name):
    with (root / "studies" / name / f"{name}.expected.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def auroc(root, name, run, detector, ood):
    rows = tiny_clip.results(root / "studies" / name / run)["rows"]
    (row,) = [each for each in rows if (each["detector"], each["ood"], each["setting"]) == (detector, ood, "standard")]
    return row


def test_expected_and_obtained_stand_side_by_side(root, capsys):
    sets = {"near": {"folder": "near", "group": "close"}, "far": {"folder": "far", "group": "close"}}
    expected = [
        {"line": "1-NN", "at": {"seed": "2"}, "values": {"near": 50, "close": 60, "mean": 70}},
        {"line": "probe", "metric": "fpr95", "values": {"far": 10}},
    ]
    study.main(["--config", written(root, "side", sets, expected)])
    rows = lines_of(root, "side")
    assert [(row["at"], row["line"], row["ood"]) for row in rows] == [
        ("2", "1-NN", "near"), ("2", "1-NN", "close"), ("2", "1-NN", "mean"), ("1", "probe", "far"),
    ]  # fmt: skip
    near, far = (100 * auroc(root, "side", "2--1-nn", "knn", ood)["auroc"] for ood in ("near", "far"))
    assert float(rows[0]["obtained"]) == pytest.approx(near, abs=0.006)
    assert float(rows[0]["difference"]) == pytest.approx(near - 50, abs=0.006)
    assert float(rows[1]["obtained"]) == pytest.approx((near + far) / 2, abs=0.006) and not rows[1]["low"]
    assert (rows[0]["n_ood"], rows[1]["n_ood"], rows[2]["n_ood"]) == ("9", "16", "16")
    row = auroc(root, "side", "1--1-nn", "msp", "far")
    assert float(rows[3]["obtained"]) == pytest.approx(100 * row["fpr95"], abs=0.006)
    assert float(rows[3]["high"]) == pytest.approx(100 * row["intervals"]["fpr95"][1], abs=0.006)
    text = (root / "studies/side/side.md").read_text()
    assert "4 of 4 expected numbers are obtained here" in text and "1. a paper: ID is positive" in text
    assert "missed" not in text and (root / "studies/side/side.png").stat().st_size > 5000


def test_a_number_beyond_its_tolerance_ends_the_study_with_an_error(root):
    value = 100 * auroc(root, "side", "1--1-nn", "knn", "near")["auroc"]
    sets = {"near": "near", "far": "far"}
    for name, within in (("kept", 2.0), ("missed", 0.5)):
        path = written(root, name, sets, [{"line": "1-NN", "values": {"near": value - 1}, "within": within}])
        if name == "kept":
            study.main(["--config", path])
            continue
        with pytest.raises(UserError, match=r"1 expected number is missed .*1 · 1-NN · near · auroc \+1\.00"):
            study.main(["--config", path])
        assert "+1.00 missed" in (root / "studies/missed/missed.md").read_text()


def test_what_is_not_here_is_left_out_told_and_used_once_it_is_here(root, capsys):
    sets = {"near": "near", "lone": "lone", "ninco": {"catalog": "NINCO"}}
    expected = [{"line": "1-NN", "values": {"near": 50, "lone": 50, "ninco": 90, "mean": 60}, "within": 100}]
    with pytest.raises(ConfigError, match="ninco: NINCO is not under"):
        study.main(["--config", written(root, "part", sets, expected)])
    shutil.move(root / "data/lone", root / "lone")
    path = written(root, "part", sets, expected, leaves_out=["sets"])
    study.main(["--config", path])
    told = capsys.readouterr().out
    assert f"Not here: Image set lone is not under {root}/data" in told
    assert "Not here: Image set ninco, 5,879 images" in told and "clip-ood catalog get NINCO" in told
    assert [bool(row["obtained"]) for row in lines_of(root, "part")] == [True, False, False, False]
    assert "1 of 4 expected numbers are obtained here" in told
    shutil.move(root / "lone", root / "data/lone")
    study.main(["--config", path])
    assert [bool(row["obtained"]) for row in lines_of(root, "part")] == [True, True, False, False]
    assert not (root / "data/NINCO").exists()


def test_a_group_of_which_a_set_is_missing_has_no_mean(root):
    sets = {"near": {"folder": "near", "group": "a"}, "far": {"folder": "far", "group": "b"}}
    expected = [{"line": "1-NN", "values": {"a": 50, "b": 50, "mean": 50}}]
    plan = load_study(written(root, "groups", sets, expected, axes={}))
    rows = [
        {
            "detector": "knn",
            "setting": "standard",
            "ood": name,
            "group": group,
            "auroc": 0.5,
            "n_id": 4,
            "n_ood": 5,
            "intervals": {},
        }
        for name, group in (("near", "a"), ("far", "b"), ("mean", ""))
    ]
    results = {run: {"rows": rows} for run in plan.runs}
    assert [each.obtained for each in compared(plan, results)] == [50, 50, 50]
    plan = replace(plan, left_out={run: {"further": "b"} for run in plan.runs})
    assert [each.obtained for each in compared(plan, results)] == [50, None, None]
    assert [each.obtained for each in compared(plan, {})] == [None, None, None]


def test_encoders_that_are_not_here_are_named_with_their_size(root):
    axes = {"encoder": {"backbone": [{"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}]}}
    expected = [{"line": "1-NN", "values": {"near": 50}}]
    path = written(root, "remote", {"near": "near"}, expected, axes=axes, leaves_out=["sets", "encoders"])
    with pytest.raises(
        ConfigError,
        match=r"Nothing that remote needs .*\nEncoder ViT-B-32 laion2b_s34b_b79k: .* would be downloaded .* GB",
    ):
        load_study(path)


def test_no_ood_set_at_all_leaves_the_run_out(root):
    path = written(root, "none", {"a": "away"}, [{"line": "1-NN", "values": {"a": 1}}], leaves_out=["sets"])
    with pytest.raises(ConfigError, match="none of its OOD sets is here"):
        load_study(path)


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        (
            {"line": "2-NN", "values": {"near": 1}},
            "names the line .2-NN., which the study does not have. Did you mean 1-NN",
        ),
        (
            {"line": "1-NN", "at": {"sed": "1"}, "values": {"near": 1}},
            "names an axis that the study does not have: sed",
        ),
        ({"line": "1-NN", "at": {"seed": "3"}, "values": {"near": 1}}, "there is no '3'.* It has 1, 2"),
        ({"line": "1-NN", "values": {}}, "values"),
        ({"line": "1-NN", "values": {"neer": 1}}, r"1-NN has no OOD set or group 'neer'\. Did you mean near"),
        ({"line": "1-NN", "values": {"near": float("nan")}}, "values"),
        ({"line": "1-NN", "values": {"near": 100.5}}, "values"),
        ({"line": "1-NN", "metric": "aurok", "values": {"near": 1}}, "metric"),
    ],
)
def test_wrong_expectations_are_told_at_once(root, expected, told):
    with pytest.raises(ConfigError, match=told):
        study.main(["--config", written(root, "wrong", {"near": "near"}, [expected])])


def test_expected_numbers_need_a_study_that_shows_them(root):
    with pytest.raises(ConfigError, match="expected and shows: expected go together"):
        load_study(written(root, "wrong", {"near": "near"}, [{"line": "1-NN", "values": {"near": 1}}], shows="table"))
