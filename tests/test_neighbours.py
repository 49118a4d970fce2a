"""k nearest neighbours against full products, one at a time and in a bank that processes share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detector_data import TEST, TRAIN, WIDTH, close, fitted, part
from processes import together
from torch import Tensor

from clip_ood.detectors import nearest, neighbours
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import score_together, take_in
from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.statistic import share
from clip_ood.outputs import Outputs


def naive_cosines(x: Tensor, bank: Tensor) -> list[list[float]]:
    rows = [[float(q @ b / (q.norm() * b.norm())) for b in bank.double()] for q in x.double()]
    return [sorted(row, reverse=True) for row in rows]


@pytest.mark.parametrize(("k", "kth"), [(1, False), (1, True), (7, False), (7, True), (120, False)])
def test_knn_equals_its_definition(k, kth):
    top = naive_cosines(TEST.features, TRAIN.features)
    expected = [row[k - 1] if kth else sum(row[:k]) / k for row in top]
    close(fitted(KNN(k=k, kth=kth)).score(TEST), expected)


@pytest.mark.parametrize("together", [1, 2, 4, 16])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_nearest_equals_one_full_product(monkeypatch, k, together):
    for name, value in {"QUERIES": 7, "BANK": 11, "TOGETHER": together}.items():
        monkeypatch.setattr(f"clip_ood.detectors.neighbours.{name}", value)
    chunks = [TRAIN.features[:50], TRAIN.features[:0], TRAIN.features[50:53], TRAIN.features[53:]]
    expected = (TEST.features @ TRAIN.features.T).topk(k, dim=1)
    cosines, positions = nearest(TEST.features, chunks, k)
    torch.testing.assert_close(cosines, expected.values)
    assert torch.equal(positions, expected.indices)


@pytest.mark.parametrize("order", ["rising", "falling", "equal", "by query"])
@pytest.mark.parametrize("k", [1, 2, 9])
def test_nearest_in_a_bank_in_any_order(monkeypatch, order, k):
    for name, value in {"QUERIES": 5, "BANK": 30, "TOGETHER": 4}.items():
        monkeypatch.setattr(f"clip_ood.detectors.neighbours.{name}", value)
    generator = torch.Generator().manual_seed(0)
    queries, bank = (
        torch.randint(-3, 4, (n, 6), generator=generator).float() for n in (12, 100)
    )  # many equal products
    mean = (bank @ queries.sum(dim=0)).sort(descending=order == "falling").indices
    bank = {"rising": bank[mean], "falling": bank[mean], "equal": bank[:1].repeat(100, 1)}.get(
        order, queries.repeat_interleave(9, dim=0)[:100]
    )
    products, positions = nearest(queries, [bank[:70], bank[70:]], k)
    assert torch.equal(products, (queries @ bank.T).topk(k, dim=1).values)
    assert torch.equal(products, (queries @ bank.T).gather(1, positions))
    assert all(len(row.unique()) == k for row in positions)


def test_nearest_refuses_k_outside_the_bank():
    for k in (-1, 121):
        with pytest.raises(ValueError, match=rf"k = {k}, expected 0 ≤ k ≤ 120"):
            nearest(TEST.features, [TRAIN.features], k)


def test_neighbours_are_rows_of_the_image_set():
    shuffled = torch.randperm(120, generator=torch.Generator().manual_seed(2))
    bank = fitted(KNN(), part(TRAIN, shuffled[:31]), part(TRAIN, shuffled[31:])).bank
    cosines, indices = bank.nearest(TEST, 4)
    expected = torch.nn.functional.cosine_similarity(TEST.features[:, None], TRAIN.features[None], dim=2).topk(4)
    torch.testing.assert_close(cosines, expected.values)
    assert torch.equal(indices, expected.indices + 1000)
    with pytest.raises(ValueError, match="k = 121, expected 1 ≤ k ≤ 120"):
        bank.nearest(TEST, 121)


@pytest.mark.parametrize("k", [1, 5, 60, 120])
def test_neighbours_in_a_divided_bank_are_those_of_the_whole(k):
    def work(exchange: Exchange) -> tuple[Tensor, Tensor]:
        bank = Bank()
        bank.update(part(TRAIN, torch.arange(120) % 3 == exchange.rank))
        bank.join(exchange)
        return bank.nearest(part(TEST, slice(exchange.rank, 10 + 3 * exchange.rank)), k)

    whole = Bank()
    whole.update(TRAIN)
    for rank, found in enumerate(together(3, work)):
        for mine, one in zip(found, whole.nearest(part(TEST, slice(rank, 10 + 3 * rank)), k), strict=True):
            torch.testing.assert_close(mine, one)


@pytest.mark.parametrize(("share", "k"), [(0.05, 6), (0.001, 1), (0.999, 119)])
def test_a_share_of_the_bank_is_rounded_to_a_number_of_neighbours(share, k):
    knn = fitted(KNN(k=share), part(TRAIN, slice(70)), part(TRAIN, slice(70, None)))
    assert torch.equal(knn.score(TEST), fitted(KNN(k=k)).score(TEST))
    assert knn.notes == [f"k = {k}, {share} of the 120 ID training images"]
    torch.testing.assert_close(knn.traceable()(TEST), knn.score(TEST))
    assert fitted(KNN(k=7)).notes == []


def test_a_share_of_a_large_bank_stands_for_500_neighbours_at_most():
    many = Outputs(features=torch.randn(1100, 4, generator=torch.Generator().manual_seed(0)))
    knn = fitted(KNN(k=0.5), many)
    assert torch.equal(knn.score(many), fitted(KNN(k=500), many).score(many))
    assert knn.notes == ["k = 500, 0.5 of the 1,100 ID training images (at most 500)"]


# Without the image itself

COPIES = torch.tensor([1000 + row if row < 100 else row - 90 + 1000 if row < 110 else -1 for row in range(120)])


def without_copies(x: Tensor, copies: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The cosines and indices of the k nearest of the first 100 of TRAIN, in plain loops."""
    found = []
    for q, copy in zip(x.double(), copies.tolist(), strict=True):
        others = [
            (float(q @ b / (q.norm() * b.norm())), 1000 + row)
            for row, b in enumerate(TRAIN.features[:100].double())
            if 1000 + row != copy
        ]
        found.append(sorted(others, reverse=True)[:k])
    return torch.tensor([[c for c, _ in each] for each in found]), torch.tensor(
        [[i for _, i in each] for each in found]
    )


