"""Accuracy and rejection in a run's files: from scores.parquet again, through torchmetrics, and what cannot be said, with the reason."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from torchmetrics.classification import MulticlassCalibrationError

import train
from clip_ood.joint import JointTable, with_auoscr_intervals
from clip_ood.metrics import augrc, auoscr, aurc, confidences, joint, scod_aurc
from clip_ood.metrics.confidences import BINS, CalibrationErrors
from clip_ood.outputs import Outputs, Reference
from clip_ood.runs.files import read_results
from clip_ood.scores import Scores

PROBE = {"linear_probe": {"epochs": 2, "batch_size": 16, "lr": 0.01}}
EVALUATION = {"figures": False, "report": True, "save_detector": False}


def run(root, name, method=PROBE, *options, **keys):
    settings = {"detectors": ["knn", "msp"], "evaluation": EVALUATION} | keys
    train.main(["--config", tiny_clip.config(root, name, method, **settings), *options])
    return root / "runs" / name


@pytest.fixture(scope="module")
def finished(root):
    return run(root, "finished")


def joint_of(folder):
    return tiny_clip.results(folder)["joint"]


def test_the_figures_follow_from_the_scores(finished):
    table, found = pq.read_table(finished / "scores.parquet"), joint_of(finished)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    inside = columns["role"] == "id"
    right = torch.from_numpy((columns["label"] == columns["prediction"])[inside].astype(bool))
    assert (found["predicted_by"], found["n_id"], found["absent"]) == ("head", inside.sum(), [])
    assert 0 < right.sum() < len(right)
    assert {(row["detector"], row["ood"]) for row in found["rows"]} == {
        (name, ood) for name in ("knn", "msp") for ood in ("", "near", "far", "lone", "mean")
    }
    for row in found["rows"]:
        scores = torch.from_numpy(columns[row["detector"]][inside])
        if row["ood"] == "":
            assert row["aurc"] == pytest.approx(aurc(scores, ~right), abs=1e-12)
            assert row["augrc"] == pytest.approx(augrc(scores, ~right), abs=1e-12)
            assert row["auoscr"] is row["scod_aurc"] is None
        elif row["ood"] != "mean":
            outside = torch.from_numpy(columns[row["detector"]][columns["set"] == row["ood"]])
            assert row["auoscr"] == pytest.approx(auoscr(scores, right, outside), abs=1e-12)
            assert row["scod_aurc"] == pytest.approx(scod_aurc(scores, right, outside, 0.5), abs=1e-12)
            assert row["n_ood"] == len(outside)
            assert ("auoscr" in row["intervals"]) == (row["ood"] != "lone")
        else:
            sets = [
                each
                for each in found["rows"]
                if each["detector"] == row["detector"] and each["ood"] not in ("", "mean")
            ]
            assert row["auoscr"] == pytest.approx(np.mean([each["auoscr"] for each in sets]))
            assert row["n_ood"] == sum(each["n_ood"] for each in sets)


def test_joint_csv_says_the_same_in_percent(finished):
    with (finished / "joint.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = joint_of(finished)["rows"]
    for line, row in zip(lines, rows, strict=True):
        assert (line["detector"], line["ood"], int(line["n_id"])) == (row["detector"], row["ood"], row["n_id"])
        for name in ("aurc", "augrc", "auoscr", "scod_aurc"):
            assert line[name] == ("" if row[name] is None else f"{100 * row[name]:.2f}")
        low, _ = row["intervals"].get("auoscr", (None, None))
        assert line["auoscr_low"] == ("" if low is None else f"{100 * low:.2f}")


def test_the_figures_are_those_of_torchmetrics(root, monkeypatch):
    """Another `compute` gives other figures: what the callback holds is no decoration."""
    monkeypatch.setattr(joint, "auoscr", lambda *about: 0.125)
    monkeypatch.setattr(joint, "aurc", lambda *about: 0.25)
    monkeypatch.setattr(confidences.BinaryCalibrationError, "compute", lambda self: torch.tensor(0.375))
    found = joint_of(run(root, "other"))
    assert {row["auoscr"] for row in found["rows"]} == {None, 0.125}
    assert {row["aurc"] for row in found["rows"]} == {None, 0.25}
    assert [(each["by"], each["value"]) for each in found["calibration_errors"]] == [("head", 0.375), ("text", 0.375)]


def test_results_of_earlier_versions_are_read(finished, tmp_path):
    content = tiny_clip.results(finished)
    del content["joint"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert "joint" not in read_results(tmp_path / "results.json")


def test_the_report_says_it(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Classes and rejections together" in page and "By class and by folder" in page
    assert "Calibration error of the head" in page and (finished / "classes.csv").is_file()


def test_without_ood_sets_and_without_a_head(root):
    data = {"root": f"{root}/data", "id": "id", "splits": {"val": 0.0, "test": 0.3}, "batch_size": 8}
    folder = run(root, "lonely", {"zero_shot": {}}, detectors=["mcm"], data=data)
    found = joint_of(folder)
    assert {each["metric"]: each["reason"] for each in found["absent"]} == {
        "calibration_error of head": "the method has no head",
        **dict.fromkeys(("auoscr", "scod_aurc"), "there is no OOD set (data.ood)"),
    }
    assert found["predicted_by"] == "text" and [row["ood"] for row in found["rows"]] == [""]
    assert "Classes and rejections together" in (folder / "report.html").read_text(encoding="utf-8")


def test_without_labels_nothing_is_claimed(root):
    data = {"root": f"{root}/data", "id": "near", "ood": {"far": "far"}, "splits": {"val": 0.0, "test": 0.3}}
    folder = run(root, "flat", {"zero_shot": {}}, detectors=["knn"], data=data)
    found = joint_of(folder)
    assert found["rows"] == found["calibration_errors"] == [] and found["predicted_by"] is None
    assert {each["reason"] for each in found["absent"]} == {"the ID test images have no labels"}
    assert not (folder / "joint.csv").exists() and (folder / "classes.csv").is_file()


ROLES = {"id_test": "id", "far": "ood"}
NAMED = Reference(class_names=("cat", "dog"))


def test_one_labelled_image_has_no_risk_coverage_curve():
    table = JointTable(["a"], ROLES, 1, NAMED)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    of_id = Scores(torch.arange(2), {"a": torch.tensor([1.0, 2.0])}, predictions=logits.argmax(1))
    table.update_id(Outputs(logits=logits), of_id, torch.tensor([0, -1]))
    of_ood = Scores(torch.arange(3), {"a": torch.tensor([0.0, 1.0, 3.0])})
    table.update_ood("far", of_ood)
    found = table.compute({"id_test": 2, "far": 3})
    assert found.absent["aurc"] == "a single ID test image has a label, and it takes two"
    assert [(row.ood, row.n_id, row.n_ood) for row in found.rows] == [("far", 1, 3), ("mean", 1, 3)]
    assert found.rows[0].metrics["auoscr"].value == 0.5
    assert found.calibration_errors == {"head": pytest.approx(1 - logits[0].softmax(0)[0].item(), abs=1e-6)}
    drawn = with_auoscr_intervals(found, {"id_test": of_id, "far": of_ood}, ROLES, torch.tensor([0, -1]))
    assert drawn.rows[0].metrics["auoscr"].low is None


def test_images_that_two_sets_share_count_once_in_the_interval_of_the_mean():
    """Two sets of the same images say less than two sets of different ones, so the interval of their mean is wider."""
    generator = torch.Generator().manual_seed(0)
    labels, roles = torch.arange(400) % 2, {"id_test": "id", "far": "ood", "again": "ood"}
    logits = torch.eye(2)[torch.where(torch.arange(400) < 300, labels, 1 - labels)]
    of_id = Scores(torch.arange(400), {"a": 1.5 + torch.randn(400, generator=generator)}, predictions=logits.argmax(1))
    of_ood = Scores(torch.arange(20), {"a": torch.randn(20, generator=generator)})
    table = JointTable(["a"], roles, 400, NAMED)
    table.update_id(Outputs(logits=logits), of_id, labels)
    for name in ("far", "again"):
        table.update_ood(name, of_ood)
    found = table.compute({"id_test": 400, "far": 20, "again": 20})
    scored = {"id_test": of_id, "far": of_ood, "again": of_ood}

    def width_of_mean(again):
        images = {
            "id_test": torch.arange(400),
            "far": torch.arange(1000, 1020),
            "again": torch.arange(again, again + 20),
        }
        mean = with_auoscr_intervals(found, scored, roles, labels, images).rows[-1]
        assert mean.ood == "mean"
        return mean.metrics["auoscr"].high - mean.metrics["auoscr"].low

    assert width_of_mean(1000) > 1.1 * width_of_mean(2000)


def test_a_single_class_is_always_right():
    found = JointTable(["a"], ROLES, 5, Reference(class_names=("cat",))).compute({})
    assert set(found.absent.values()) == {"there is a single class, so every prediction is right"} and not found.rows


def test_calibration_errors_against_a_loop_and_against_all_classes():
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(90, 4, generator=generator)).softmax(1)
    labels = torch.randint(4, (90,), generator=generator)
    confidence, classes = probabilities.max(1)
    errors, right = CalibrationErrors(), classes == labels
    for rows in (*torch.arange(90).split(32), torch.arange(0)):
        errors.count("head", confidence[rows].double(), right[rows])
    whole = MulticlassCalibrationError(4, BINS)
    assert errors.compute()["head"] == pytest.approx(whole(probabilities, labels).item(), abs=1e-6)
    total = 0.0
    for bin_ in range(BINS):
        rows = [i for i, each in enumerate(confidence.tolist()) if bin_ / BINS < each <= (bin_ + 1) / BINS]
        total += abs(sum(right[rows].tolist()) - sum(confidence[rows].tolist())) / 90
    assert errors.compute()["head"] == pytest.approx(total, abs=1e-6)


def test_probabilities_that_are_no_numbers_have_no_error():
    """Nor is a probability above 1 by rounding taken for a logit."""
    errors = CalibrationErrors()
    errors.count("head", torch.tensor([0.5, torch.nan]), torch.tensor([True, False]))
    errors.count("text", torch.tensor([1.0 + 1e-7, 0.9]), torch.tensor([True, True]))
    assert errors.compute() == {
        "head": "1 of its probabilities are NaN or infinite",
        "text": pytest.approx(0.05, abs=1e-6),
    }
