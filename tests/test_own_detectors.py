"""A detector of somebody's own: the lines of docs/detectors.md work, and what is wrong with one is an error before any image is read."""

from __future__ import annotations

import re

import own_detectors
import pytest
import tiny_clip
import torch
from tiny_clip import PROJECT

import eval as evaluation
import train
from clip_ood.detectors.detector import WrongScores
from clip_ood.detectors.trial import try_own
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs

ONE_EACH = "a tensor with one score an image, higher = more in-distribution"
PROBE = {"linear_probe": {"epochs": 1, "batch_size": 16}}
WRONG = {
    "Missing": rf"Missing has no _score\(self, rows\), which gives {ONE_EACH}",
    "MissingFit": r"MissingFit has no _fit\(self\)",
    "Forgetful": rf"Forgetful\._score returned None for 11 images, expected \(11,\): {ONE_EACH}",
    "Column": r"Column\._score returned a tensor of shape \(11, 1\) for 11 images, expected \(11,\)",
    "Scalar": r"Scalar\._score returned a tensor of shape \(\) for 11 images, expected \(11,\)",
    "Squeezed": r"Squeezed\._score returned a tensor of shape \(\) for 1 image, expected \(1,\)",
    "Array": r"Array\._score returned a ndarray for 11 images, expected \(11,\)",
    "NotANumber": r"NotANumber\._score returned nan for all of 11 made-up images, expected finite scores",
    "Infinite": r"Infinite\._score returned -inf for all of 11 made-up images, expected finite scores",
    "Misspelt": r"AttributeError: 'Outputs' object has no attribute 'feature' \(.*own_detectors\.py, line \d+\)",
    "OverTheBatch": r"OverTheBatch\._score returned 1 for an image alone and .* for it among others, expected the same",
    "NoReference": r"TypeError: NoReference\.__init__\(\) takes 1 positional argument but 2 were given",
    "NoSuper": "failed on made-up images: AttributeError",
    "OneText": r"OneText\.requires is 'features', expected a tuple of names, as \('features',\)",
    "Unknown": r"Unknown\.requires names 'feature', which no run gives; expected some of features, embeddings",
}
AT_A_WIDTH = {
    "Troubled": r"RuntimeError: no licence \(.*own_detectors\.py, line \d+\)",
    "OfWidth77": r"RuntimeError: size mismatch.* \(.*own_detectors\.py, line \d+\)",
}


def trained(root, name, *specs, **keys):
    train.main(["--config", tiny_clip.config(root, name, PROBE, detectors=list(specs), **keys)])
    return root / "runs" / name


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_before_any_image_is_read(name, root, monkeypatch):
    def read(*_):
        raise AssertionError("images were read")

    monkeypatch.setattr("clip_ood.experiments.run.load_features", read)
    with pytest.raises(UserError, match=rf"^detectors: own_detectors\.{name}.*{WRONG[name]}"):
        trained(root, f"wrong_{name}", "knn", f"own_detectors.{name}")


@pytest.mark.parametrize("name", AT_A_WIDTH)
def test_what_may_be_wrong_at_a_width_alone_is_named_before_training(name, root, monkeypatch):
    monkeypatch.setattr("clip_ood.experiments.run.Trainer.fit", lambda *_, **__: pytest.fail("training was begun"))
    with pytest.raises(UserError, match=rf"^detectors: own_detectors\.{name} failed.*{AT_A_WIDTH[name]}"):
        trained(root, f"width_{name}", f"own_detectors.{name}")


def test_those_that_are_right_have_their_columns(root):
    names = ["Right", "Counting", "OfWidth32"]
    run = trained(root, "right", *(f"own_detectors.{name}" for name in names))
    assert list(dict.fromkeys(row["detector"] for row in tiny_clip.results(run)["rows"])) == names


def test_a_finished_run_tries_them_too(root):
    run = trained(root, "finished", "knn")
    with pytest.raises(UserError, match=r"Column\._score returned a tensor of shape"):
        evaluation.main(["--run", str(run), "--detectors=[own_detectors.Column]"])
    assert tiny_clip.results(run)["rows"]


@pytest.mark.parametrize("name", ["Forgetful", "Column", "Scalar", "Array"])
@pytest.mark.parametrize("ask", ["score", "score_with_grad"])
def test_wrong_scores_name_the_class_wherever_they_are_asked_for(name, ask):
    detector = getattr(own_detectors, name)()
    with pytest.raises(WrongScores, match=rf"{name}\._score returned .* for 4 images, expected \(4,\)"):
        getattr(detector, ask)(Outputs(features=torch.rand(4, 5)))


def test_a_trial_draws_no_number_from_the_run(monkeypatch):
    monkeypatch.setattr(
        own_detectors.Right, "_score", lambda self, rows: rows.features[:, 0] + 0 * torch.rand(len(rows))
    )
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    try_own(["own_detectors.Right"], classes=4)
    assert torch.equal(torch.rand(2), expected)


def test_the_projects_own_are_not_tried(monkeypatch):
    monkeypatch.setattr("clip_ood.detectors.trial._try", lambda *_: pytest.fail("tried"))
    try_own(None, classes=3)
    try_own(["pytorch_ood.KNN", "rmd"], classes=3)


def test_the_readmes_lines_work(root, tmp_path, monkeypatch):
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (PROJECT / "docs" / "detectors.md").read_text(), re.MULTILINE | re.DOTALL
    )
    lines = next(block for block in blocks if "class LongestFeature" in block)
    assert len([line for line in lines.splitlines() if line.strip()]) <= 8
    (tmp_path / "my_scores.py").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    command = re.search(
        r"--detectors='(.*my_scores\.LongestFeature.*?)'", (PROJECT / "docs" / "detectors.md").read_text()
    )
    run = trained(root, "readme", "knn")
    evaluation.main(["--run", str(run), f"--detectors={command[1]}"])
    rows = tiny_clip.results(run.with_name("readme-eval"))["rows"]
    assert {row["detector"] for row in rows} == {"knn", "LongestFeature"}