@pytest.mark.parametrize("k", [1, 4, 99])
def test_no_image_is_its_own_neighbour_nor_that_of_its_copy(k):
    features = torch.cat([TRAIN.features[:100], TRAIN.features[10:20], TRAIN.features[110:]])
    asked = Outputs(features=features, copy_of=COPIES)
    knn = fitted(KNN(k=k), part(TRAIN, slice(100)))
    cosines, indices = knn.bank.nearest(asked, k)
    expected = without_copies(features, COPIES, k)
    torch.testing.assert_close(cosines, expected[0])
    assert torch.equal(indices, expected[1])
    close(knn.score(asked), expected[0].mean(dim=1))
    assert knn.leaves_one_out and not Bank().most > 1


@pytest.mark.parametrize("k", [1, 40, 99])
def test_a_divided_bank_leaves_out_the_same(k):
    features = torch.cat([TRAIN.features[:100], TRAIN.features[10:20], TRAIN.features[110:]])
    asked = Outputs(features=features, copy_of=COPIES)
    expected = without_copies(features, COPIES, k)

    def work(exchange: Exchange) -> tuple[Tensor, Tensor]:
        bank = Bank()
        bank.update(part(TRAIN, (torch.arange(120) % 3 == exchange.rank) & (torch.arange(120) < 100)))
        bank.join(exchange)
        return bank.nearest(part(asked, slice(35 * exchange.rank, 35 * exchange.rank + 50)), k)

    for rank, found in enumerate(together(3, work)):
        for mine, one in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, one[35 * rank : 35 * rank + 50])


def test_what_is_remembered_is_of_rows_with_the_same_copies():
    bank = Bank()
    bank.update(TRAIN)
    bank.expect(120)  # of another detector, which images that are not in the bank are asked for
    known = replace(TRAIN, copy_of=TRAIN.indices)
    assert torch.equal(bank.nearest(TRAIN, 1)[1][:, 0], TRAIN.indices)
    assert not (bank.nearest(known, 1)[1][:, 0] == TRAIN.indices).any()
    assert torch.equal(bank.nearest(known, 119)[1], bank.nearest(TRAIN, 120)[1][:, 1:])
    unknown = replace(TRAIN, indices=None)
    bank.update(unknown)  # -1, as a copy of none is
    assert (bank.nearest(replace(TRAIN, copy_of=torch.full((120,), -1)), 2)[0] > 0.9999).all()


