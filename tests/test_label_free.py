"""Detectors that need neither labels nor a head against scikit-learn: the local outlier factor, one Gaussian, a PCA's error."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from detector_data import ALL, REFERENCE, TEST, TEXT, TRAIN, WORDS, asked, close, fitted, part, sample
from processes import together
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors import DETECTORS, build_detectors
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.lof import LOF
from clip_ood.detectors.mahalanobis import Gaussian, Mahalanobis
from clip_ood.detectors.names import DEFAULTS, NAMED, UNLABELLED
from clip_ood.detectors.statistic import share
from clip_ood.detectors.vim import PCA
from clip_ood.evaluation import DetectorSuite
from clip_ood.outputs import NegativeLabels, Outputs, Reference

OWN = replace(TRAIN, copy_of=TRAIN.indices)
NAN = TRAIN.features.masked_fill(torch.arange(120)[:, None] == 4, torch.nan)
COVARIANCES = {"mahalanobis", "mahalanobis_pp", "rmd", "rmd_pp", "gaussian", "gaussian_pp", "pca"}
SAME = replace(TRAIN, features=torch.ones_like(TRAIN.features))


def sphere(outputs: Outputs):
    return normalize(outputs.features.double(), dim=1).numpy()


def factors(k: int, train: Outputs = TRAIN) -> tuple[Tensor, Tensor]:
    """scikit-learn's scores of the images themselves, and of TEST."""
    own = LocalOutlierFactor(n_neighbors=k).fit(sphere(train)).negative_outlier_factor_
    new = LocalOutlierFactor(n_neighbors=k, novelty=True).fit(sphere(train)).score_samples(sphere(TEST))
    return torch.from_numpy(own), torch.from_numpy(new)


# The local outlier factor


@pytest.mark.parametrize(("k", "count"), [(1, 1), (5, 5), (119, 119), (0.1, 12), (0.001, 1), (0.999, 119)])
def test_lof_equals_scikit_learn(monkeypatch, k, count):
    monkeypatch.setattr("clip_ood.detectors.bank.ROWS", 50)
    lof = fitted(LOF(k=k), part(TRAIN, slice(7)), part(TRAIN, slice(7, None)))
    own, new = factors(count)
    close(lof.score(OWN), own, 5e-5)
    close(lof.score(TEST), new, 5e-5)
    close(lof.traceable()(TEST).float(), new, 5e-5)
    assert lof.notes == ([f"k = {count}, {k} of the 120 ID training images"] if isinstance(k, float) else [])
    assert lof.leaves_one_out


def test_an_image_that_is_no_copy_of_the_bank_is_new_to_it():
    lof = fitted(LOF(k=5))
    assert torch.equal(lof.score(replace(TEST, copy_of=torch.full((30,), -1))), lof.score(TEST))
    copies = part(OWN, slice(40))
    assert torch.equal(
        lof.score(replace(copies, indices=None)), lof.score(OWN)[:40]
    )  # as the image that they are copies of


def test_processes_find_the_same_factors():
    def work(exchange: Exchange) -> Tensor:
        lof = LOF(k=9)
        lof.update(part(TRAIN, torch.arange(120) % 4 == exchange.rank) if exchange.rank < 2 else part(TRAIN, slice(0)))
        if exchange.rank == 1:
            lof.update(part(TRAIN, torch.arange(120) % 4 > 1))
        for statistic in share([lof]):
            statistic.join(exchange)
        lof.fit()
        return lof.score(part(OWN, slice(10 * exchange.rank, 100)))

    own, _ = factors(9)
    for rank, found in enumerate(together(3, work)):
        close(found, own[10 * rank : 100], 5e-5)


def test_what_is_saved_is_all_that_lof_and_a_share_need():
    for make in (lambda: LOF(k=0.2), lambda: KNN(k=0.2)):
        one, other = fitted(make()), make()
        other.restore(one.state())
        other.bank = Bank.restored([one.bank.state()])
        assert torch.equal(other.score(TEST), one.score(TEST))
        assert torch.equal(other.score(OWN), one.score(OWN))


