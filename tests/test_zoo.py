"""Detectors of pytorch-ood in our table, and ours against theirs where both have one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detector_data import ALL, CLASSES, TEST, TRAIN, fitted, part
from detector_data import REFERENCE as OTHER_HEAD
from processes import together
from pytorch_ood import detector as peers
from torch import Tensor

from clip_ood.detectors import build_detectors
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.statistic import share
from clip_ood.outputs import Outputs, Reference

ADAPTED = ["NCI", "fDBD", "DICE", "GMM", "LTS", "PNML", "KNN", "RMD", "ViM", "NNGuide", "EnergyBased", "Entropy"]
ADAPTED += ["KLMatching", "GEN", "MCM", "OpenMax"]
NEEDED = {"DICE": {"p": 0.5}, "ViM": {"d": 6}, "OpenMax": {"tailsize": 5, "alpha": 3}}
MEANS = torch.stack([TRAIN.features[TRAIN.labels == c].mean(dim=0) for c in range(CLASSES)])
WEIGHT, BIAS = MEANS / 20, -MEANS.square().sum(dim=1) / 40  # the nearest mean wins
REFERENCE = replace(OTHER_HEAD, weight=WEIGHT, bias=BIAS)
BANK = Outputs(TRAIN.features, TRAIN.embeddings, TRAIN.features @ WEIGHT.T + BIAS, TRAIN.labels, TRAIN.indices)
SCORED = Outputs(TEST.features, TEST.embeddings, TEST.features @ WEIGHT.T + BIAS, None, TEST.indices)


def make(name: str, **parameters) -> Detector:
    detectors, omitted = build_detectors([{"name": name, **parameters}], REFERENCE, ALL)
    assert omitted == []
    return next(iter(detectors.values()))


@pytest.mark.parametrize("name", ADAPTED)
def test_scores_are_theirs_with_the_sign_turned(name):
    detector = make(f"pytorch_ood.{name}", **NEEDED.get(name, {}))
    scores = fitted(detector, part(BANK, slice(0, 50)), part(BANK, slice(50, None))).score(SCORED)
    theirs = getattr(peers, name)
    head = torch.nn.Linear(*WEIGHT.T.shape)
    head.weight.data, head.bias.data = WEIGHT, BIAS
    given = {"head": head, "w": WEIGHT, "b": BIAS, "text_embeddings": REFERENCE.text_embeddings, "model": None}
    wanted = theirs.__init__.__code__.co_varnames[: theirs.__init__.__code__.co_argcount]
    peer = theirs(
        **{key: value for key, value in {**given, "encoder": None}.items() if key in wanted}, **NEEDED.get(name, {})
    )
    kind = "logits" if hasattr(peer, "predict_logits") else "features"
    rows = {"logits": "logits", "features": "embeddings" if name == "MCM" else "features"}[kind]
    getattr(peer, f"fit_{kind}")(getattr(BANK, rows), BANK.labels)
    expected = -getattr(peer, f"predict_{kind}")(getattr(SCORED, rows))
    torch.testing.assert_close(scores, expected.float(), rtol=1e-5, atol=1e-5)


def test_it_stands_in_the_same_table_under_its_own_name():
    detectors, omitted = build_detectors(
        ["knn", "pytorch_ood.NCI", {"name": "pytorch_ood.KNN", "k": 5}], REFERENCE, ALL
    )
    assert (
        list(detectors) == ["knn", "NCI", "pytorch_ood.KNN"] and omitted == []
    )  # two columns never differ in case alone
    detectors, omitted = build_detectors(["pytorch_ood.NCI"], Reference(), {"features", "labels"})
    assert detectors == {} and omitted[0].detector == "NCI" and "this run trains none" in omitted[0].reason


def test_processes_fit_on_the_images_of_all():
    def work(exchange: Exchange) -> Tensor:
        detector = make("pytorch_ood.KNN", k=3)
        detector.update(part(BANK, slice(70 * exchange.rank, 70 + 50 * exchange.rank)))
        for statistic in share([detector]):
            statistic.join(exchange)
        detector.fit()
        return detector.score(SCORED)

    expected = fitted(make("pytorch_ood.KNN", k=3), BANK).score(SCORED)
    for scores in together(2, work):
        torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("pytorch_ood.NCY", {}, "pytorch-ood has no detector 'NCY'; nearest: NCI"),
        ("pytorch_ood.ODIN", {}, "pytorch_ood.ODIN works on images, gradients or maps of features"),
        (
            "pytorch_ood.NCI",
            {"alhpa": 1.0},
            "pytorch_ood.NCI: unknown parameter 'alhpa', expected alpha; nearest: alpha",
        ),
        ("pytorch_ood.DICE", {}, r"pytorch_ood.DICE: needs a parameter: \{name: pytorch_ood.DICE, p: …\}"),
    ],
)
def test_what_a_config_gets_wrong_is_named(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        build_detectors([{"name": name, **parameters}], REFERENCE, ALL)


def test_scores_that_are_not_finite_are_an_error(monkeypatch):
    detector = fitted(make("pytorch_ood.NCI"), BANK)
    monkeypatch.setattr(detector.peer, "predict_features", lambda values: torch.full((len(values),), torch.nan))
    with pytest.raises(ValueError, match=r"pytorch_ood\.NCI: pytorch-ood gives scores that are not finite"):
        detector.score(SCORED)


SAME = {  # ours, theirs; how close ranks must be, and why they may differ
    "msp": ({"name": "msp"}, {"name": "pytorch_ood.MaxSoftmax"}, 1),
    "energy": ({"name": "energy"}, {"name": "pytorch_ood.EnergyBased"}, 1),
    "max_logit": ({"name": "max_logit"}, {"name": "pytorch_ood.MaxLogit"}, 1),
    "gen": ({"name": "gen"}, {"name": "pytorch_ood.GEN"}, 0.99),  # theirs: 1 - p in float32, which is 0 near p = 1
    "kl_matching": ({"name": "kl_matching"}, {"name": "pytorch_ood.KLMatching"}, 0.5),  # theirs: mean p by true label
    "mcm": ({"name": "mcm"}, {"name": "pytorch_ood.MCM"}, 1),
    "mahalanobis": (
        {"name": "mahalanobis"},
        {"name": "pytorch_ood.Mahalanobis"},
        0.9999,
    ),  # theirs: Σ + 1e-6 I, float32
    "rmd": ({"name": "rmd"}, {"name": "pytorch_ood.RMD"}, 0.99),  # theirs: sums, not means, so that Σ + 1e-6 I is less
    "knn": ({"name": "knn", "k": 7, "kth": True}, {"name": "pytorch_ood.KNN", "k": 7}, 1),  # a distance of unit vectors
    "vim": ({"name": "vim", "dim": 6}, {"name": "pytorch_ood.ViM", "d": 6}, 1),
    "fdbd": ({"name": "fdbd"}, {"name": "pytorch_ood.fDBD"}, 1),  # theirs: the mean over classes
    "nnguide": ({"name": "nnguide", "k": 10}, {"name": "pytorch_ood.NNGuide", "k": 10}, 1),
    "she": ({"name": "she"}, {"name": "pytorch_ood.SHE"}, 1),
}


@pytest.mark.parametrize("name", SAME)
def test_ours_orders_images_as_theirs(name):
    ours, theirs, least = SAME[name]
    one, other = (fitted(make(**spec), BANK).score(SCORED).double() for spec in (ours, theirs))
    ranks = torch.stack([scores.argsort().argsort().double() for scores in (one, other)])
    assert float(torch.corrcoef(ranks)[0, 1]) >= least - 1e-9, (one, other)
