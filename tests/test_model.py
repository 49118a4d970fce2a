"""Encoder, head and outputs: a head may be any function, and outputs have room for layers and patch tokens."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clip_ood.backbones.spec import ImageSpec
from clip_ood.detect.save import save_detector
from clip_ood.detect.saved_encoder import Encoder
from clip_ood.detectors import Detector
from clip_ood.evaluation import DetectorSuite
from clip_ood.model import classify, classify_by, encode, linear
from clip_ood.outputs import Outputs, Reference

SPECS = ["msp", {"name": f"{__name__}.PatchNorm", "as": "patches"}, {"name": f"{__name__}.LayerNorm", "as": "layer"}]


class PatchNorm(Detector):
    """The norm of the mean patch."""

    requires = ("tokens",)

    def _score(self, rows):
        return rows.tokens["value"].mean(dim=1).norm(dim=1)  # (n, P, D) -> (n,)


class LayerNorm(Detector):
    """The norm of the third layer's features."""

    requires = ("layers",)

    def _score(self, rows):
        return rows.layers["3"].norm(dim=1)


def outputs(count, **changed):
    generator = torch.Generator().manual_seed(count)
    given = {
        "logits": torch.randn(count, 3, generator=generator),
        "indices": torch.arange(count),
        "layers": {"3": torch.randn(count, 4, generator=generator)},
        "tokens": {"value": torch.randn(count, 5, 6, generator=generator)},
    }
    return Outputs(**given | changed)


def test_every_tensor_is_mapped_and_named():
    rows = outputs(7).map(lambda value: value[:2])
    assert len(rows) == 2
    assert {name: tuple(value.shape) for name, value in rows.tensors()} == {
        "logits": (2, 3),
        "indices": (2,),
        "layers.3": (2, 4),
        "tokens.value": (2, 5, 6),
    }


def test_detectors_score_layers_and_tokens():
    suite = DetectorSuite(Reference(), SPECS)
    suite.update(outputs(9))
    suite.fit()
    rows = outputs(11)
    scores = suite.score(rows).scores
    torch.testing.assert_close(scores["patches"], rows.tokens["value"].mean(dim=1).norm(dim=1))
    torch.testing.assert_close(scores["layer"], rows.layers["3"].norm(dim=1))


def test_tokens_that_are_no_numbers_give_no_score():
    broken = outputs(4)
    broken.tokens["value"][2, 1, 0] = torch.nan
    suite = DetectorSuite(Reference(), SPECS)
    suite.update(outputs(9))
    suite.fit()
    scores = suite.score(broken).scores
    assert scores["patches"].isnan().tolist() == [False, False, True, False]
    assert scores["layer"].isfinite().all()
    suite = DetectorSuite(Reference(), SPECS)
    suite.update(broken)
    suite.fit()
    assert list(suite.detectors) == ["msp", "layer"]
    assert "tokens of 1 ID training images are not finite" in suite.omitted[0].reason


def test_tokens_of_other_rows_are_refused():
    with pytest.raises(ValueError, match=r"tokens\.value has 3 rows, expected 4"):
        PatchNorm().score(outputs(4, tokens={"value": torch.zeros(3, 5, 6)}))
    with pytest.raises(ValueError, match="needs tokens, and these outputs have none"):
        PatchNorm().score(outputs(4, tokens=None))


def test_what_judging_cannot_give_is_left_out_of_a_folder_by_name(tmp_path):
    suite = DetectorSuite(Reference(class_names=("a", "b", "c")), SPECS)
    suite.update(outputs(9))
    suite.fit()
    encoder = Encoder(ImageSpec("timm", "test_vit"), {"library": "timm"}, "float32")
    save_detector(tmp_path, encoder, suite.reference, suite.detectors, suite.omitted, None, {"batch_size": 4}, 0.95)
    manifest = json.loads((tmp_path / "detector.json").read_text())
    assert [each["column"] for each in manifest["detectors"]] == ["patches"]
    assert {each["detector"]: each["reason"].split(",")[0] for each in manifest["omitted"]} == {
        "msp": "needs the logits of a head that is neither a linear layer nor a cache",
        "layer": "needs layers",
    }


def test_an_encoder_and_any_head_give_outputs():
    tower, projection, head = nn.Linear(12, 5), nn.Linear(5, 4), nn.Sequential(nn.Linear(5, 7), nn.ReLU())
    encoder = SimpleNamespace(encode_image=lambda images: tower(images.flatten(1)), project=projection)
    images = torch.randn(6, 3, 2, 2)
    rows = classify(encode(encoder, images), head)
    assert torch.equal(rows.features, tower(images.flatten(1)))
    assert torch.equal(rows.embeddings, projection(rows.features)) and torch.equal(rows.logits, head(rows.features))
    assert classify(rows, None) is rows


def test_a_linear_head_that_detectors_know_gives_logits():
    weight, bias, features = torch.randn(3, 5), torch.randn(3), torch.randn(6, 5)
    logits = classify_by(Reference(weight=weight, bias=bias), Outputs(features)).logits
    torch.testing.assert_close(logits, features @ weight.T + bias)
    assert torch.equal(logits, linear(weight, bias)(features))
    assert classify_by(Reference(), rows := Outputs(features)) is rows
