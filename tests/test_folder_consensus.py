"""Ranks of scores and their consensus, against scipy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import gmean, rankdata

from clip_ood.folder.consensus import consensus, ranks
from clip_ood.folder.copy_groups import first_copies, other_copies
from clip_ood.leaks.copies import Copies


def test_ranks_are_compared_within_their_fold():
    generator = np.random.default_rng(0)
    scores, folds = generator.integers(0, 6, 40) + 0.0, np.arange(40) % 3
    shifted = scores + 100 * folds
    found = ranks(shifted, folds)
    for fold in range(3):
        own = scores[folds == fold]
        assert np.allclose(found[folds == fold], (rankdata(own) - 0.5) / len(own))
    assert not np.allclose(found, ranks(shifted))


def test_ranks_do_not_change_with_the_scale_of_scores():
    scores = np.random.default_rng(0).normal(size=30)
    assert np.array_equal(ranks(scores), ranks(np.exp(7 * scores) - 3))


def test_a_detector_without_a_score_does_not_count():
    nan = np.nan
    scores = {"a": np.array([1.0, 2, 3, nan]), "b": np.array([3.0, 2, nan, nan])}
    found = consensus(scores)
    assert np.allclose(found[:2], gmean([[1 / 6, 0.5], [0.75, 0.25]], axis=0))
    assert found[2] == pytest.approx(5 / 6) and np.isnan(found[3])


def test_the_consensus_uses_the_folds_of_each_detector():
    folds = np.array([0, 0, 1, 1])
    scores = {"a": np.array([1.0, 2, 11, 12]), "b": np.arange(4.0)}
    found = consensus(scores, {"a": folds})
    assert np.allclose(found, np.sqrt([0.25 * 0.125, 0.75 * 0.375, 0.25 * 0.625, 0.75 * 0.875]))


def test_one_image_has_a_rank_and_no_detector_is_a_fault():
    assert consensus({"a": np.array([7.0])}).tolist() == [0.5]
    assert consensus({"a": np.array([])}).tolist() == []
    with pytest.raises(ValueError, match="no scores"):
        consensus({})


def copies(originals, rows, kind="exact", earlier="photos", later="photos"):
    return Copies(earlier, later, kind, 9, np.array(originals), np.array(rows), np.ones(len(rows)))


def test_chains_of_copies_make_one_group():
    rows = np.array([2, 3, 5, 7, 8, 9])
    found = [
        copies([3], [7]),
        copies([7, 8], [9, 9], "near"),  # 9 resembles 7, which is a copy of 3, and 8
        copies([2], [5], "corrupted"),  # no copy
        copies([2], [5], later="others"),
        copies([2], [4]),  # 4 could not be read
    ]
    first = first_copies(found, "photos", rows)
    assert first.tolist() == [0, 1, 2, 1, 1, 1]
    assert other_copies(first).tolist() == [0, 3, 0, 3, 3, 3]


def test_images_without_copies_stand_for_themselves():
    assert first_copies([], "photos", np.array([4, 6])).tolist() == [0, 1]
    assert first_copies([], "photos", np.array([], int)).tolist() == []
