"""Images of the bank are scored as if they were not in it, and what is fitted is fitted without their fold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clip_ood.calibration import Calibration
from clip_ood.cross_fit import CrossFit, folds, share_below
from clip_ood.detectors.knn import KNN
from clip_ood.outputs import Outputs
from clip_ood.scores import Scores


def bank(n: int = 40, width: int = 8) -> Outputs:
    generator = torch.Generator().manual_seed(3)
    return Outputs(features=torch.randn(n, width, generator=generator), indices=torch.arange(n))


def without(outputs: Outputs, row: int) -> Outputs:
    kept = torch.arange(len(outputs)) != row
    return outputs.map(lambda value: value[kept])


@pytest.mark.parametrize("k, kth", [(1, False), (3, False), (3, True)])
def test_an_image_of_the_bank_scores_as_by_a_bank_without_it(k, kth):
    everything = bank()
    knn = KNN(k=k, kth=kth)
    knn.update(everything)
    knn.fit()
    own = Outputs(features=everything.features, indices=everything.indices, copy_of=everything.indices)
    scores = knn.score(own)
    for row in range(len(everything)):
        other = KNN(k=k, kth=kth)
        other.update(without(everything, row))
        other.fit()
        one = other.score(Outputs(features=everything.features[row : row + 1]))
        assert torch.allclose(scores[row], one[0], atol=1e-6)


def test_a_copy_of_nothing_sees_the_whole_bank():
    knn = KNN(k=2)
    knn.update(bank())
    knn.fit()
    new = torch.randn(5, 8, generator=torch.Generator().manual_seed(4))
    plain = knn.score(Outputs(features=new))
    assert torch.equal(plain, knn.score(Outputs(features=new, copy_of=torch.full((5,), -1))))


def test_thresholds_by_leave_one_out_flag_no_more_new_images_than_stated():
    flagged = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(119, 4, generator=generator)
        knn = KNN(k=3)
        own = Outputs(features=features[:19], indices=torch.arange(19), copy_of=torch.arange(19))
        knn.update(own)
        knn.fit()
        threshold = Calibration(knn.score(own), by="leave_one_out").threshold(0.9)
        flagged.append((knn.score(Outputs(features=features[19:])) < threshold).float().mean().item())
    assert 0.04 < np.mean(flagged) < 0.1 + 3 * np.std(flagged) / 300**0.5


def test_with_one_neighbour_p_values_are_those_of_full_conformal_prediction():
    generator = torch.Generator().manual_seed(5)
    features = torch.nn.functional.normalize(torch.randn(31, 4, generator=generator), dim=1)
    own, new = features[:30], features[30:]
    knn = KNN()
    outputs = Outputs(features=own, indices=torch.arange(30), copy_of=torch.arange(30))
    knn.update(outputs)
    knn.fit()
    got = Calibration(knn.score(outputs), by="leave_one_out").p_values(knn.score(Outputs(features=new)))
    cosines = features @ features.T - 2 * torch.eye(31)
    everyone = cosines.amax(dim=1)
    assert got.item() == pytest.approx((everyone <= everyone[30]).double().mean().item())


def test_folds_hold_groups_together_and_spread_classes():
    groups = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 7])
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    dealt = folds(groups, labels, 4, seed=0)
    assert dealt[0] == dealt[1] and dealt[8] == dealt[9]
    assert sorted(dealt[[0, 2, 3, 4]]) == [0, 1, 2, 3] and sorted(dealt[[5, 6, 7, 8]]) == [0, 1, 2, 3]
    assert not np.array_equal(dealt, folds(groups, labels, 4, seed=1))


def test_what_the_folds_found_replaces_what_was_fitted_on_the_images():
    of = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = CrossFit(torch.arange(4), {"rmd": of}, {"train": {"rmd": share_below(of, of)}}, torch.tensor([1, 0, -1, 1]))
    scores = Scores(torch.tensor([3, 1]), {"rmd": torch.tensor([9.0, 9.0]), "knn": torch.tensor([0.5, 0.6])})
    out = found.out_of_sample(scores)
    assert out.scores["rmd"].tolist() == [4.0, 2.0] and out.scores["knn"].tolist() == pytest.approx([0.5, 0.6])
    assert out.predictions.tolist() == [1, 0]
    assert found.comparable("train", out).scores["rmd"].tolist() == [0.875, 0.375]
    assert torch.equal(found.comparable("new", out).scores["rmd"], out.scores["rmd"])