def test_wide_features_and_many_images_equal_scikit_learn():
    train = sample(700, 3, width=300)
    expected = LocalOutlierFactor(n_neighbors=35).fit(sphere(train)).negative_outlier_factor_
    found = fitted(LOF(k=0.05), train).score(replace(train, copy_of=train.indices))
    apart = (found.double() - torch.from_numpy(expected)).abs()
    assert apart.max() < 1e-3 and (apart > 5e-5).sum() <= 7  # where rounding settles which is the k-th neighbour


def test_copies_in_the_bank_have_a_density_that_is_a_number():
    twice = replace(TRAIN, features=torch.cat([TRAIN.features[:110], TRAIN.features[:10]]))
    scores = fitted(LOF(k=1), twice).score(replace(twice, copy_of=TRAIN.indices))
    torch.testing.assert_close(scores[110:], -torch.ones(10))  # each lies as densely as its twin
    assert scores.isfinite().all() and scores.min() > -1e4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LOF(k=0), r"lof: k = 0, expected a whole number from 1 on, or a share of the bank"),
        (lambda: LOF(k=1.0), r"lof: k = 1.0, expected"),
        (lambda: fitted(LOF(k=120), OWN), r"lof: k = 120, but an image of the bank has 119 others there"),
        (lambda: fitted(LOF(k=120)), r"lof: k = 120, but an image of the bank has 119 others there"),
        (lambda: fitted(LOF(k=121)), r"lof: k = 121, but the bank has 120 rows"),
        (lambda: fitted(LOF(k=0.1), part(TRAIN, slice(0))), r"lof: k = 1, but the bank has 0 rows"),
        (lambda: fitted(LOF(k=0.1), part(TRAIN, slice(1))), r"lof: k = 1, but an image of the bank has 0 others there"),
        (
            lambda: fitted(LOF(k=0.1), part(TRAIN, slice(2))),
            r"lof: all 2 ID training images lie as densely as their 1 nearest",
        ),
        (lambda: fitted(LOF(), SAME), r"lof: all 120 ID training images lie as densely as their 10 nearest"),
        (lambda: fitted(LOF(), replace(TRAIN, indices=None)), r"bank: .* takes the indices of all"),
        (
            lambda: fitted(Gaussian(), SAME),
            r"gaussian: overall features: the covariance is zero; expected rows that dif",
        ),
        (lambda: fitted(Gaussian(), part(TRAIN, slice(1))), r"gaussian: overall features: the covariance is zero"),
        (lambda: fitted(Gaussian(), part(TRAIN, slice(0))), r"gaussian: no ID training image was taken in"),
        (lambda: fitted(PCA(), SAME), r"pca: nothing but rounding lies outside .*; expected rows that differ"),
        (lambda: fitted(PCA(), part(TRAIN, slice(1))), r"pca: nothing but rounding lies outside"),
        (lambda: fitted(PCA(), part(TRAIN, slice(0))), r"pca: no ID training image was taken in"),
        (lambda: fitted(PCA(dim=12)), r"pca: dim = 12, expected less than 12, the rank"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# One Gaussian, and a PCA


@pytest.mark.parametrize("unit", [False, True])
def test_gaussian_equals_scikit_learn(unit):
    train, test = ((sphere if unit else lambda each: each.features.double().numpy())(each) for each in (TRAIN, TEST))
    expected = -EmpiricalCovariance().fit(train).mahalanobis(test)
    labels = torch.arange(120) % 3 - 1  # are of no matter
    for train in (replace(TRAIN, labels=None), replace(TRAIN, labels=labels)):
        close(fitted(Gaussian(normalize=unit), train).score(TEST), expected, 1e-5)


def test_gaussian_is_mahalanobis_with_a_single_class():
    few = part(replace(TRAIN, labels=torch.zeros(120, dtype=torch.int64)), slice(9))  # fewer than dimensions
    one, other = fitted(Gaussian(), few), fitted(Mahalanobis(), few)
    close(one.score(TEST), other.score(TEST).double())
    assert one.notes == ["overall covariance of rank 8 < 12, shrunk: 0.99 Σ + 0.01 (tr Σ / D) I"]
    both = fitted(Gaussian()), fitted(Mahalanobis())
    assert len(share(both)) == 2  # their sums are not the same


@pytest.mark.parametrize("dim", [1, 4, 11])
def test_pca_equals_scikit_learn(dim):
    train, test = (each.features.double().numpy() for each in (TRAIN, TEST))
    model = SklearnPCA(dim, svd_solver="full").fit(train)
    errors = ((test - model.inverse_transform(model.transform(test))) ** 2).sum(axis=1) ** 0.5
    close(fitted(PCA(dim=dim), replace(TRAIN, labels=None)).score(TEST), -errors)


# Images from which nothing can be learnt


NEGATIVE = NegativeLabels(TEXT[:1], WORDS, REFERENCE.neglabel.words)
ONE = Reference(("cat",), TEXT[:1], 10.0, None, None, NEGATIVE, NEGATIVE, -3.0, NEGATIVE, NEGATIVE)
ONE = replace(ONE, text_tower=REFERENCE.text_tower, projection=REFERENCE.projection)
NO_HEAD = replace(REFERENCE, weight=None, bias=None)


def cat(outputs: Outputs) -> Outputs:
    """The same images, of one class, without a head, which one class cannot train."""
    return replace(outputs, labels=torch.zeros_like(outputs.labels), logits=None)


@pytest.mark.parametrize(
    ("reference", "train", "left_out"),
    [
        (ONE, cat(TRAIN), {"mcm", "rmd", "rmd_pp"}),
        (ONE, replace(cat(TRAIN), labels=None), {"mcm", "rmd", "rmd_pp", "mahalanobis", "mahalanobis_pp"}),
        (ONE, part(cat(TRAIN), slice(1)), {"mcm", *COVARIANCES, "lof"}),
        (ONE, part(cat(TRAIN), slice(2)), {"mcm", "rmd", "rmd_pp", "lof"}),
        (NO_HEAD, replace(TRAIN, logits=None), set()),
        (NO_HEAD, replace(SAME, logits=None), {*COVARIANCES, "lof"}),
        (NO_HEAD, part(replace(TRAIN, logits=None), slice(1)), {*COVARIANCES, "lof"}),
        (NO_HEAD, replace(TRAIN, logits=None, features=NAN), {*COVARIANCES, "lof", "knn"}),
    ],
    ids=["one class", "flat", "one image of one class", "two images", "sound", "all the same", "one image", "NaN"],
)
def test_no_number_stands_where_it_means_nothing(reference, train, left_out):
    suite = DetectorSuite(reference, [*map(asked, DETECTORS), *NAMED])
    suite.update(train)
    suite.fit()
    left_out = left_out | ({"gl_mcm", "layered_mcm"} if "mcm" in left_out else set())
    found = suite.score(replace(TEST, logits=None)).scores
    assert all(scores.isfinite().all() and scores.std() > 1e-6 for scores in found.values())
    reasons = {each.detector: each.reason for each in suite.omitted if not re.search("logits|head", each.reason)}
    assert set(reasons) == left_out and not left_out & set(found)
    assert all(len(reason.split()) > 5 for reason in reasons.values())


# Names


def test_those_for_folders_need_neither_labels_nor_texts_nor_a_head():
    detectors, omitted = build_detectors(UNLABELLED, Reference(), {"features"})
    assert omitted == [] and len(detectors) == len(UNLABELLED)
    assert all(fitted(each, replace(TRAIN, labels=None)).score(TEST).isfinite().all() for each in detectors.values())


def test_benchmarks_keep_their_rows():
    assert set(DETECTORS) - set(DEFAULTS) == {
        "lof",
        "gaussian",
        "pca",
        "gl_mcm",
        "layered_mcm",
        "local_knn",
        "negrefine",
        "eoe",
        "negprompt",
        "nci",
    }
    detectors, _ = build_detectors(["lof", "gaussian", "gaussian_pp", "pca"], REFERENCE, ALL)
    assert detectors["gaussian_pp"].beta == 1 and detectors["gaussian"].beta == 0
