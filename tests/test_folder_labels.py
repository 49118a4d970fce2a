"""Labels in doubt: by the confident joint of plain N × C probabilities, on planted wrong labels, and from a run to its report."""

from __future__ import annotations

import shutil

import judged_run
import numpy as np
import pytest
import tiny_clip
import torch
from torch.nn.functional import normalize

import eval as evaluation
from clip_ood.features.rows import Rows
from clip_ood.files.records import Damaged
from clip_ood.folder import labels as module
from clip_ood.folder.files import read_labels, write_labels
from clip_ood.folder.labels import DoubtfulLabel, Votes, doubtful_labels, votes
from clip_ood.folder.neighbours import neighbours
from clip_ood.runs.going_on import labels_told


def plain_probabilities(features, first, labels, classes, k=20):
    """(N, C) by a loop over all pairs."""
    unit, found = normalize(features, dim=1), np.zeros((len(first), classes))
    for image in range(len(first)):
        others = [other for other in range(len(first)) if first[other] == other and other != first[image]]
        cosines = {other: float(unit[image] @ unit[other]) for other in others}
        for other in sorted(others, key=cosines.get, reverse=True)[:k]:
            if labels[other] >= 0:
                found[image, labels[other]] += np.exp(cosines[other] / 0.02)
    return found / np.maximum(found.sum(axis=1, keepdims=True), 1e-300)


def plain_joint(probabilities, labels, voters):
    """The confident joint (C, C), and the images off its diagonal that have less of the vote for their label."""
    classes = range(len(voters))
    able = [each for each in classes if voters[each] >= 2]
    threshold = {each: probabilities[labels == each, each].mean() for each in able if (labels == each).any()}
    joint, off = np.zeros((len(voters), len(voters))), {}
    for image, label in enumerate(labels):
        passing = [each for each in threshold if probabilities[image, each] >= max(threshold[each] - 1e-6, 1e-30)]
        if label in threshold and passing:
            best = max(passing, key=lambda each: probabilities[image, each])
            joint[label, best] += 1
            if probabilities[image, best] > probabilities[image, label]:
                off[image] = (best, probabilities[image, label] - probabilities[image, best])
    return joint, off


def doubts(features, first, labels, classes):
    found = [
        votes(near.cosines, torch.from_numpy(labels)[near.places], classes)
        for near in neighbours(Rows([features]), first, 20)
    ]
    voters = np.bincount(labels[(first == np.arange(len(first))) & (labels >= 0)], minlength=classes)
    return doubtful_labels(Votes.joined(found), labels, voters), voters


def mixture(images, classes, apart, seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, images)
    points = apart * rng.normal(size=(classes, 16))[truth] + rng.normal(size=(images, 16))
    return torch.from_numpy(points).float(), truth, rng


@pytest.mark.parametrize("apart", [0.3, 0.7])
def test_it_is_the_confident_joint_of_plain_probabilities(apart, monkeypatch):
    monkeypatch.setattr(module, "CELLS", 100)
    features, labels, rng = mixture(90, 5, apart, seed=1)
    labels[rng.choice(90, 12, replace=False)] = rng.integers(0, 5, 12)
    labels[:6] = -1
    labels[labels == 4] = 3
    labels[7] = 4  # alone
    first = np.arange(90)
    features[20], first[20] = features[8], 8
    features[21], first[21] = features[8], 8
    found, voters = doubts(features, first, labels, 5)
    joint, off = plain_joint(plain_probabilities(features, first, labels, 5), labels, voters)
    assert dict(zip(found.places.tolist(), found.suggested.tolist(), strict=True)) == {
        image: best for image, (best, _) in off.items()
    }
    assert len(off) > 3 and 7 not in found.places and not (found.suggested == 4).any()
    assert found.of_label - found.of_suggested == pytest.approx(sorted(margin for _, margin in off.values()), abs=1e-4)
    number = np.bincount(labels[labels >= 0], minlength=5)
    wrong = sum(
        number[each] * (1 - joint[each, each] / joint[each].sum()) for each in range(5) if joint[each].sum() > 0
    )
    assert found.wrong == pytest.approx(wrong) and found.checked == number[:4].sum()


def test_a_label_that_has_more_of_the_vote_is_counted_but_not_listed():
    """Its share is low for its class, and that of the other class is usual there, exactly at its threshold."""
    shares = np.array([[0.6, 0.4]] * 3 + [[0.45, 0.4]] + [[0.4, 0.35]] * 2, np.float32)
    classes = np.array([[0, 2]] * 3 + [[0, 1]] + [[1, 2]] * 2)
    found = doubtful_labels(Votes(classes, shares), np.array([0, 0, 0, 0, 1, 1]), np.array([4, 2, 0]))
    assert found.wrong == pytest.approx(1) and len(found.places) == 0 and found.checked == 6


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_planted_wrong_labels_are_found_and_counted(share):
    """Where classes do not overlap; where they do, the estimate is too high (next test)."""
    features, truth, rng = mixture(2000, 10, 2.0, seed=3)
    labels, wrong = truth.copy(), rng.choice(2000, round(2000 * share), replace=False)
    labels[wrong] = (truth[wrong] + rng.integers(1, 10, len(wrong))) % 10
    found, _ = doubts(features, np.arange(2000), labels, 10)
    assert found.wrong == pytest.approx(len(wrong), rel=0.1)
    assert np.isin(wrong, found.places).mean() > 0.8
    assert np.isin(found.places, wrong).mean() > 0.97
    assert (found.suggested == truth[found.places]).mean() > 0.95


