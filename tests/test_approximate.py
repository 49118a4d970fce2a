"""k-NN by faiss's inverted lists: what is found has the exact cosines, and what is missed is told."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest
import torch
from detector_data import ALL, REFERENCE, TEST, TRAIN, fitted, part
from processes import together

from clip_ood.detectors import build_detectors
from clip_ood.detectors.approximate_bank import ApproximateBank
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.statistic import share
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs

pytest.importorskip("faiss")


def drawn(count: int, seed: int, width: int = 32) -> Outputs:
    """Images in clusters."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(40, width, generator=torch.Generator().manual_seed(0))
    features = (
        places[torch.randint(40, (count,), generator=generator)] + torch.randn(count, width, generator=generator) / 3
    )
    return Outputs(features=features, indices=torch.arange(count))


MANY, SOME = drawn(6000, 1), drawn(300, 2)


@pytest.mark.parametrize("k", [1, 5, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_lists_together_are_an_exact_search(k, dtype):
    bank = replace(MANY, features=MANY.features.to(dtype))
    exact, ours = fitted(KNN(k=k), bank), fitted(KNN(k=k, index="ivf", probes=10_000), bank)
    torch.testing.assert_close(ours.score(SOME), exact.score(SOME), rtol=0, atol=1e-6)
    assert ours.notes[-1] == "ivf: finds the nearest other of 100.0 % of 1,000 images of the bank"


def test_few_lists_miss_some_and_never_find_what_is_not_there():
    exact, ours = fitted(KNN(), MANY), fitted(KNN(index="ivf", probes=1), MANY)
    found = float(re.search(r"of ([\d.]+) % of", ours.notes[-1])[1])
    gaps = exact.score(SOME) - ours.score(SOME)
    assert 30 < found < 100 and (gaps > -1e-6).all() and (gaps > 1e-4).any()
    more = fitted(KNN(index="ivf", probes=8), MANY)
    assert (exact.score(SOME) - more.score(SOME)).mean() < gaps.mean() / 4


def test_each_index_is_made_once_and_shared(monkeypatch):
    made = []
    monkeypatch.setattr(
        ApproximateBank, "_index", lambda self, make=ApproximateBank._index: made.append(1) or make(self)
    )
    specs = [{"name": "knn", "index": "ivf", "k": k} for k in (1, 3)] + [{"name": "knn", "index": "ivf", "probes": 2}]
    detectors = build_detectors([*specs, "knn"], REFERENCE, ALL)[0]
    assert len(share(detectors.values())) == 3
    for bank in share(detectors.values()):
        bank.update(MANY)
    for detector in detectors.values():
        detector.fit()
        detector.score(SOME)
    assert len(made) == 2


def test_a_search_of_too_few_is_made_exactly():
    exact, ours = fitted(KNN(k=200), MANY), fitted(KNN(k=200, index="ivf", probes=1), MANY)
    torch.testing.assert_close(ours.score(SOME), exact.score(SOME), rtol=0, atol=1e-6)  # no list has 200 rows


@pytest.mark.parametrize("count", [1, 2, 38, 120])
def test_small_banks_have_one_list_or_few(count):
    bank = part(TRAIN, slice(count))
    exact, ours = fitted(KNN(), bank), fitted(KNN(index="ivf"), bank)
    torch.testing.assert_close(ours.score(TEST), exact.score(TEST), rtol=0, atol=1e-6)


def test_an_image_of_the_bank_is_not_its_own_neighbour():
    known = replace(part(MANY, slice(50)), copy_of=torch.arange(50))
    exact, ours = fitted(KNN(), MANY), fitted(KNN(index="ivf", probes=10_000), MANY)
    torch.testing.assert_close(ours.score(known), exact.score(known), rtol=0, atol=1e-6)
    assert (ours.score(known) < 1 - 1e-4).all()


def test_processes_search_their_own_lists():
    def work(exchange):
        detector = KNN(index="ivf", probes=10_000)
        detector.update(part(MANY, slice(3000 * exchange.rank, 3000 * (exchange.rank + 1))))
        detector.bank.join(exchange)
        detector.fit()
        return detector.score(part(SOME, slice(100 * exchange.rank, 100 * (exchange.rank + 1))))

    expected = fitted(KNN(), MANY).score(SOME)
    torch.testing.assert_close(torch.cat(together(2, work)), expected[:200], rtol=0, atol=1e-6)


def test_gradients_pass_through_the_neighbours():
    features = SOME.features[:20].clone().requires_grad_()
    (ours,) = torch.autograd.grad(
        fitted(KNN(k=3, index="ivf", probes=10_000), MANY).score_with_grad(Outputs(features=features)).sum(), features
    )
    (exact,) = torch.autograd.grad(fitted(KNN(k=3), MANY).score_with_grad(Outputs(features=features)).sum(), features)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6)


def test_without_indices_recall_is_not_known():
    ours = fitted(KNN(index="ivf"), replace(MANY, indices=None))
    assert "is not known, as images came without their indices" in ours.notes[-1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"index": "hnsw"}, "index = hnsw, expected exact or ivf"),
        ({"index": "ivf", "probes": 0}, "probes = 0, expected"),
    ],
)
def test_what_it_cannot_be_is_said(spec, message):
    with pytest.raises(UserError, match=message):
        build_detectors([{"name": "knn"} | spec], REFERENCE, ALL)


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'clip-ood\[faiss\]'"):
        KNN(index="ivf")
    KNN()


def test_it_is_neither_saved_nor_exported():
    detector = fitted(KNN(index="ivf"), MANY)
    assert not detector.portable and not detector.monotone and KNN.portable
    with pytest.raises(UserError, match="no graph holds the lists of faiss"):
        detector.traceable()


def test_the_neighbours_are_named_in_the_order_of_their_cosines():
    exact, ours = fitted(KNN(k=5), MANY), fitted(KNN(k=5, index="ivf", probes=10_000), MANY)
    torch.testing.assert_close(ours.bank.nearest(SOME, 5)[1], exact.bank.nearest(SOME, 5)[1])
