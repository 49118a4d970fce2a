"""A threshold for each predicted class: what it flags, what it promises, which classes have none, and when it is refused."""

from __future__ import annotations

import csv
import io
import shutil

import judged_run
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clip_ood import load
from clip_ood.calibration import Calibration, Choice
from clip_ood.config.detect_checks import check
from clip_ood.config.detect_options import add_options
from clip_ood.detect.decisions import ClassDecision, Decision
from clip_ood.detect.save import hashes, seal
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError
from clip_ood.process.streams import Parser
from clip_ood.val_division import ValDivision

NAMES = ("cat", "dog", "fox", "owl")


def drawn(generator, n):
    """Scores of ID images, and the classes predicted for them: those of the first lie lower, the last is rare."""
    classes = torch.tensor([0.3, 0.3, 0.37, 0.03]).multinomial(n, replacement=True, generator=generator)
    return torch.randn(n, generator=generator) - 2.0 * (classes == 0) + 3.0 * (classes == 2), classes


@pytest.mark.parametrize("accept", [0.5, 0.9])
def test_an_image_is_compared_with_calibration_images_of_its_class(accept):
    generator = torch.Generator().manual_seed(0)
    scores, classes = drawn(generator, 150)
    scores = (4 * scores).round()  # equal ones too
    new, of_new = drawn(generator, 200)
    new, of_new = (4 * new).round(), of_new.where(torch.rand(200, generator=generator) < 0.9, -1)
    decision = ClassDecision("knn", Calibration(scores, classes=classes), accept, NAMES)
    expected = []
    for score, label in zip(new.tolist(), of_new.tolist(), strict=True):
        own = scores[classes == label].tolist()
        own = own if len(own) >= (9 if accept == 0.9 else 1) else scores.tolist()
        expected.append((1 + sum(each <= score for each in own)) / (len(own) + 1))
    assert decision.p_values(new, of_new).tolist() == pytest.approx(expected, rel=1e-14)
    assert decision.is_ood(new, of_new).tolist() == [p <= 1 - accept + 1e-12 for p in expected]
    assert set(decision.of_class) == ({0, 1, 2} if accept == 0.9 else {0, 1, 2, 3})


def test_in_each_predicted_class_no_more_id_images_are_flagged_than_stated():
    generator, flagged = torch.Generator().manual_seed(1), {"class": [], "all": []}
    for _ in range(300):
        scores, classes = drawn(generator, 200)
        calibration = Calibration(scores, classes=classes)
        new, of_new = drawn(generator, 1000)
        for name, decision in (
            ("class", ClassDecision("knn", calibration, 0.9, NAMES)),
            ("all", Decision("knn", calibration, 0.9)),
        ):
            is_ood = decision.is_ood(new, of_new)
            flagged[name].append([is_ood[of_new == label].double().mean().item() for label in range(3)])
    means, errors = (np.array(flagged["class"]).mean(0), np.array(flagged["class"]).std(0) / np.sqrt(300))
    assert (means <= 0.1 + 3 * errors).all() and (means > 0.07).all()
    of_all = np.array(flagged["all"]).mean(0)
    assert of_all[0] > 0.25 and of_all[2] < 0.01  # one threshold for all promises nothing for a class


def test_classes_that_share_the_threshold_of_all_are_named():
    scores, classes = drawn(torch.Generator().manual_seed(2), 150)
    told = ClassDecision("knn", Calibration(scores, classes=classes), 0.9, NAMES).told(10, 1)
    assert "one of 3 classes it accepts 90 % or more; 1 with fewer than 9 calibration images share" in told
    assert told.endswith("promises nothing for each of them (owl)")
    folds = Calibration(scores, by="approximate", classes=classes)
    assert "it accepts about 90 % or more" in ClassDecision("knn", folds, 0.9, NAMES).told(10, 1)


def test_one_threshold_for_all_is_told_as_such():
    scores, classes = drawn(torch.Generator().manual_seed(2), 40)
    calibration = Calibration(scores, classes=classes)
    told = ClassDecision("knn", calibration, 0.95, NAMES).told(10, 1)
    alone = Decision("knn", calibration, 0.95).told(10, 1)
    assert (
        told
        == f"{alone}; no class has a threshold of its own, since fewer than 19 calibration images are predicted as each"
    )


def test_images_that_chose_take_their_classes_with_them():
    scores, classes = drawn(torch.Generator().manual_seed(3), 80)
    division = ValDivision(halves=True, ood_val=9)
    found = division.calibrations({"a": scores, "b": scores}, {"a": Choice(2)}, {"a": 1, "b": 1}, classes)
    for name, rows in (("a", slice(1, None, 2)), ("b", slice(None))):
        order = scores[rows].argsort()
        assert torch.equal(found[name].classes, classes[rows][order])


@pytest.mark.slow
@pytest.mark.parametrize("predictor", ["linear_probe", "zero_shot"])
def test_a_folder_holds_the_predicted_classes_of_its_calibration_images(root, predictor):
    place = judged_run.make(root, f"by_{predictor}", predictor, detectors=["knn", "msp", "mcm"])
    saved, predictor = SavedDetector(place), load(place, "msp" if predictor == "linear_probe" else "mcm", accept=0.7)
    val = judged_run.scores(place, "val")
    column, found = predictor.column, saved.calibration(predictor.column)
    judged = predictor([root / "data" / "id" / path for path in val])
    expected = sorted((each.score, saved.reference.class_names.index(each.predicted_class)) for each in judged)
    assert np.allclose(np.stack([found.scores, found.classes], axis=1), expected, atol=1e-6)
    assert len({label for _, label in expected}) > 1
    new = sorted((root / "data" / "far").iterdir()) + sorted((root / "data" / "near").iterdir())
    by_class = load(place, column, accept=0.7, per_class=True)
    for each in by_class(new):
        own = [row.score for row in judged if row.predicted_class == each.predicted_class]
        own = own if len(own) >= 3 else [row.score for row in judged]
        p = (1 + sum(score <= each.score for score in own)) / (len(own) + 1)
        assert each.p_value == pytest.approx(p) and each.is_ood == (p <= 0.3 + 1e-12)
    assert [each.p_value for each in by_class(new)] != [each.p_value for each in predictor(new)]


@pytest.mark.slow
def test_what_is_printed_is_what_python_returns(root, run, capsys):
    folder = root / "data" / "far"
    judged_run.judged("--run", run, folder, "--per-class", "--accept", "0.7", "--detector", "msp")
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    found = load(run, "msp", accept=0.7, per_class=True)([row["path"] for row in rows])
    assert [float(row["p_value"]) for row in rows] == [each.p_value for each in found]
    assert (
        "msp by a threshold for each predicted class" in printed.err and "--per-class" in printed.err.splitlines()[-1]
    )


@pytest.mark.slow
def test_what_has_no_threshold_for_each_class_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="per_class sets a threshold for each class, and fdr has none"):
        load(run, fdr=0.2, per_class=True)
    parser = Parser()
    add_options(parser)
    with pytest.raises(UserError, match="--per-class sets a threshold for each class, and --fdr has none"):
        check(parser.parse_args(["--run", str(run), str(run), "--fdr", "0.2", "--per-class"]))
    old = tmp_path / "old"
    shutil.copytree(run / "detector", old)
    state = load_file(old / "state.safetensors")
    for kept, message in (
        ({}, "its run has no classes, is of an earlier version"),
        (
            {"calibration_class.knn": torch.full_like(state["calibration_class.knn"], 3)},
            "names classes that there are not",
        ),
    ):
        others = {name: value for name, value in state.items() if not name.startswith("calibration_class.")}
        save_file(others | kept, old / "state.safetensors")
        manifest = SavedDetector(old).manifest
        seal(old, manifest | {"files": manifest["files"] | hashes(old, [old / "state.safetensors"])})
        with pytest.raises(UserError, match=message):
            load(old, per_class=True)


@pytest.mark.slow
def test_cross_fitted_images_calibrate_by_the_classes_that_are_predicted_without_them(root):
    content = {"evaluation": {"figures": False, "report": False, "cross_fit": 3}, "detectors": ["knn", "msp"]}
    place = judged_run.make(root, "crossed", data={"splits": {"val": 0.0, "test": 0.0}}, **content)
    saved, train = SavedDetector(place), judged_run.scores(place, "train")
    found = saved.calibration("msp")
    judged = load(place, "msp")(
        [root / "data" / "id" / path for path in train]
    )  # recognised, and judged without themselves
    expected = sorted((each.score, saved.reference.class_names.index(each.predicted_class)) for each in judged)
    assert saved.class_predictor.by == "knn"
    assert np.allclose(np.stack([found.scores, found.classes], axis=1), expected, atol=1e-6)
    assert len(found.classes) == len(train) == 46 and found.by == "approximate"
    assert "about 95 %" in load(place, "msp", per_class=True, accept=0.95).decisions[0].told(1, 0)