def test_classes_that_overlap_are_taken_for_wrong_labels():
    features, labels, _ = mixture(1000, 10, 0.4, seed=3)
    found, _ = doubts(features, np.arange(1000), labels, 10)
    assert found.wrong > 100


def test_copies_do_not_vouch_for_a_label():
    features, labels, _ = mixture(100, 2, 3.0, seed=0)
    first = np.arange(100)
    for copy in range(1, 20):
        features[copy], labels[copy], first[copy] = features[0], labels[0], 0
    labels[:20] = 1 - labels[0]
    found, _ = doubts(features, first, labels, 2)
    assert set(range(20)) <= {*found.places.tolist()}


@pytest.mark.parametrize("labels", [[-1] * 6, [0] * 6, [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, -1, 1]])
def test_one_class_says_nothing(labels):
    found, _ = doubts(mixture(6, 2, 1.0, seed=0)[0], np.arange(6), np.array(labels), 2)
    assert found is None


def test_labels_come_back_and_say_where_they_are_damaged(tmp_path):
    rows = [DoubtfulLabel(1, "=a.png", "00ff", "-cat", "dog", 0.1, 0.75), DoubtfulLabel(2, "b", None, "cat", "x", 0, 1)]
    path = tmp_path / "labels.csv"
    write_labels(path, rows)
    assert list(read_labels(path)) == rows and "\n=" not in path.read_text()
    path.write_text(path.read_text().replace("0.750000", "much"))
    with pytest.raises(Damaged, match="line 2: its suggested_probability is 'much', and must be a number"):
        list(read_labels(path))


@pytest.fixture(scope="module")
def mislabelled(root):
    """A run on a folder with three cats among the dogs."""
    shutil.copytree(root / "data/id", root / "data/mixed_up")
    for number in range(3):
        (root / f"data/mixed_up/cat/{number}.png").rename(root / f"data/mixed_up/dog/cat{number}.png")
    keys = {"figures": False, "report": True, "cross_fit": 3}
    data = {"id": "mixed_up", "ood": {}, "splits": {"val": 0, "test": 0}}
    return judged_run.make(root, "mixed_up", "zero_shot", data=data, evaluation=keys, detectors=["knn"])


def test_a_run_lists_them_and_counts_them(mislabelled, capsys):
    found = list(read_labels(mislabelled / "labels.csv"))
    assert (found[0].label, found[0].suggested) == ("dog", "cat") and found[0].path.startswith("dog/cat")
    checked = tiny_clip.results(mislabelled)["suspects"]["labels"]
    assert checked["checked"] == 46 and checked["doubtful"] == len(found) and checked["wrong"] > 2
    evaluation.main(["--run", str(mislabelled)])
    assert labels_told(mislabelled.with_name("mixed_up-eval"), checked) in capsys.readouterr().out.splitlines()


def test_a_folder_without_classes_has_no_such_list(root, mislabelled):
    data = {"id": "id/dog", "ood": {}, "splits": {"val": 0, "test": 0}}
    run = judged_run.make(
        root, "one_class", "zero_shot", data=data, evaluation={"figures": False, "report": True, "cross_fit": 3}
    )
    assert not (run / "labels.csv").exists() and tiny_clip.results(run)["suspects"]["labels"] is None
    assert "Which labels" not in (run / "report.html").read_text()
    (run / "labels.csv").touch()  # of an earlier version of the folder
    (run / "results.json").unlink()
    evaluation.main(["--config", str(run / "config.yaml"), "--resume"])
    assert not (run / "labels.csv").exists()


def test_the_report_shows_them_with_label_and_suggestion(mislabelled):
    text = (mislabelled / "report.html").read_text()
    section = text[text.index("Which labels are doubtful?") :]
    assert "dog →</span> <b>cat</b>" in section and "dog/cat0.png" in section


def test_the_report_is_drawn_again_without_features(root, mislabelled):
    before = (mislabelled / "report.html").read_text()
    assert 'class="map"' in before
    shutil.move(root / "features", root / "gone")
    evaluation.main(["--report", str(mislabelled)])
    assert (mislabelled / "report.html").read_text() == before
    shutil.rmtree(root / "features", ignore_errors=True)
    shutil.move(root / "gone", root / "features")
