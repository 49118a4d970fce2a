"""classes.csv: by ID class and OOD folder, against naive counts and scikit-learn."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from clip_ood.metrics.influence import auroc_influence, auroc_influence_of_sorted, standard_error
from clip_ood.metrics.intervals import share_interval
from clip_ood.metrics.ranking import rank_scores
from clip_ood.report.failures import failures
from clip_ood.runs.class_table import class_rows, write_classes
from clip_ood.runs.scores import ScoredSet

GENERATOR = np.random.default_rng(0)
LABELS = ["cat", "dog", "cat", None, "dog", "cat", "fox"]
INSIDE = ScoredSet(
    "id_test",
    "id",
    [f"{label}/{i}.png" for i, label in enumerate(LABELS)],
    None,
    LABELS,
    ["cat", "cat", "cat", "fox", "dog", "dog", "cat"],
    {"a": np.array([5.0, 1, 4, 0, 2, 3, 6]), "b": np.zeros(7)},
)
PATHS = [
    "deep/one/0.png",
    "deep/two/0.png",
    "1.png",
    "shard-0.tar/three/2.png",
    "shard-1.tar/three/3.png",
    "deep/one/9.png",
]
OUTSIDE = ScoredSet(
    "far", "ood", PATHS, None, [None] * 6, ["cat"] * 6, {"a": np.array([3.0, 7, 0, 1, 4, 2]), "b": np.zeros(6)}
)
THRESHOLDS = {"a": 3.0}


def row(rows, name, detector="a"):
    (found,) = [each for each in rows if (each.name, each.detector) == (name, detector)]
    return found


def test_classes_are_counted():
    rows = class_rows([INSIDE, OUTSIDE], THRESHOLDS)
    assert [each.name for each in rows[::2]] == ["cat", "dog", "fox", "deep/one", "deep/two", "", "three"]
    cat = row(rows, "cat")
    assert (cat.n, cat.accuracy.value, cat.accepted.value) == (3, 2 / 3, 1.0)
    assert (cat.accuracy.low, cat.accuracy.high) == share_interval(2, 3)
    assert (row(rows, "fox").accuracy.value, row(rows, "dog").accepted.value) == (0.0, 0.0)
    assert cat.flagged is None and cat.auroc is None
    assert row(rows, "cat", "b").accepted is None and row(rows, "cat", "b").accuracy == cat.accuracy


def test_folders_are_held_against_all_id_test_images():
    rows = class_rows([INSIDE, OUTSIDE], THRESHOLDS)
    for name, scores in {"deep/one": [3, 2], "three": [1, 4], "": [0]}.items():
        found = row(rows, name)
        both = [*INSIDE.scores["a"], *scores]
        assert found.auroc.value == pytest.approx(roc_auc_score([1] * 7 + [0] * len(scores), both))
        assert found.flagged.value == sum(score < 3 for score in scores) / len(scores)
        assert found.accuracy is None and found.accepted is None
    assert row(rows, "").auroc.low is None and row(rows, "three").auroc.low < row(rows, "three").auroc.high
    assert row(rows, "three", "b").auroc.value == 0.5


def test_scores_of_folds_have_no_auroc():
    assert row(class_rows([INSIDE, OUTSIDE], THRESHOLDS, by_folds=["a"]), "three").auroc is None


@pytest.mark.parametrize("decimals", [0, 8])
def test_one_sort_gives_the_same_influence(decimals):
    inside, outside = (torch.from_numpy(GENERATOR.normal(size=n).round(decimals)) for n in (60, 17))
    whole, fast = auroc_influence(rank_scores(inside, outside)), auroc_influence_of_sorted(inside.sort()[0], outside)
    assert fast.value == pytest.approx(whole.value, abs=1e-12)
    assert torch.allclose(fast.of_id, whole.of_id[inside.argsort(stable=True)])
    assert torch.allclose(fast.of_ood[0], whole.of_ood[0])
    assert standard_error([fast]) == pytest.approx(standard_error([whole]))
    assert fast.misplaced == pytest.approx(whole.misplaced)


def test_the_file_has_a_line_a_row(tmp_path):
    rows = class_rows([INSIDE, OUTSIDE], THRESHOLDS)
    write_classes(tmp_path / "classes.csv", rows)
    with (tmp_path / "classes.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows) == 14
    assert lines[0] | {"accuracy_low": "", "accuracy_high": "", "accepted_low": ""} == {
        **dict.fromkeys(lines[0], ""),
        **{"set": "id_test", "role": "id", "class": "cat", "detector": "a", "n": "3"},
        **{"accuracy": "66.67", "accepted": "100.00", "accepted_high": "100.00"},
    }


def test_the_page_begins_with_the_worst():
    found = failures([INSIDE, OUTSIDE], {"thresholds": THRESHOLDS}, (), "a")
    assert [line.name for line in found.classes] == ["dog", "fox", "cat"] and found.calibrated
    assert {line.name for line in found.folders} == {"deep/one", "deep/two", "", "three"}
    assert found.folders[0].figures[0].text == "0.0"  # deep/two: its only image is accepted
    assert next(line.name for line in failures([INSIDE, OUTSIDE], None, (), "a").classes) == "fox"  # by accuracy


def test_one_class_and_one_folder_are_no_question():
    flat = ScoredSet("far", "ood", ["0.png", "1.png"], None, [None] * 2, [None] * 2, {"a": np.zeros(2)})
    one = ScoredSet("id_test", "id", ["x"], None, ["x"], [None], {"a": np.ones(1)})
    assert failures([one, flat], {"thresholds": THRESHOLDS}, (), "a") is None
    assert class_rows([one, flat], {})[0].accuracy is None
