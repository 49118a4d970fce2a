"""Scores of logits against their definition, one sample and one class at a time, and what all detectors share."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from detector_data import ALL, REFERENCE, TEST, TEXT, TRAIN, asked, close, fitted, part
from processes import together
from torch import Tensor

from clip_ood.detectors import DETECTORS, Detector, build_detectors
from clip_ood.detectors.energy import Energy
from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.mahalanobis import RMD
from clip_ood.detectors.max_logit import MaxLogit
from clip_ood.detectors.mcm import MCM, largest_softmax
from clip_ood.detectors.msp import MSP
from clip_ood.detectors.names import NAMED
from clip_ood.detectors.statistic import share
from clip_ood.detectors.trial import try_parameters
from clip_ood.detectors.vim import PCA
from clip_ood.outputs import Outputs, Reference

WIDER = Outputs(features=torch.cat([TRAIN.features] * 2, dim=1))

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


@pytest.mark.parametrize("tau", [3.0, 1.0, 0.1, 0.01])
@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_the_largest_softmax_of_float32_cosines_is_near_that_of_float64(tau, classes):
    generator = torch.Generator().manual_seed(0)
    text, image = (torch.randn(n, 64, generator=generator) for n in (classes, 500))
    text[1:2] = text[:1]  # a tie
    cosines = torch.nn.functional.normalize(image, dim=1) @ torch.nn.functional.normalize(text, dim=1).T
    exact = torch.nn.functional.normalize(image.double(), dim=1) @ torch.nn.functional.normalize(text.double(), dim=1).T
    exact = (exact / tau).softmax(dim=1).amax(dim=1)
    errors = (largest_softmax(cosines, tau) / exact - 1).abs()
    assert float(errors.max()) < 1e-6 * max(1, 1 / tau)


def test_the_largest_softmax_has_the_gradient_of_a_softmax():
    cosines = torch.randn(5, 7, dtype=torch.double, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (ours,) = torch.autograd.grad(largest_softmax(cosines, 0.3).sum(), cosines)
    (theirs,) = torch.autograd.grad((cosines / 0.3).softmax(dim=1).amax(dim=1).sum(), cosines)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("values", [[math.nan], [math.inf], [math.inf, -math.inf], [3e38, 3e38, -math.inf]])
def test_values_that_are_not_finite_are_refused_wherever_they_stand(values):
    logits = torch.zeros(9, 4)
    logits[-1, : len(values)] = torch.tensor(values)
    with pytest.raises(ValueError, match="msp: logits has values that are not finite"):
        MSP().score(Outputs(logits=logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_values_whose_sum_is_not_finite_are_scored(dtype):
    largest = torch.full((2, 2), torch.finfo(dtype).max, dtype=dtype)
    assert MSP().score(Outputs(logits=largest)).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_do_not_depend_on_how_many_images_are_taken_at_once(name, monkeypatch):
    detector = fitted(make(name))
    expected = detector.score(TEST)
    sizes, score = [], detector._score
    monkeypatch.setattr(type(detector), "at_once", lambda self, rows: 2)
    monkeypatch.setattr(detector, "_score", lambda rows: sizes.append(len(rows)) or score(rows))
    torch.testing.assert_close(detector.score(TEST), expected)
    assert sizes == [2] * 15


def test_mcm_keeps_apart_scores_in_a_narrow_range():
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(1000, 64, generator=generator), dim=1)
    image = torch.nn.functional.normalize(1 + 1e-2 * torch.randn(2000, 64, generator=generator), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = MCM(Reference(text_embeddings=text)).score(Outputs(embeddings=image))
    exact = ((image.double() @ text.double().T).softmax(dim=1)).amax(dim=1)
    assert float(((scores - exact) / exact).abs().max()) < 1e-6
    assert len(scores.unique()) > 1900


# What all share


def make(name: str) -> Detector:
    return build_detectors([asked(name)], REFERENCE, ALL)[0][name]


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


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_whole_number_type_are_the_same_classes(name, dtype):
    expected = fitted(make(name)).score(TEST)
    torch.testing.assert_close(fitted(make(name), replace(TRAIN, labels=TRAIN.labels.to(dtype))).score(TEST), expected)


@pytest.mark.parametrize("name", DETECTORS)
def test_half_precision_inputs_give_float32_scores(name):
    def half(outputs: Outputs) -> Outputs:
        return outputs.map(lambda value: value.half() if value.is_floating_point() else value)

    def full(value: Tensor) -> Tensor:
        return value.float() if value.is_floating_point() else value

    scores = fitted(make(name), half(TRAIN)).score(half(TEST))
    expected = fitted(make(name), half(TRAIN).map(full)).score(half(TEST).map(full))
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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "knn", "k": 0}, "knn: k = 0"),
        ({"name": "vim", "dim": 0}, "vim: dim = 0"),
        ({"name": "eoe", "beta": -1}, "eoe: beta = -1"),
        ({"name": "negprompt", "tau": 0}, "negprompt: tau = 0"),
        ({"name": "negrefine", "k": 0}, "negrefine: k = 0"),
        ({"name": "knn", "layer": 2, "k": -1}, "knn: k = -1"),
        ({"name": "layered_mcm", "layer": "1+2", "bins": 1}, "layered_mcm: bins = 1"),
        ({"name": "gl_mcm", "weight": [1, -1]}, "gl_mcm: weight = -1"),
    ],
)
def test_a_parameter_out_of_range_is_said_before_anything_is_known_of_the_run(spec, message):
    with pytest.raises(ValueError, match=message):
        try_parameters(["mcm", spec])
    try_parameters([*map(asked, DETECTORS), *NAMED])


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
        (
            lambda: KNN(k=1.5),
            r"knn: k = 1.5, expected a whole number from 1 on, or a share of the bank between 0 and 1",
        ),
        (lambda: KNN(k=0.0), r"knn: k = 0.0, expected"),
        (lambda: KNN(k=1.0), r"knn: k = 1.0, expected"),
        (
            lambda: fitted(KNN(k=120), replace(TRAIN, copy_of=TRAIN.indices)),
            r"knn: k = 120, but an image of the bank has 119 others there",
        ),
        (
            lambda: fitted(KNN(k=0.5), part(replace(TRAIN, copy_of=TRAIN.indices), slice(1))),
            r"knn: k = 1, but an image of the bank has 0 others there",
        ),
        (lambda: fitted(KNN(k=121)), r"knn: k = 121, but the bank has 120 rows"),
        (lambda: fitted(KNN(), part(TRAIN, slice(0, 0))), r"knn: k = 1, but the bank has 0 rows"),
        (lambda: MCM(REFERENCE, tau=0), r"mcm: tau = 0, expected"),
        (lambda: MCM(), r"mcm: needs text_embeddings in the reference"),
        (lambda: MSP(temperature=-1), r"msp: temperature = -1, expected"),
        (lambda: Energy(temperature=0), r"energy: temperature = 0, expected"),
        (lambda: MSP().score(replace(TEST, logits=None)), r"msp: needs logits"),
        (lambda: RMD().update(replace(TRAIN, labels=None)), r"rmd: needs labels"),
        (lambda: RMD().update(replace(TRAIN, labels=TRAIN.labels[1:])), r"rmd: labels has 119 rows, expected 120"),
        (lambda: PCA().update(replace(TRAIN, labels=TRAIN.labels[1:])), r"pca: labels has 119 rows, expected 120"),
        (lambda: fitted(PCA()).score(WIDER), r"pca: features has rows of 24 numbers, and it has taken in rows of 12"),
        (lambda: fitted(KNN()).update(WIDER), r"knn: features has rows of 24 numbers, and it has taken in rows of 12"),
        (lambda: MSP().score(part(TEST, 0)), r"msp: logits is \(5,\) of float32, expected \(N, D\) of floats"),
        (lambda: KNN().update(Outputs(TRAIN.features[:, :, None])), r"knn: features is \(120, 12, 1\) of float32, exp"),
        (
            lambda: RMD().update(replace(TRAIN, features=TRAIN.features.long())),
            r"rmd: features is .* of int64, expected",
        ),
        (
            lambda: RMD().update(replace(TRAIN, labels=TRAIN.labels[:, None])),
            r"labels is \(120, 1\) .* \(N,\), a class",
        ),
        (lambda: MaxLogit().score(Outputs(logits=torch.tensor([[float("nan")]]))), r"max_logit: logits .* not finite"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
