"""Every detector against its definition, one sample and one class at a time in float64."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from detector_data import ALL, CLASSES, REFERENCE, TEST, TEXT, TRAIN, WIDTH, close, fitted, part, sample
from processes import together
from torch import Tensor

from clip_ood.detectors import DETECTORS, Detector, Omitted, build_detectors, nearest, neighbours, read_specs
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import score_together, take_in
from clip_ood.detectors.energy import Energy
from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.mahalanobis import RMD, Mahalanobis, MahalanobisLogits, RMDLogits
from clip_ood.detectors.max_logit import MaxLogit
from clip_ood.detectors.mcm import MCM
from clip_ood.detectors.msp import MSP
from clip_ood.detectors.statistic import share
from clip_ood.evaluation import DetectorSuite
from clip_ood.outputs import Outputs, Reference

# Naive definitions


def naive_cosines(x: Tensor, bank: Tensor) -> list[list[float]]:
    rows = [[float(q @ b / (q.norm() * b.norm())) for b in bank.double()] for q in x.double()]
    return [sorted(row, reverse=True) for row in rows]


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


# Scores without state


def test_logit_scores_equal_their_definitions():
    rows = TEST.logits.double().tolist()
    for t in (1.0, 2.5):
        sums = [sum(math.exp(z / t) for z in row) for row in rows]
        close(MSP(temperature=t).score(TEST), [math.exp(max(r) / t) / s for r, s in zip(rows, sums, strict=True)])
        close(Energy(temperature=t).score(TEST), [t * math.log(s) for s in sums])
    close(MaxLogit().score(TEST), [max(row) for row in rows])


@pytest.mark.parametrize("detector", [MSP(), Energy(), MaxLogit()])
def test_logit_scores_of_huge_and_tied_logits_are_finite(detector):
    scores = detector.score(Outputs(logits=torch.tensor([[1e4, -1e4], [3.0, 3.0]])))
    assert scores.isfinite().all()
    assert scores[0] > scores[1]


@pytest.mark.parametrize("tau", [1.0, 0.01])
def test_mcm_equals_its_definition(tau):
    expected = []
    for h in TEST.embeddings.double():
        terms = [math.exp(float(h @ t) / tau) for t in TEXT.double()]
        expected.append(max(terms) / sum(terms))
    close(MCM(REFERENCE, tau=tau).score(TEST), expected)


def test_mcm_keeps_apart_scores_in_a_narrow_range():
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(1000, 64, generator=generator), dim=1)
    image = torch.nn.functional.normalize(1 + 1e-2 * torch.randn(2000, 64, generator=generator), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = MCM(Reference(text_embeddings=text)).score(Outputs(embeddings=image))
    exact = ((image.double() @ text.double().T).softmax(dim=1)).amax(dim=1)
    assert float(((scores - exact) / exact).abs().max()) < 1e-6
    assert len(scores.unique()) > 1900


# k nearest neighbours


@pytest.mark.parametrize(("k", "kth"), [(1, False), (1, True), (7, False), (7, True), (120, False)])
def test_knn_equals_its_definition(k, kth):
    top = naive_cosines(TEST.features, TRAIN.features)
    expected = [row[k - 1] if kth else sum(row[:k]) / k for row in top]
    close(fitted(KNN(k=k, kth=kth)).score(TEST), expected)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_nearest_equals_one_full_product(monkeypatch, k):
    monkeypatch.setattr("clip_ood.detectors.neighbours.QUERIES", 7)
    monkeypatch.setattr("clip_ood.detectors.neighbours.BANK", 11)
    chunks = [TRAIN.features[:50], TRAIN.features[:0], TRAIN.features[50:53], TRAIN.features[53:]]
    expected = (TEST.features @ TRAIN.features.T).topk(k, dim=1)
    cosines, positions = nearest(TEST.features, chunks, k)
    torch.testing.assert_close(cosines, expected.values)
    assert torch.equal(positions, expected.indices)


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


# Mahalanobis


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


# What all share


def make(name: str) -> Detector:
    return build_detectors([name], REFERENCE, ALL)[0][name]


LEARNING = [name for name in DETECTORS if make(name).learns]


@pytest.mark.parametrize("name", LEARNING)
def test_batches_in_any_order_equal_one_update(monkeypatch, name):
    once = fitted(make(name)).score(TEST)
    rows = torch.argsort(TRAIN.labels, descending=True)  # the first batch holds the last classes alone
    batches = [part(TRAIN, chunk) for chunk in rows.split(13)]
    monkeypatch.setattr("clip_ood.detectors.detector.ROWS", 5)
    torch.testing.assert_close(fitted(make(name), *batches).score(TEST), once)


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("shares", [((0, 57), (57, 120)), ((0, 0), (0, 119), (119, 120))])
def test_processes_with_shares_of_the_images_score_as_one(name, shares):
    def work(exchange: Exchange) -> Tensor:
        detector = make(name)
        detector.update(part(TRAIN, slice(*shares[exchange.rank])))
        for statistic in share([detector]):
            statistic.join(exchange)
        detector.fit()
        return detector.score(part(TEST, slice(10 * exchange.rank, 10 * exchange.rank + 7 + exchange.rank)))

    expected = fitted(make(name)).score(TEST)
    for rank, scores in enumerate(together(len(shares), work)):
        torch.testing.assert_close(scores, expected[10 * rank : 10 * rank + 7 + rank])


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


@pytest.mark.parametrize("name", DETECTORS)
def test_half_precision_inputs_give_float32_scores(name):
    def half(outputs: Outputs) -> Outputs:
        return outputs.map(lambda value: value.half() if value.is_floating_point() else value)

    def full(value: Tensor) -> Tensor:
        return value.float() if value.is_floating_point() else value

    detectors, _ = build_detectors([name], REFERENCE, ALL)
    scores = fitted(detectors[name], half(TRAIN)).score(half(TEST))
    same, _ = build_detectors([name], REFERENCE, ALL)
    expected = fitted(same[name], half(TRAIN).map(full)).score(half(TEST).map(full))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_leave_inference_mode_and_do_not_depend_on_the_chunk(monkeypatch, name):
    with torch.inference_mode():
        detector = make(name)
        detector.update(part(TRAIN, slice(0, 0)))
        detector.update(part(TRAIN, slice(0, 60)))
    assert detector.name == name
    expected = fitted(detector, part(TRAIN, slice(60, None))).score(TEST)
    monkeypatch.setattr("clip_ood.detectors.detector.ROWS", 4)
    torch.testing.assert_close(detector.score(TEST), expected)
    assert detector.score(part(TEST, slice(0, 0))).shape == (0,)


@pytest.mark.parametrize("name", LEARNING)
def test_score_before_fit_is_an_error(name):
    detector = make(name)
    with pytest.raises(ValueError, match=f"{name}: score was asked for before fit"):
        detector.score(TEST)
    detector.update(TRAIN)
    with pytest.raises(ValueError, match="before fit"):
        detector.score(TEST)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KNN(k=0), r"knn: k = 0, expected"),
        (lambda: KNN(k=1.5), r"knn: k = 1.5, expected"),
        (lambda: fitted(KNN(k=121)), r"knn: k = 121, but the bank has 120 rows"),
        (lambda: fitted(KNN(), part(TRAIN, slice(0, 0))), r"knn: k = 1, but the bank has 0 rows"),
        (lambda: MCM(REFERENCE, tau=0), r"mcm: tau = 0, expected"),
        (lambda: MCM(), r"mcm: needs text_embeddings in the reference"),
        (lambda: MSP(temperature=-1), r"msp: temperature = -1, expected"),
        (lambda: Energy(temperature=0), r"energy: temperature = 0, expected"),
        (lambda: MSP().score(replace(TEST, logits=None)), r"msp: needs logits"),
        (lambda: RMD().update(replace(TRAIN, labels=None)), r"rmd: needs labels"),
        (lambda: RMD().update(replace(TRAIN, labels=TRAIN.labels[1:])), r"rmd: labels has 119 rows, expected 120"),
        (lambda: MaxLogit().score(Outputs(logits=torch.tensor([[float("nan")]]))), r"max_logit: logits .* not finite"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Names and building


class Mine(Detector):
    requires = ("features",)

    def __init__(self, reference: Reference | None = None, *, sign: float = 1.0) -> None:
        super().__init__(reference)
        self.sign = sign

    def _score(self, rows: Outputs) -> Tensor:
        return self.sign * rows.features.norm(dim=1)


def test_all_are_the_default():
    detectors, omitted = build_detectors(None, REFERENCE, ALL)
    assert sorted(detectors) == sorted([*DETECTORS, "mahalanobis_pp"])
    assert detectors["mahalanobis_pp"].normalize
    assert omitted == []


def test_what_cannot_run_is_omitted_with_its_reason():
    detectors, omitted = build_detectors(None, Reference(), {"features"})
    assert list(detectors) == ["knn"]
    reasons = {left.detector: left.reason for left in omitted}
    assert reasons["msp"] == "needs logits: this run trains no head"
    assert reasons["rmd"] == "needs class labels of the ID training images"
    assert reasons["rmd_logits"] == f"{reasons['msp']}; {reasons['rmd']}"
    assert "needs text embeddings" in reasons["mcm"]
    assert build_detectors(["msp"], Reference(), set())[1] == [Omitted("msp", reasons["msp"])]


def test_what_cannot_be_fitted_is_omitted_with_its_reason():
    wrong = (TRAIN.logits.argmax(dim=1) + 1) % CLASSES
    suite = DetectorSuite(REFERENCE, ["she", {"name": "knn", "k": 1000}, "msp"])
    suite.update(replace(TRAIN, labels=wrong))
    suite.fit()
    assert list(suite.score(TEST).scores) == list(suite.detectors) == ["msp"]
    reasons = {left.detector: left.reason for left in suite.omitted}
    assert reasons["she"].startswith("the head predicts no ID training image")
    assert reasons["knn"].startswith(f"k = 1000, but the bank has {len(wrong)} rows")
    suite = DetectorSuite(REFERENCE, ["she"])
    suite.update(replace(TRAIN, labels=wrong))
    with pytest.raises(ValueError, match=r"None of the detectors.*she: the head predicts no"):
        suite.fit()


def test_a_name_asked_for_twice_gets_columns_of_its_own():
    specs = ["knn", {"name": "knn", "k": 50}, {"name": "knn", "k": 5, "kth": True}, {"name": "mcm", "tau": 0.1}]
    detectors, _ = build_detectors([*specs, {"name": "knn", "k": 9, "as": "nine"}], REFERENCE, ALL)
    assert list(detectors) == ["knn", "knn_k50", "knn_k5_kth", "mcm", "nine"]
    assert (detectors["knn_k50"].k, detectors["knn_k5_kth"].kth, detectors["mcm"].tau) == (50, True, 0.1)
    with pytest.raises(ValueError, match="column 'knn' is asked for 2 times"):
        read_specs(["knn", "knn"])
    with pytest.raises(ValueError, match="the list is empty; name some, or leave the key out"):
        read_specs([])


def test_a_class_of_the_user_is_named_by_its_path():
    path = f"{__name__}.Mine"
    detectors, _ = build_detectors([path, {"name": path, "sign": -1.0}], Reference(), ALL)
    assert list(detectors) == ["Mine", "Mine_sign-1.0"]
    close(detectors["Mine_sign-1.0"].score(TEST), -TEST.features.double().norm(dim=1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("knm", "unknown name 'knm'; nearest: knn"),
        ("no_such_package.Score", "no module 'no_such_package'"),
        ("torch.nn.Linear", "expected a subclass of clip_ood.detectors.Detector"),
        ("torch.nn.NoSuchThing", "expected a subclass of clip_ood.detectors.Detector"),
        ({"name": "knn", "K": 3}, "knn: unknown parameter 'K', expected k, kth"),
        ({"name": "max_logit", "k": 3}, "max_logit: unknown parameter 'k', expected none"),
        ({"name": "knn", "k": 0}, "knn: k = 0"),
        ({"k": 3}, "expected a name or a mapping with the key 'name'"),
        (7, "expected a name or a mapping"),
    ],
)
def test_what_a_config_gets_wrong_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        build_detectors([spec], REFERENCE, ALL)


def test_names_do_not_import_torch():
    code = (
        "import sys; from clip_ood.detectors.names import DETECTORS, read_specs; read_specs(None);"
        "assert 'torch' not in sys.modules; from clip_ood.detectors import Detector; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
