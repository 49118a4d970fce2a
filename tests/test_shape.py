"""How wide an encoder is, told without its weights: what only they tell, and what is a fault of its code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clip_ood.backbones import shape
from clip_ood.backbones.backbone import ImageBackbone, Preprocessing
from clip_ood.backbones.spec import ImageSpec

SPEC = ImageSpec("timm", "mine")


class Tower(nn.Module):
    """Features of 5 numbers, by code that is given."""

    def __init__(self, forward):
        super().__init__()
        self.linear, self.then = nn.Linear(3, 5), forward

    def forward(self, images):
        return self.then(self.linear(images.mean(dim=(2, 3))))


def shape_by(monkeypatch, forward):
    class Mine:
        def image_side(self, spec):
            described = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear")
            return ImageBackbone(Tower(forward), None, described, "fp32")

    monkeypatch.setattr(shape, "library", lambda name: Mine())
    return shape.shape_of(SPEC)


def test_widths_and_numbers(monkeypatch):
    found = shape_by(monkeypatch, lambda features: features)
    assert (found.features, found.embeddings, found.parameters, found.values) == (5, None, 20, 20)


@pytest.mark.parametrize(
    "forward",
    [
        lambda features: features * features.sum().item(),
        lambda features: features[features > 0],
        lambda features: features if features.sum() > 0 else -features,
        lambda features: torch.from_numpy(features.numpy()),
        lambda features: features.cpu(),
        lambda features: features.unique(),
    ],
    ids=["item", "mask", "branch", "numpy", "cpu", "unique"],
)
def test_numbers_that_only_weights_have_leave_it_unknown(monkeypatch, forward):
    with pytest.raises(shape.Unknown, match="the widths of mine are known only once its weights are loaded"):
        shape_by(monkeypatch, forward)


@pytest.mark.parametrize(
    "forward, kind",
    [
        (lambda features: features @ features.new_zeros(4, 4), RuntimeError),
        (lambda features: features + "a", TypeError),
    ],
    ids=["shapes", "text"],
)
def test_a_fault_of_its_code_is_raised_as_it_is(monkeypatch, forward, kind):
    with pytest.raises(kind) as raised:
        shape_by(monkeypatch, forward)
    assert not isinstance(raised.value, shape.Unknown)
