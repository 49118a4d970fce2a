"""MCM on several layers against its formula, one image, one choice of layers and one bin at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from detector_data import ALL, PROJECTION, REFERENCE, TEST, TEXT, TRAIN, close, fitted, part

from clip_ood.backbones.backbone import Backbone
from clip_ood.detectors import build_detectors
from clip_ood.detectors.layered_mcm import LayeredMCM, histogram_entropy, lowest_entropy
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs

WIDTH, LAYERS = len(PROJECTION) - 1, ("2", "3", "5")


def with_layers(outputs: Outputs, seed: int) -> Outputs:
    """The same images, with layers that look the more like their classes the later they come."""
    generator = torch.Generator().manual_seed(seed)
    aims = torch.linalg.lstsq(PROJECTION[:-1].T, TEXT.T).solution.T[outputs.labels]  # whose embeddings are the texts
    noise = {"2": 3.0, "3": 0.7, "5": 0.3}
    layers = {
        name: aims / aims.norm(dim=1, keepdim=True) * 3 + much * torch.randn(len(outputs), WIDTH, generator=generator)
        for name, much in noise.items()
    }
    return replace(outputs, layers=layers)


LEARNT, SCORED = with_layers(TRAIN, 10), with_layers(TEST, 11)


def made(layer: str = "2+3+5", **parameters) -> LayeredMCM:
    spec = {"name": "layered_mcm", "layer": layer, **parameters}
    built, omitted = build_detectors([spec], REFERENCE, ALL)
    assert not omitted
    return next(iter(built.values()))


def mcm(h: torch.Tensor, tau: float) -> float:
    h = h.double() / h.double().norm()
    terms = [math.exp(float(h @ t) / tau) for t in TEXT.double()]
    return max(terms) / sum(terms)


def naive(
    train: Outputs, test: Outputs, layers=LAYERS, most=5, bins=64, tau=1.0
) -> tuple[tuple[str, ...], list[float]]:
    def scores(outputs: Outputs, row: int, choice: tuple[str, ...]) -> float:
        each = [
            outputs.layers[name][row].double() @ PROJECTION[:-1].double() + PROJECTION[-1].double() for name in choice
        ] + [outputs.embeddings[row]]
        return sum(mcm(h, tau) for h in each) / len(each)

    found = {}
    for size in range(min(most, len(layers) + 1)):
        for choice in combinations(layers, size):
            counts, _ = np.histogram([scores(train, row, choice) for row in range(len(train))], bins)
            shares = counts[counts > 0] / len(train)
            found[choice] = -float((shares * np.log(shares)).sum())
    best = min(found, key=found.get)
    return best, [scores(test, row, best) for row in range(len(test))]


@pytest.mark.parametrize(
    "parameters", [{}, {"bins": 16}, {"most": 2}, {"most": 1}, {"tau": 0.05, "bins": 8}, {"most": 3, "bins": 128}]
)
def test_it_equals_its_formula(parameters):
    chosen, expected = naive(LEARNT, SCORED, **parameters)
    detector = fitted(made(**parameters), LEARNT)
    assert tuple(str(number) for number in detector.chosen[:, 0].tolist()) == chosen
    close(detector.score(SCORED), expected, 2e-6)
    assert detector.notes == [
        f"beside the last layer: {', '.join(chosen) or 'none'}, by the entropy of 120 ID training images"
    ]


def test_some_choice_has_several_layers_and_some_none():
    sizes = {len(fitted(made(bins=bins), LEARNT).chosen) for bins in range(2, 40, 3)}
    assert len(sizes) > 1


@pytest.mark.parametrize("bins", [2, 10, 64])
def test_entropies_are_those_of_numpy(bins):
    values = torch.rand(500, 7, dtype=torch.double, generator=torch.Generator().manual_seed(0)) ** torch.arange(1, 8)
    for column, entropy in zip(values.T, histogram_entropy(values, bins).tolist(), strict=True):
        counts, _ = np.histogram(column.numpy(), bins)
        shares = counts[counts > 0] / 500
        assert entropy == pytest.approx(-(shares * np.log(shares)).sum())


def test_choices_are_compared_in_any_blocks(monkeypatch):
    scores = torch.rand(200, 9, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    whole = lowest_entropy(scores, 4, 32)
    monkeypatch.setattr("clip_ood.detectors.layered_mcm.VALUES", 600)
    assert lowest_entropy(scores, 4, 32) == whole


def test_a_choice_with_one_score_for_all_images_is_not_taken():
    scores = torch.rand(100, 2, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    scores[:, 0] = 1 - scores[:, 1]  # whose mean with the last is 0.5
    assert lowest_entropy(scores, 5, 16) == ()
    assert lowest_entropy(torch.ones(4, 3, dtype=torch.double), 5, 16) == ()


def test_a_layer_of_another_width_is_projected_at_random_and_always_in_the_same_way():
    outputs = replace(LEARNT, layers={"2": LEARNT.layers["2"][:, :5]})
    first, second, other = made("2", bins=3), made("2", bins=3), made("2", bins=3, seed=1)
    scores = [fitted(each, outputs)._of_layers(outputs, ["2"]) for each in (first, second, other)]
    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])


def test_images_are_drawn_by_their_indices():
    some = fitted(made(images=50), LEARNT)
    assert "by the entropy of 50 ID training images" in some.notes[0]
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    again = fitted(made(images=50), *(part(LEARNT, rows) for rows in order.split(33)))
    assert again.chosen.tolist() == some.chosen.tolist()
    with pytest.raises(UserError, match="needs the indices of all"):
        fitted(made(images=50), replace(LEARNT, indices=None))
    assert fitted(made(), replace(LEARNT, indices=None)).chosen is not None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"layered_mcm: needs the layers .* layer: 3\+6\+9"),
        ({"layer": "1+2", "most": 0}, "most = 0, expected 1 or more"),
        ({"layer": "1+2", "bins": 1}, "bins = 1, expected 2 or more"),
        ({"layer": "1+2", "images": 0}, "images = 0, expected 1 or more"),
        ({"layer": "1+2", "tau": 0}, "tau = 0, expected a number above 0"),
        ({"layer": "+".join(map(str, range(1, 60)))}, "59 layers make 489,406 choices of at most 5"),
    ],
)
def test_what_it_cannot_be_is_said(spec, message):
    with pytest.raises(UserError, match=message):
        build_detectors([{"name": "layered_mcm"} | spec], REFERENCE, ALL)


def test_without_a_linear_projection_it_is_left_out():
    _, (left_out,) = build_detectors([{"name": "layered_mcm", "layer": 1}], REFERENCE, ALL - {"projection"})
    assert "linear projection" in left_out.reason


class Projecting(Backbone):
    def __init__(self, projection):
        super().__init__()
        self.projection = projection


@pytest.mark.parametrize("bias", [True, False])
def test_the_matrix_of_an_encoder_is_that_of_a_linear_projection_alone(bias):
    linear = torch.nn.Linear(3, 2, bias=bias)
    g = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    matrix = Projecting(linear).affine_projection()
    torch.testing.assert_close(torch.cat([g, torch.ones(4, 1)], dim=1) @ matrix, linear(g).detach())
    assert Projecting(torch.nn.Sequential(linear, torch.nn.ReLU())).affine_projection() is None
    assert Backbone().affine_projection() is None