def test_too_few_others_are_counted_in_every_process():
    def work(exchange: Exchange) -> str:
        bank = Bank()
        bank.update(part(TRAIN, slice(60 * exchange.rank, 60 * exchange.rank + 60)))
        bank.join(exchange)
        copies = torch.full((30,), 1004 if exchange.rank else -1)
        with pytest.raises(ValueError) as error:
            bank.nearest(replace(TEST, copy_of=copies), 120)
        bank.nearest(replace(TEST, copy_of=torch.full((30,), -1)), 120)
        return str(error.value)

    said = "nearest: k = 120, but an image of the bank has 119 others there; expected k of at most that"
    assert together(2, work) == [said, said]


def test_one_search_serves_all_who_ask_about_the_same_rows(monkeypatch):
    searched = []
    monkeypatch.setattr("clip_ood.detectors.bank.nearest", lambda *a: searched.append(a[2]) or nearest(*a))
    detectors = [KNN(k=1), KNN(k=9), KNN(k=3, kth=True)]
    share(detectors)
    take_in(detectors, TRAIN)
    for detector in detectors:
        detector.fit()
    scores = score_together(detectors, TEST)
    assert searched == [9]
    for detector, got in zip(detectors, scores, strict=True):
        torch.testing.assert_close(got, fitted(KNN(k=detector.k, kth=detector.kth)).score(TEST))
    changed = Outputs(features=TEST.features.clone())
    before = detectors[0].score(changed)
    changed.features.neg_()
    assert not torch.equal(detectors[0].score(changed), before)  # nothing is remembered from one call to the next


def test_low_precision_finds_the_neighbours_of_float32(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    bank = torch.nn.functional.normalize(torch.randn(3000, 64, generator=generator), dim=1)
    near = bank[:300] + 1e-3 * torch.randn(300, 64, generator=generator)  # closer together than bfloat16 can tell
    bank, queries = torch.cat([bank, near, near + 1e-5]), near + 1e-4
    monkeypatch.setattr(neighbours, "MANY", 1)
    swept = []
    sweep = neighbours._sweep
    monkeypatch.setattr(neighbours, "_sweep", lambda *a: swept.append((len(a[0]), a[-1])) or sweep(*a))
    found = {}
    for dtype in (None, torch.bfloat16, torch.float16):
        monkeypatch.setattr(neighbours, "low_precision", lambda device, dtype=dtype: dtype)
        found[dtype] = nearest(queries, [bank[:1000], bank[1000:]], 2, [torch.ones(1000), torch.ones(2600)])
    exact = (queries.double() @ bank.double().T).topk(2)
    for products, positions in found.values():
        torch.testing.assert_close(products.double(), exact.values, rtol=0, atol=1e-6)
        torch.testing.assert_close((queries * bank[positions[:, 0]]).sum(1).double(), exact.values[:, 0])
    assert torch.bfloat16 in {dtype for _, dtype in swept}


def test_queries_that_low_precision_cannot_decide_are_searched_again(monkeypatch):
    monkeypatch.setattr(neighbours, "low_precision", lambda device: torch.bfloat16)
    monkeypatch.setattr(neighbours, "MANY", 1)
    swept = []
    sweep = neighbours._sweep
    monkeypatch.setattr(neighbours, "_sweep", lambda *a: swept.append((len(a[0]), a[-1])) or sweep(*a))
    same = torch.nn.functional.normalize(torch.ones(500, 16) + 1e-5 * torch.arange(500)[:, None], dim=1)
    apart = torch.eye(16).repeat(20, 1)
    products, positions = nearest(torch.cat([same[:100], -apart]), [torch.cat([same, -apart[:16]])], 1)
    assert swept == [(420, torch.bfloat16), (100, torch.float32)]
    torch.testing.assert_close(products[100:], torch.ones(320, 1))
    assert torch.equal(positions[100:, 0], 500 + torch.arange(16).repeat(20))


def test_knn_bank_is_kept_as_it_came():
    half, full = (fitted(KNN(), replace(TRAIN, features=TRAIN.features.to(t))) for t in (torch.float16, torch.float32))
    assert [chunk.dtype for chunk in half.bank.chunks] == [torch.float16]
    assert full.bank.chunks[0].data_ptr() == TRAIN.features.data_ptr()
    torch.testing.assert_close(half.score(TEST), full.score(TEST), rtol=0, atol=1e-3)


def test_knn_zero_vector_is_at_cosine_zero():
    zero = Outputs(features=torch.zeros(2, WIDTH))
    assert torch.equal(fitted(KNN()).score(zero), torch.zeros(2))
    assert torch.equal(fitted(KNN(), zero).score(TEST), torch.zeros(30))
