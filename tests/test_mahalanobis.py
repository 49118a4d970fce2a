"""Mahalanobis distances and relative ones against their definition, one sample and one class at a time in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from detector_data import CLASSES, TEST, TRAIN, WIDTH, close, fitted, sample
from torch import Tensor

from clip_ood.detectors.class_sums import BLOCK
from clip_ood.detectors.gaussian import STRIP, Moments
from clip_ood.detectors.mahalanobis import RMD, Gaussian, Mahalanobis, MahalanobisLogits, RMDLogits
from clip_ood.outputs import Outputs, Reference


def naive_covariance(x: Tensor, center: Tensor) -> Tensor:
    return sum(torch.outer(row - center[i], row - center[i]) for i, row in enumerate(x)) / len(x)


def naive_inverse(covariance: Tensor, shrink: bool) -> Tensor:
    width = len(covariance)
    if not shrink:
        return torch.linalg.pinv(covariance, rtol=1e-10, hermitian=True)
    if torch.linalg.matrix_rank(covariance, rtol=1e-10, hermitian=True) < width:
        covariance = 0.99 * covariance + 0.01 * covariance.trace() / width * torch.eye(width, dtype=torch.float64)
    return covariance.inverse()


def naive_mahalanobis(train: Tensor, labels: Tensor, test: Tensor, *, relative: bool, shrink: bool) -> list[float]:
    train, test = train[labels >= 0].double(), test.double()
    labels = labels[labels >= 0]
    means = {int(c): train[labels == c].mean(dim=0) for c in labels.unique()}
    inverse = naive_inverse(naive_covariance(train, torch.stack([means[int(c)] for c in labels])), shrink)
    mean = train.mean(dim=0)
    overall = naive_inverse(naive_covariance(train, mean.expand_as(train)), shrink)
    scores = []
    for x in test:
        background = float((x - mean) @ overall @ (x - mean)) if relative else 0.0
        scores.append(-min(float((x - m) @ inverse @ (x - m)) - background for m in means.values()))
    return scores


@pytest.mark.parametrize("cls", [Mahalanobis, RMD, MahalanobisLogits, RMDLogits])
def test_mahalanobis_equals_its_definition(cls):
    arguments = {"relative": issubclass(cls, RMD), "shrink": cls.space == "features"}
    train, test = getattr(TRAIN, cls.space), getattr(TEST, cls.space)
    detector = fitted(cls())
    close(detector.score(TEST), naive_mahalanobis(train, TRAIN.labels, test, **arguments))
    assert detector.notes == []


@pytest.mark.parametrize("cls", [Mahalanobis, RMD])
def test_mahalanobis_normalize_works_on_the_unit_sphere(cls):
    train, test = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (TRAIN.features, TEST.features))
    expected = naive_mahalanobis(train, TRAIN.labels, test, relative=cls is RMD, shrink=True)
    close(fitted(cls(normalize=True)).score(TEST), expected, 1e-4)


@pytest.mark.parametrize("beta", [-0.7, 0, 0.4, 1, 2])
@pytest.mark.parametrize("cls", [Mahalanobis, RMD, Gaussian, MahalanobisLogits])
def test_radially_scaled_distances_equal_their_definition(cls, beta):
    train, test = (
        torch.stack([row / math.hypot(*row.tolist()) ** beta for row in getattr(rows, cls.space).double()])
        for rows in (TRAIN, TEST)
    )
    labels = torch.zeros_like(TRAIN.labels) if cls is Gaussian else TRAIN.labels
    expected = naive_mahalanobis(train, labels, test, relative=cls is RMD, shrink=cls.space == "features")
    close(fitted(cls(beta=beta)).score(TEST), expected)
    if beta == 1:
        assert torch.equal(fitted(cls(beta=beta)).score(TEST), fitted(cls(normalize=True)).score(TEST))


def test_a_zero_feature_has_a_finite_radial_score():
    zero = replace(TEST, features=torch.zeros_like(TEST.features))
    for beta in (-1, 0.5, 1):
        assert fitted(Mahalanobis(beta=beta)).score(zero).isfinite().all()


def test_scalings_that_contradict_each_other_or_are_no_numbers_are_named():
    with pytest.raises(ValueError, match=r"rmd: normalize is beta = 1, and beta = 0\.5 is given as well"):
        RMD(normalize=True, beta=0.5)
    with pytest.raises(ValueError, match="mahalanobis: beta = inf, expected a finite number"):
        Mahalanobis(beta=float("inf"))


@pytest.mark.parametrize("cls", [Mahalanobis, RMD])
def test_mahalanobis_far_from_the_origin(cls):
    train, test = (replace(o, features=o.features.double() + 1000) for o in (TRAIN, TEST))
    close(fitted(cls(), train).score(test), fitted(cls()).score(TEST).double(), 1e-4)


def test_mahalanobis_skips_rows_without_label_and_classes_without_rows():
    labels = TRAIN.labels.clone()
    labels[labels == 2] = -1
    labels[::7] = -1
    for cls in (Mahalanobis, RMD):
        expected = naive_mahalanobis(TRAIN.features, labels, TEST.features, relative=cls is RMD, shrink=True)
        detector = fitted(cls(), replace(TRAIN, labels=labels))
        close(detector.score(TEST), expected)
        distances = detector.distances(TEST)
        assert distances[:, 2].isinf().all()
        assert distances[:, [0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("cls", [Mahalanobis, RMD])
def test_features_of_low_rank_are_shrunk_and_noted(cls):
    train, test = sample(20, 3, width=40), sample(9, 4, width=40)
    detector = fitted(cls(), train)
    expected = naive_mahalanobis(train.features, train.labels, test.features, relative=cls is RMD, shrink=True)
    close(detector.score(test), expected, 1e-4)
    rank = 20 - len(train.labels.unique())
    assert f"within-class covariance of rank {rank} < 40" in detector.notes[0]
    assert len(detector.notes) == (2 if cls is RMD else 1)
    detector.fit()
    assert len(detector.notes) == (2 if cls is RMD else 1)


@pytest.mark.parametrize("cls", [MahalanobisLogits, RMDLogits])
def test_logits_of_low_rank_take_the_pseudo_inverse(cls):
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(WIDTH, 30, generator=generator)  # 30 logits of 12 features: rank 12
    train, test = (replace(o, logits=o.features.double() @ head.double()) for o in (TRAIN, TEST))
    detector = fitted(cls(), train)
    expected = naive_mahalanobis(train.logits, train.labels, test.logits, relative=cls is RMDLogits, shrink=False)
    close(detector.score(test), expected, 1e-4)
    assert detector.within.shape == (30, WIDTH)
    assert detector.notes == []
    single = fitted(cls(), replace(train, logits=train.logits.float())).score(test)
    close(single, expected, 1e-3)


@pytest.mark.parametrize("cls", [Mahalanobis, RMD, MahalanobisLogits, RMDLogits])
def test_rows_that_do_not_vary_are_an_error(cls):
    constant = replace(TRAIN, features=torch.full((120, WIDTH), 2.0), logits=torch.full((120, CLASSES), 2.0))
    with pytest.raises(ValueError, match=rf"{cls.name}: within-class {cls.space}: the covariance is zero"):
        fitted(cls(), constant)


def test_mahalanobis_without_labels_is_an_error():
    with pytest.raises(ValueError, match="rmd: no ID training image has a class label"):
        fitted(RMD(), replace(TRAIN, labels=torch.full((120,), -1)))
    with pytest.raises(ValueError, match="rmd: label 4, expected less than 2"):
        RMD(Reference(class_names=("cat", "dog"))).update(TRAIN)


@pytest.mark.parametrize("width", [1, STRIP - 1, STRIP, STRIP + 1, 2 * STRIP + 5])
def test_moments_of_any_width_and_number_of_rows_equal_their_definition(width):
    x = sample(BLOCK + 7, seed=2, width=width).features
    labels = torch.arange(len(x)) % 7 - 1  # a seventh has no label
    moments = Moments("features")
    moments.update(Outputs(features=x, labels=labels))
    x, u = x.double(), torch.linspace(-1, 1, width, dtype=torch.float64)
    known = x[labels >= 0]
    means = torch.stack([x[labels == label].mean(dim=0) for label in range(6)])
    apart = known - means[labels[labels >= 0]]
    torch.testing.assert_close(moments.around(u), (x - u).T @ (x - u) / len(x))
    torch.testing.assert_close(
        moments.total(), (known - known.mean(dim=0)).T @ (known - known.mean(dim=0)) / len(known)
    )
    torch.testing.assert_close(moments.within(), apart.T @ apart / len(known))
