"""NegRefine against a plain loop over images and pairs, its cache of texts, and what is said of bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from detector_data import CLASSES, JOINT, NAMES, REFERENCE, TEST, Tower, close, part
from torch.nn.functional import normalize

from clip_ood.detectors import negrefine
from clip_ood.detectors.build import build_detectors
from clip_ood.detectors.negrefine import NegRefine
from clip_ood.outputs import NegativeLabels, Outputs, Reference

WORDS = 37


def reference(classes=CLASSES, words=WORDS, scale=10.0, tower=None):
    known, tower = REFERENCE.neglabel, tower or Tower()
    labels = NegativeLabels(known.classes[:classes], known.negatives[:words], known.words[:words])
    return Reference(NAMES[:classes], logit_scale=scale, neglabel=labels, text_tower=lambda: tower)


def naive(outputs, known, k=5, weight=2.0, groups=100, seed=0):
    """An image, a group and a pair at a time, in float64."""
    labels, tower, scale, scores = known.neglabel, Tower(), known.logit_scale, []
    groups = min(groups, len(labels.negatives))
    size = len(labels.negatives) // groups
    order = torch.randperm(groups * size, generator=torch.Generator().manual_seed(seed)).tolist()
    for row in outputs.embeddings.double():
        h = row / row.norm()
        inside, outside = (
            [scale * float(h @ (t.double() / t.double().norm())) for t in each]
            for each in (labels.classes, labels.negatives)
        )
        total = sum(map(math.exp, inside))
        shares = [
            total / (total + sum(math.exp(outside[order[group * size + place]]) for place in range(size)))
            for group in range(groups)
        ]
        best = 0.0
        for c in sorted(range(len(inside)), key=lambda place: -inside[place])[:k]:
            for w in sorted(range(len(outside)), key=lambda place: -outside[place])[:k]:
                text = tower.encode_text([f"the nice {known.class_names[c]} and {labels.words[w]}"])[0].double()
                both = scale * float(h @ (text / text.norm()))
                best = max(best, math.exp(both) / (math.exp(both) + math.exp(outside[w])))
        scores.append(sum(shares) / groups + weight * best)
    return scores


@pytest.mark.parametrize(
    ("parameters", "classes", "words"),
    [
        ({}, CLASSES, WORDS),
        ({"groups": 4, "seed": 3}, CLASSES, WORDS),
        ({"k": 2, "weight": 0.5, "groups": 7}, CLASSES, WORDS),
        ({}, 1, 2),  # fewer than k: as many as there are
        ({"k": 9}, 3, 4),
    ],
)
def test_scores_are_those_of_a_plain_loop(parameters, classes, words):
    known = reference(classes, words)
    expected = naive(TEST, known, **parameters)
    close(NegRefine(known, **parameters).score(TEST), expected, 1e-6)
    assert torch.tensor(expected).std() > 1e-3


def test_order_batches_and_what_was_scored_before_change_nothing(monkeypatch):
    expected = NegRefine(reference()).score(TEST)
    order = torch.randperm(len(TEST), generator=torch.Generator().manual_seed(0))
    once = NegRefine(reference())
    assert torch.equal(once.score(part(TEST, order)), expected[order])
    assert torch.equal(once.score(TEST), expected)
    monkeypatch.setattr(negrefine, "IMAGES", 3)
    monkeypatch.setattr(negrefine, "TEXTS", 4)
    monkeypatch.setattr(negrefine, "KEPT", 20)  # what was kept is forgotten again and again
    torch.testing.assert_close(NegRefine(reference()).score(TEST), expected, rtol=0, atol=1e-7)


def test_each_text_is_encoded_once():
    tower = Tower()
    detector = NegRefine(reference(tower=tower))
    detector.score(TEST)
    asked = list(tower.asked)
    assert 0 < len(asked) == len(set(asked)) <= CLASSES * WORDS
    detector.score(TEST)
    assert tower.asked == asked


def test_no_text_tower_is_made_before_an_image_asks_for_it():
    def made():
        raise AssertionError("the text tower was made")

    detector = NegRefine(replace(reference(), text_tower=made))
    assert detector.score(Outputs(embeddings=torch.empty(0, JOINT))).shape == (0,)
    with pytest.raises(AssertionError, match="was made"):
        detector.score(TEST)


def test_a_logit_scale_of_hundreds_overflows_nothing():
    scores = NegRefine(reference(scale=800.0)).score(TEST)
    assert scores.isfinite().all() and (scores >= 0).all() and (scores <= 3).all()


def test_its_gradient_is_that_of_small_steps():
    detector = NegRefine(reference())
    rows = normalize(TEST.embeddings[:3].double(), dim=1).requires_grad_()
    detector.score_with_grad(Outputs(embeddings=rows)).sum().backward()
    step, direction = 1e-6, torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        up, down = (detector.score_with_grad(Outputs(embeddings=rows + sign * step * direction)) for sign in (1, -1))
    assert float((rows.grad * direction).sum()) == pytest.approx(float((up - down).sum()) / (2 * step), rel=1e-5)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"k": 0}, "negrefine: k = 0, expected a whole number from 1 on"),
        ({"groups": -1}, "negrefine: groups = -1"),
        ({"weight": -1.0}, "negrefine: weight = -1.0, expected a number from 0 on"),
        ({"weight": math.inf}, "negrefine: weight = inf"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, told):
    with pytest.raises(ValueError, match=told):
        NegRefine(reference(), **parameters)


def test_labels_without_their_words_are_refused():
    known = reference()
    nameless = replace(known, neglabel=replace(known.neglabel, words=()))
    with pytest.raises(ValueError, match="needs the words of its 37 negative labels, got 0"):
        NegRefine(nameless)


def test_an_encoder_of_images_leaves_it_out_with_the_reason():
    _, omitted = build_detectors(["negrefine"], Reference(), {"features", "embeddings"})
    assert "needs negative labels" in omitted[0].reason and "needs a text encoder" in omitted[0].reason


def test_no_graph_holds_it():
    with pytest.raises(ValueError, match="reads new texts while it scores, which no graph holds"):
        NegRefine(reference()).traceable()
