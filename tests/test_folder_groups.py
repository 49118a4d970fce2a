"""Groups that lie apart, local density and the ranking of a folder, against scipy, scikit-learn and made folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.neighbors import LocalOutlierFactor
from torch.nn.functional import normalize

from clip_ood.errors import UserError
from clip_ood.features.rows import Rows
from clip_ood.folder.consensus import consensus
from clip_ood.folder.density import local_density
from clip_ood.folder.groups import joining
from clip_ood.folder.principal import principal
from clip_ood.folder.ranking import rank_images
from clip_ood.folder.spanning_tree import NEIGHBOURS, spanning_tree

ALONE = np.arange


def points(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def made(odd=12, seed=0):
    """150 images of five classes, and a tight group somewhere else: features (N, 16), and which are odd (N,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = 0.8 * torch.randn(5, 16, generator=generator)
    inside = centres.repeat(30, 1) + 0.8 * torch.randn(150, 16, generator=generator) + 1
    group = torch.tensor([-1.0] * 8 + [1.0] * 8) + 0.1 * torch.randn(odd, 16, generator=generator)
    return torch.cat([inside, group]), np.arange(150 + odd) >= 150


def reachability(features):
    distances = 1 - (features @ features.T).double().numpy()
    np.fill_diagonal(distances, 0)
    reach = np.sort(distances, axis=1)[:, min(NEIGHBOURS, len(features) - 1)]
    found = np.maximum(distances, np.maximum(reach[:, None], reach))
    np.fill_diagonal(found, 0)
    return found


def test_the_tree_is_single_linkage():
    features = points(60, 5)
    tree, expected = spanning_tree(features), linkage(squareform(reachability(features), checks=False), "single")
    assert np.allclose(np.sort(tree.length), expected[:, 2], atol=1e-6)
    for height in expected[::7, 2]:
        ours = tree.parts(height + 1e-6)
        theirs = fcluster(expected, height + 1e-6, "distance")
        assert len(set(zip(ours, theirs, strict=True))) == len(set(ours)) == len(set(theirs))


def test_the_height_is_where_an_image_joins_the_part_that_holds_half():
    features = points(41, 3)
    found = joining(spanning_tree(features))
    lengths = np.sort(np.unique(reachability(features)[np.triu_indices(41, 1)]))
    tree = linkage(squareform(reachability(features), checks=False), "single")
    expected, main = np.full(41, np.inf), None
    for height in lengths:
        parts = fcluster(tree, height + 1e-9, "distance")
        largest = np.bincount(parts).argmax()
        if main is None and (parts == largest).sum() * 2 > 41:
            main = np.flatnonzero(parts == largest)[0]
        if main is not None:
            expected = np.minimum(expected, np.where(parts == parts[main], height, np.inf))
    assert np.allclose(found.height, expected, atol=1e-6) and found.half == pytest.approx(expected.min(), abs=1e-6)
    assert ((found.group == -1) == (found.height <= found.half)).all()
    for number in set(found.group) - {-1}:
        assert len(set(found.height[found.group == number])) == 1


def test_local_density_is_that_of_scikit_learn():
    features = points(90, 6)
    for share in (0.05, 0.3):
        peer = LocalOutlierFactor(n_neighbors=round(share * 89)).fit(features.numpy())
        assert np.allclose(local_density(Rows([features]), share), peer.negative_outlier_factor_, atol=1e-4)


def test_local_density_of_many_images_is_that_of_a_sample():
    features = normalize(points(3000, 4) + torch.tensor([1.5, 0, 0, 0]), dim=1)  # dense in one direction
    some, every = local_density(Rows([features]), 0.3, most=1500), local_density(Rows([features]), 0.3)
    assert len(some) == 3000
    assert torch.corrcoef(torch.stack([some, every]))[0, 1] > 0.97


def test_principal_components_are_those_of_the_directions():
    features = points(40, 9) * torch.arange(1, 41)[:, None] + 0.5
    found = principal(Rows([features[:15], features[15:]]))
    unit = normalize(features.double(), dim=1)
    centred = unit - unit.mean(dim=0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    expected = normalize(centred @ axes.T, dim=1)
    assert torch.allclose((found.plain @ found.plain.T).double(), expected @ expected.T, atol=1e-5)
    white = normalize(centred @ axes.T / values, dim=1)
    assert torch.allclose((found.white @ found.white.T).double(), white @ white.T, atol=1e-5)
    assert principal(Rows([points(100, 64)])).plain.shape == (100, 20)


@pytest.mark.parametrize("odd", [8, 20, 35])
def test_a_tight_group_stands_first_and_its_images_are_suspect(odd):
    features, is_odd = made(odd)
    found = rank_images(Rows([features]), ALONE(len(features)))
    assert np.array_equal(found.groups[0].images, np.flatnonzero(is_odd)) and found.groups[0].apart > 2
    assert found.score[is_odd].max() < np.quantile(found.score[~is_odd], 0.2)


def test_a_folder_without_odd_images_has_no_group_apart():
    features, is_odd = made()
    assert not rank_images(Rows([features[~is_odd]]), ALONE(150)).groups


def test_more_than_half_of_the_images_are_no_group():
    features, is_odd = made(odd=160)
    found = rank_images(Rows([features]), ALONE(310))
    assert not any(is_odd[each.images].any() for each in found.groups)


def test_copies_do_not_vouch_for_each_other():
    features, _ = made(odd=0)
    lone = torch.tensor([[-1.0] * 15 + [1.0]])
    several = torch.cat([features, lone.repeat(5, 1)])
    first = np.r_[ALONE(150), np.full(5, 150)]
    found = rank_images(Rows([several]), first)
    alone = rank_images(Rows([torch.cat([features, lone])]), ALONE(151))
    assert np.allclose(found.score[:151], alone.score) and (found.score[150:] == found.score[150]).all()
    assert (found.score[150] < found.score[:150]).all()


def test_the_features_may_lie_in_pieces_and_in_any_order():
    features, _ = made()
    order = torch.randperm(162, generator=torch.Generator().manual_seed(1))
    rows = Rows([features[:70], features[70:]], order)
    whole = rank_images(Rows([features]), ALONE(162))
    found = rank_images(rows, ALONE(162))
    assert np.allclose(found.score, whole.score[order], atol=0.02)  # but for sums in another order
    assert set(order[found.groups[0].images].tolist()) == set(whole.groups[0].images.tolist())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_few_images_are_ranked(count):
    found = rank_images(Rows([points(count, 6)]), ALONE(count))
    assert len(found.score) == count and np.isfinite(found.score).all() and not found.groups


def test_no_image_has_no_rank():
    assert not len(rank_images(Rows([torch.empty(0, 6)]), ALONE(0)).score)


@pytest.mark.parametrize("first", [ALONE(30), np.zeros(30, int)])
def test_images_that_are_all_alike_are_equally_suspect(first):
    found = rank_images(Rows([torch.ones(30, 6)]), first)
    assert len(set(found.score)) == 1 and not found.groups


def test_features_that_are_zero_are_ranked():
    features, _ = made()
    features[3] = 0
    assert np.isfinite(rank_images(Rows([features]), ALONE(162)).score).all()


def test_features_that_are_no_numbers_are_refused():
    features, _ = made()
    features[[3, 5], 0] = torch.nan
    with pytest.raises(UserError, match="2 of 162 images have NaN or infinite features"):
        rank_images(Rows([features]), ALONE(162))


def test_images_of_groups_come_first_group_by_group_and_the_rest_by_three_scores():
    features, _ = made()
    other = torch.tensor([2.5, -2.5] * 8) + 0.1 * torch.randn(8, 16, generator=torch.Generator().manual_seed(9))
    features = torch.cat([features, other])
    found = rank_images(Rows([features]), ALONE(len(features)))
    assert len(found.groups) == 2
    first, second = (found.score[each.images] for each in found.groups)
    rest = np.delete(found.score, np.concatenate([each.images for each in found.groups]))
    assert first.min() > 0 and first.max() < second.min() and second.max() < rest.min()
    peer = LocalOutlierFactor(n_neighbors=10).fit(normalize(features, dim=1).numpy())
    assert np.allclose(found.scores["near"], peer.negative_outlier_factor_, atol=1e-3)
    whitened = principal(Rows([features])).white
    assert np.allclose(found.scores["wide"], local_density(Rows([whitened]), 0.3).numpy(), atol=1e-5)
    alone = np.delete(consensus(found.scores), np.concatenate([each.images for each in found.groups]))
    assert np.array_equal(np.argsort(rest, kind="stable"), np.argsort(alone, kind="stable"))
