"""Features and texts of transformers' models are those that transformers gives."""

from __future__ import annotations

import pytest
import tiny_transformers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_transformers import KINDS, copy, pixels, spec
from torch.nn.functional import normalize

from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.shape import shape_of
from clip_ood.backbones.spec import ImageSpec
from clip_ood.backbones.transformers_config import IMAGES, TEXTS

PROMPTS = ["a photo of a cat", "the dog .", "a photo of many large Fox"]
IMAGES_ALONE = [kind for kind in KINDS if kind not in TEXTS]


def features_of(found):
    return getattr(found, "pooler_output", found)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in TEXTS])
@torch.inference_mode()
def test_images_and_texts_are_those_of_transformers(kind, tiny_model):
    folder, model = tiny_model(kind)
    ours = create_backbone(spec(folder))
    g = ours.encode_image(pixels(kind))
    assert torch.equal(g, model.vision_model(pixels(kind)).pooler_output) and g.norm(dim=1).sub(1).abs().min() > 0.01
    expected = normalize(features_of(model.get_image_features(pixels(kind))), dim=1)
    torch.testing.assert_close(ours.project(g), expected)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text.lower() for text in PROMPTS] if kind == "siglip" else PROMPTS
    tokens = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
    kept = {"input_ids"} if kind == "siglip" else {"input_ids", "attention_mask"}
    theirs = features_of(model.get_text_features(**{key: tokens[key] for key in kept}))
    torch.testing.assert_close(ours.encode_text(PROMPTS), normalize(theirs, dim=1))
    torch.testing.assert_close(ours.text_vectors(PROMPTS), theirs)
    assert ours.has_text and ours.logit_scale == pytest.approx(model.logit_scale.exp().item())
    bias = getattr(model, "logit_bias", None)
    assert ours.logit_bias == (None if bias is None else pytest.approx(bias.item()))
    alone = create_backbone(ImageSpec("transformers", f"local-dir:{folder}", "default"), download=False)
    assert torch.equal(alone.encode_image(pixels(kind)), g) and torch.equal(alone.project(g), ours.project(g))
    assert not alone.has_text and alone.logit_scale is None
    with pytest.raises(TypeError, match="no text encoder"):
        alone.encode_text(PROMPTS)


@pytest.mark.parametrize("kind", IMAGES_ALONE)
@torch.inference_mode()
def test_features_of_images_alone_are_the_pooled_output(kind, tiny_model):
    folder, model = tiny_model(kind)
    ours = create_backbone(spec(folder))
    assert torch.equal(ours.encode_image(pixels(kind)), model(pixels(kind)).pooler_output.flatten(1))
    assert ours.project(torch.zeros(1, 32)) is None and not ours.has_text and ours.logit_scale is None
    assert shape_of(spec(folder)).features == 32 and shape_of(spec(folder)).embeddings is None


@torch.inference_mode()
def test_weights_without_a_pooler_give_the_class_token(tiny_model, tmp_path):
    folder, model = tiny_model("vit")
    folder = copy(folder, tmp_path / "bare")
    whole = load_file(folder / "model.safetensors")
    for prefix in ("", "vit."):  # the second with a classifier, as google/vit-base-patch16-224
        kept = {prefix + name: value for name, value in whole.items() if not name.startswith("pooler")}
        more = {"classifier.weight": torch.zeros(2, 32), "classifier.bias": torch.zeros(2)} if prefix else {}
        save_file(kept | more, folder / "model.safetensors", {"format": "pt"})
        ours = create_backbone(spec(folder))
        assert torch.equal(ours.encode_image(pixels("vit")), model(pixels("vit")).last_hidden_state[:, 0])


@pytest.mark.parametrize("kind", [*TEXTS, *IMAGES])
def test_every_known_type_gives_one_row_an_image(kind):
    from clip_ood.backbones.transformers_backbone import Tower, _built

    with torch.device("meta"), torch.inference_mode():
        model = _built({"model_type": kind})
        side = getattr(getattr(model.config, "vision_config", model.config), "image_size", 224)
        side = side if isinstance(side, int) else side[0]
        tower = Tower(model.vision_model if kind in TEXTS else model, kind)
        features = tower(torch.zeros(2, 3, side, side))
        assert features.ndim == 2 and features.shape[0] == 2
        assert kind in IMAGES or callable(model.get_text_features)


@torch.inference_mode()
def test_clip_is_the_same_through_open_clip(tiny_model):
    folder, model = tiny_model("clip")
    theirs = tiny_transformers.as_open_clip(model)
    ours = create_backbone(spec(folder))
    h = ours.project(ours.encode_image(pixels("clip")))
    torch.testing.assert_close(h, theirs.encode_image(pixels("clip"), normalize=True), rtol=1e-4, atol=1e-5)
