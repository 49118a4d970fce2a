"""Scores that are no numbers, or the same for every image: the detector is left out by name, and the run goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import forked
import numpy as np
import pytest
import tiny_clip
import torch
from detector_data import ALL, CLASSES, REFERENCE, TEST, TRAIN
from PIL import Image
from report_runs import Page
from tiny_clip import PROJECT

import eval as evaluation
import train
from clip_ood.detectors import build_detectors
from clip_ood.detectors.mahalanobis import RMD, Mahalanobis
from clip_ood.evaluation import DetectorSuite
from clip_ood.metrics.ood import ood_metrics
from clip_ood.metrics.score_range import ScoreRange
from clip_ood.outputs import Reference
from clip_ood.runs.results_table import print_table

pytestmark = pytest.mark.slow

SOFTMAXES = {"mcm", "ensemble", "msp", "gen", "kl_matching", "fdbd"}
GAUSSIANS = {"mahalanobis", "mahalanobis_pp", "rmd"}
PROBE = {"linear_probe": {"epochs": 2, "batch_size": 16}}
ONE_CLASS = "needs two classes or more: with one, its score is the same for every image"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The tiny CLIP; ID images of one class, the same one over and over, few; the same one as OOD."""
    root, generator = tiny_clip.make(tmp_path_factory.mktemp("useless")), np.random.default_rng(3)

    def pictures(folder: str, count: int, mean: int, same: bool = False) -> None:
        (root / "data" / folder).mkdir(parents=True)
        for number in range(count):
            if not same or number == 0:
                pixels = generator.normal(mean, 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((40, 36)).save(root / "data" / folder / f"{number}.png")

    pictures("one/cat", 24, 100)
    pictures("same/cat", 12, 90, same=True)
    pictures("same/dog", 12, 150, same=True)
    pictures("flat", 2, 100)
    pictures("few/cat", 2, 90)
    pictures("few/dog", 2, 150)
    shutil.copytree(root / "data/same/cat", root / "data/everything/cat")
    shutil.copytree(root / "data/same/cat", root / "data/everything/dog")
    return root


def conducted(root, name, method, **keys):
    """The results of a run; of `data` some keys."""
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near", "far": "far"}, "batch_size": 8}
    data |= {"splits": {"val": 0.2, "test": 0.3}} | keys.pop("data", {})
    config = tiny_clip.config(root, name, method, data=data, **keys)
    (evaluation if "zero_shot" in method else train).main(["--config", config])
    return tiny_clip.results(root / "runs" / name)


def reasons(results) -> dict[str, str]:
    return {each["detector"]: each["reason"] for each in results["omitted"]}


def columns(results) -> set[str]:
    return {row["detector"] for row in results["rows"]}


# One class, identical images


@pytest.mark.parametrize("ood", [{"near": "near"}, {}])
def test_with_one_class_no_softmax_is_taken_and_no_class_is_compared_with_all(root, ood):
    results = conducted(root, f"one_{len(ood)}", {"zero_shot": {}}, data={"id": "one", "ood": ood})
    assert reasons(results)["mcm"] == ONE_CLASS
    assert "images of two classes or more" in reasons(results)["rmd"]
    manifest = json.loads((root / "runs" / f"one_{len(ood)}" / "detector" / "detector.json").read_text())
    assert [each["column"] for each in manifest["detectors"]] == ["knn", "mahalanobis", "mahalanobis_pp"]
    assert results["accuracy"] is None and results["knn_accuracy"] is None  # of a single class, all are right


def test_with_one_class_every_softmax_of_a_head_is_left_out():
    head = REFERENCE.weight[:1], REFERENCE.bias[:1]
    one = Reference(("cat",), REFERENCE.text_embeddings[:1], 100.0, *head, REFERENCE.neglabel, REFERENCE.csp, -3.0)
    detectors, omitted = build_detectors(None, one, ALL)
    assert {each.detector for each in omitted if each.reason == ONE_CLASS} == SOFTMAXES
    assert {"max_logit", "energy", "she", "knn"} <= set(detectors)


def test_one_class_among_several_has_no_relative_distance():
    alone = replace(TRAIN, labels=torch.full((len(TRAIN.labels),), 2))
    suite = DetectorSuite(REFERENCE, ["rmd", "mahalanobis"])
    suite.update(alone)
    suite.fit()
    assert list(suite.detectors) == ["mahalanobis"] and "two classes" in suite.omitted[0].reason


def test_identical_images_of_a_class_have_no_covariance_not_one_of_rounding(root):
    results = conducted(root, "same", PROBE, data={"id": "same"})
    assert {"knn", "mcm", "msp", "energy"} <= columns(results)
    for name in (*GAUSSIANS, "mahalanobis_logits", "rmd_logits"):
        assert "the covariance is zero; expected rows that differ" in reasons(results)[name]


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("cls", [Mahalanobis, RMD])
def test_rounding_is_no_covariance_and_small_differences_are(cls, unit):
    generator = torch.Generator().manual_seed(0)
    centres = 40 + torch.rand(CLASSES, TRAIN.features.shape[1], generator=generator).double()
    same = replace(TRAIN, features=centres[TRAIN.labels].float())
    detector = cls(normalize=unit)
    detector.update(same)
    with pytest.raises(ValueError, match="within-class features: the covariance is zero"):
        detector.fit()
    noise = 1e-3 * torch.randn(TRAIN.features.shape, generator=generator).double()
    close = cls(normalize=unit)
    close.update(replace(TRAIN, features=centres[TRAIN.labels] + noise))
    close.fit()
    assert close.score(replace(TEST, features=TEST.features.double())).isfinite().all()


def test_where_everything_is_one_image_each_detector_is_named_with_what_it_said(root):
    with pytest.raises(
        ValueError, match=r"None of the detectors .*knn: it gives all \d+ images the same score, 1;"
    ) as error:
        conducted(root, "everything", PROBE, data={"id": "everything", "ood": {"cat": "same/cat"}})
    for name in ("mcm", "msp", "energy", "residual", "vim", "nnguide", "fdbd"):
        assert f"; {name}: it gives all" in str(error.value)


def test_the_same_score_for_all_id_images_is_of_use_where_ood_images_have_others(root):
    results = conducted(root, "same_id", {"zero_shot": {}}, data={"id": "everything"}, detectors=["knn"])
    assert columns(results) == {"knn"}


def test_without_ood_images_the_same_score_for_all_is_kept(root):
    results = conducted(root, "no_ood", {"zero_shot": {}}, data={"id": "everything", "ood": {}}, detectors=["knn"])
    assert results["rows"] == [] and "knn" not in reasons(results)


# Not a number


def test_a_detector_of_nan_is_left_out_and_the_others_have_their_numbers(root):
    specs = ["own_detectors.Logarithm", "knn", "msp"]
    results = conducted(root, "nan", PROBE, detectors=specs)
    assert columns(results) == {"knn", "msp"}
    assert reasons(results)["Logarithm"] == "9 of its 9 scores are NaN or infinite"
    assert results["calibration"]["default"] == "knn"
    manifest = json.loads((root / "runs/nan/detector/detector.json").read_text())
    assert manifest["omitted"][0]["detector"] == "Logarithm"
    expected = conducted(root, "sound", PROBE, detectors=specs[1:])
    assert results["rows"] == expected["rows"]
    without_val = conducted(root, "nan_test", PROBE, detectors=specs, data={"splits": {"val": 0.0, "test": 0.3}})
    assert columns(without_val) == {"knn", "msp"}


def test_a_detector_of_nan_ends_no_validation_and_is_never_chosen(root):
    name = "own_detectors.Logarithm"
    data = {"ood_val": "far", "ood": {"near": "near"}}
    results = conducted(root, "nan_val", PROBE, detectors=[name, "knn"], data=data, evaluation={"every_n_epochs": 1})
    assert columns(results) == {"knn"} and "Logarithm" in reasons(results)


def test_with_nan_alone_the_error_names_it(root):
    with pytest.raises(ValueError, match=r"None of the detectors .*Logarithm: 9 of its 9 scores are NaN or infinite"):
        conducted(root, "nan_alone", PROBE, detectors=["own_detectors.Logarithm"])


def test_a_head_that_diverged_costs_its_own_detectors_alone(root):
    results = conducted(root, "diverged", {"linear_probe": {"epochs": 5, "batch_size": 16, "lr": 1e30}})
    assert {"knn", "mcm", *GAUSSIANS} == columns(results)
    for name in ("msp", "ensemble", "vim", "residual", "she", "rmd_logits"):
        assert "training diverged (take a smaller learning rate)" in reasons(results)[name]
    assert results["accuracy"] is None


@pytest.mark.parametrize("field", ["features", "embeddings", "logits"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_costs_the_detectors_that_need_it(field, value):
    bad = getattr(TRAIN, field).clone()
    bad[7, 1] = value
    suite = DetectorSuite(REFERENCE)
    suite.update(replace(TRAIN, **{field: bad}))
    suite.fit()
    lost = {each.detector for each in suite.omitted if f"{field} of 1 ID training images are not finite" in each.reason}
    sound = DetectorSuite(REFERENCE)
    sound.update(TRAIN)
    sound.fit()
    assert lost == {name for name, each in sound.detectors.items() if field in each.requires} != set()
    expected, found = sound.score(TEST).scores, suite.score(TEST).scores
    assert set(found) == set(expected) - lost
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_one_image_that_is_no_number_has_no_score():
    suite = DetectorSuite(REFERENCE, ["knn", "msp"])
    suite.update(TRAIN)
    suite.fit()
    bad = TEST.features.clone()
    bad[2] = torch.nan
    expected, found = suite.score(TEST).scores, suite.score(replace(TEST, features=bad)).scores
    assert found["knn"].isnan().tolist() == [row == 2 for row in range(len(bad))]
    assert torch.equal(found["msp"], expected["msp"])
    assert torch.equal(found["knn"][3:], expected["knn"][3:])


def test_the_range_of_scores_over_batches():
    metric = ScoreRange(["sound", "same", "rounding", "huge", "bad"])
    for low, high in ((0.0, 1.0), (0.25, 0.5)):
        metric.update(
            torch.tensor([[low, 3.0, 1.0, -1e30, 0.0], [high, 3.0, 1.0 + 1e-7, 1e30, torch.inf if high == 1 else 0.5]])
        )
    metric.update(torch.zeros(0, 5))
    assert metric.broken() == {"bad": "1 of its 4 scores are NaN or infinite"}
    assert metric.constant().keys() == {"same", "rounding"}
    assert metric.constant()["same"] == "it gives all 4 images the same score, 3"
    alone = ScoreRange(["knn"])
    alone.update(torch.tensor([[1.0]]))
    assert alone.constant() == {}  # a single image


def test_two_processes_leave_out_the_same(root):
    detectors = ["own_detectors.Logarithm", "knn", "mcm"]
    data = {"root": f"{root}/data", "id": "same", "ood": {"near": "near", "lone": "lone"}, "batch_size": 8}
    data |= {"splits": {"val": 0.2, "test": 0.3}}
    config = tiny_clip.config(root, "two", {"zero_shot": {}}, data=data, detectors=detectors)
    command = [sys.executable, "eval.py", "--config", config, "--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT / "tests")}
    done = forked.run(command, cwd=PROJECT, env=environment, timeout=180)
    assert done.returncode == 0, done.stderr
    results = tiny_clip.results(root / "runs" / "two")
    assert columns(results) == {"knn", "mcm"} and "NaN" in reasons(results)["Logarithm"]


# Intervals


def test_one_image_has_no_interval():
    many, one = torch.arange(30.0), torch.tensor([4.5])
    for inside, outside in ((many, one), (one, many)):
        for estimate in ood_metrics(inside, outside, threshold=3.0).values():
            assert (estimate.low, estimate.high) == (None, None)
    assert ood_metrics(many, torch.tensor([4.5, 5.5]))["auroc"].low is not None


def test_neither_the_table_nor_the_page_shows_one(root, capsys):
    ood = {"near": "near", "lone": "lone"}
    results = conducted(root, "lone", PROBE, data={"ood": ood}, evaluation={"figures": False})
    said = capsys.readouterr().out
    rows = {(row["detector"], row["ood"]): row for row in results["rows"]}
    for detector in columns(results):
        assert rows[detector, "lone"]["intervals"] == rows[detector, "mean"]["intervals"] == {}
        assert set(rows[detector, "near"]["intervals"]) > {"auroc", "fpr95"}
    note = "lone has a single image: its AUROC has no interval, and neither has a mean with it"
    page = Page(root / "runs" / "lone" / "report.html")
    assert note in said and note in page.text and "50.0]" not in said


def test_a_single_id_image_is_told(root, capsys):
    results = conducted(root, "flat", {"zero_shot": {}}, data={"id": "flat"})
    assert all(row["intervals"] == {} for row in results["rows"])
    assert "There is a single ID test image: no AUROC has an interval" in capsys.readouterr().out


def test_wide_intervals_are_called_useless_in_the_table_and_on_the_page(root, capsys):
    results = conducted(root, "wide", PROBE, evaluation={"figures": False})
    said = capsys.readouterr().out
    widths = {
        (row["detector"], row["ood"]): row["intervals"]["auroc"][1] - row["intervals"]["auroc"][0]
        for row in results["rows"]
    }
    useless = sum(width > 0.2 for width in widths.values())
    assert 0 < useless < len(widths)
    note = f"{useless} of {len(widths)} AUROCs have a useless 95 % interval"
    page = Page(root / "runs" / "wide" / "report.html")
    assert note in said and note in page.text
    shown = next(line.split() for line in said.splitlines() if line.split()[:1] == ["msp"])
    ends = [cell for cell in shown if "]" in cell]
    assert [end.endswith("?") for end in ends] == [widths["msp", ood] > 0.2 for ood in ("far", "near", "mean")]
    marked = [each for each in page.named("small") if each.get("class") == "useless"]
    assert len([each for each in marked if "wider than 20 points" in each["title"]]) >= useless


def test_a_narrow_interval_is_not_called_useless(capsys):
    row = {"detector": "knn", "setting": "standard", "ood": "near", "auroc": 0.8, "fpr95": 0.5, "n_id": 9, "n_ood": 9}
    results = {"run": "r", "method": "m", "encoder": "e", "seeds": [1], "omitted": [], "notes": [], "sweep": None}
    results |= {"accuracy": None, "knn_accuracy": None, "pseudo_labels": None, "bank": {"images": 1, "per_class": None}}
    for ends, doubtful in (([0.71, 0.9], False), ([0.69, 0.9], True)):
        rows = [row | {"intervals": {"auroc": ends}}, row | {"ood": "mean", "intervals": {}}]
        print_table(results | {"rows": rows})
        assert ("useless" in (said := capsys.readouterr().out)) == doubtful and ("?" in said) == doubtful


def test_nan_of_another_package_is_left_to_the_suite(monkeypatch):
    suite = DetectorSuite(REFERENCE, ["pytorch_ood.NCI", "knn"])
    suite.update(TRAIN)
    suite.fit()
    peer = suite.detectors["NCI"].peer
    monkeypatch.setattr(peer, "predict_features", lambda values: torch.full((len(values),), torch.nan))
    scores = suite.score(TEST)
    metric = ScoreRange(list(suite.detectors))
    metric.update(scores.matrix(metric.detectors))
    assert metric.broken().keys() == {"NCI"}


def test_an_error_without_words_keeps_its_traceback():
    code = (
        "from clip_ood.detectors.statistic import Statistic; from clip_ood.command_line import guarded;"
        "guarded(Statistic().key)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr
