"""Classes that are held out play OOD images, each once, for what was fitted on the others."""

from __future__ import annotations

import shutil

import judged_run
import numpy as np
import pytest
import tiny_clip
import torch
from judged_run import cross_fitted as make
from PIL import Image
from sklearn.metrics import roc_auc_score

from clip_ood import load
from clip_ood.cross_fit import folds
from clip_ood.detectors.knn import KNN
from clip_ood.outputs import Outputs


@pytest.fixture(scope="module")
def four(root):
    """Four classes of twelve images."""
    for name, source in (("a", "cat"), ("b", "dog"), ("c", "fox"), ("d", "cat")):
        folder = root / "data/four" / name
        folder.mkdir(parents=True)
        for number in range(12):
            with Image.open(root / f"data/id/{source}/{number}.png") as image:
                image.transpose(Image.Transpose.ROTATE_90 if name == "d" else Image.Transpose.ROTATE_180).save(
                    folder / f"{number}.png"
                )
    return "four"


@pytest.mark.parametrize("method, detectors", [("zero_shot", ["knn", "mcm"]), ("linear_probe", ["knn", "msp"])])
def test_each_class_is_held_out_once(root, four, method, detectors):
    keys = {"figures": False, "report": True, "hold_out_classes": 2}
    data = {"id": four, "ood": {}, "splits": {"val": 0, "test": 0.25}}
    run = make(root, f"held_{method}", method, data, detectors=detectors, evaluation=keys)
    held_out = tiny_clip.results(run)["held_out"]
    assert sorted(name for group in held_out["groups"] for name in group["classes"]) == ["a", "b", "c", "d"]
    for group in held_out["groups"]:
        assert list(group["auroc"]) == detectors and (group["n_id"], group["n_ood"]) == (4, 18)
    means = [np.mean([group["auroc"][name] for group in held_out["groups"]]) for name in held_out["mean"]]
    assert list(held_out["mean"].values()) == pytest.approx(means) and means == sorted(means, reverse=True)
    assert "Which detector, without OOD images?" in (run / "report.html").read_text()


def test_a_held_out_class_is_told_from_what_was_fitted_on_the_others(root, four):
    """The AUROC of k-NN is that of the images themselves."""
    keys = {"figures": False, "report": False, "hold_out_classes": 2}
    data = {"id": four, "ood": {}, "splits": {"val": 0, "test": 0.25}}
    predictor = load(make(root, "encoder", detectors=["knn"]))  # has the same encoder
    run = make(root, "held_knn", "zero_shot", data, detectors=["knn"], evaluation=keys)
    scored = judged_run.scores(run, "id")
    train = [
        path
        for path in sorted((root / "data/four").rglob("*.png"))
        if path.relative_to(root / "data/four").as_posix() not in scored
    ]
    with torch.inference_mode():
        pixels = torch.stack([predictor.backbone.transform(Image.open(path).convert("RGB")) for path in train])
        found = predictor.outputs(pixels).features
    labels = np.array(["abcd".index(path.parent.name) for path in train])
    for group in tiny_clip.results(run)["held_out"]["groups"]:
        gone = np.isin(labels, ["abcd".index(name) for name in group["classes"]])
        inside = np.flatnonzero(~gone)
        tested = inside[folds(inside, labels[inside], 5, seed=42) == 0]
        knn = KNN()
        knn.update(Outputs(features=found[np.setdiff1d(inside, tested)]))
        knn.fit()
        scores = knn.score(Outputs(features=found[np.concatenate([tested, np.flatnonzero(gone)])]))
        truth = [1] * len(tested) + [0] * int(gone.sum())
        assert group["auroc"]["knn"] == pytest.approx(roc_auc_score(truth, scores))


def test_three_classes_are_too_few_to_hold_one_out(root, capsys):
    keys = {"figures": False, "report": False, "hold_out_classes": 2}
    run = make(root, "three", data={"ood": {}, "splits": {"val": 0, "test": 0.25}}, detectors=["knn"], evaluation=keys)
    assert tiny_clip.results(run)["held_out"] is None
    assert "it takes 4 or more, and there are 3" in capsys.readouterr().out


def test_copies_of_held_out_images_are_not_learnt_from(root, four):
    folder = root / "data/twice"
    shutil.copytree(root / "data/four", folder)
    for path in list(folder.rglob("*.png")):
        shutil.copy(path, path.with_name(f"again{path.name}"))
    keys = {"figures": False, "report": False}
    data = {"ood": {}, "splits": {"val": 0, "test": 0}}
    found = [
        tiny_clip.results(
            make(root, f"held_{name}", data=data | {"id": name}, detectors=["knn"], evaluation=keys | more)
        )
        for name, more in (
            ("twice", {"hold_out_classes": 2, "cross_fit": 3}),
            ("four", {"hold_out_classes": 2, "cross_fit": 3}),
        )
    ]
    for twice, once in zip(*(each["held_out"]["groups"] for each in found), strict=True):
        assert twice["auroc"]["knn"] == pytest.approx(once["auroc"]["knn"])
        assert (twice["n_id"], twice["n_ood"]) == (2 * once["n_id"], 2 * once["n_ood"])
