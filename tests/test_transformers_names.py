"""Which models of transformers are taken, and what of their description reaches the library."""

from __future__ import annotations

import pytest
import torch
from tiny_transformers import copy, pixels, spec

from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.names import check_model
from clip_ood.config.schema import BackboneConfig
from clip_ood.errors import UserError


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"model": "FOLDER/cilp"},
            "holds no config.json, as a model of transformers does. Did you mean local-dir:.*clip",
        ),
        (
            {"model": "clip-vit"},
            "name a repository of the Hugging Face hub as ORG/REPO, or a folder as local-dir:FOLDER",
        ),
        ({"model": "hf-hub:openai/clip"}, "Did you mean openai/clip?"),
        ({"model": "https://huggingface.co/openai/clip"}, "Did you mean openai/clip?"),
        ({"pretrained": "defualt"}, "there is no file 'defualt'"),
        ({"preprocess": "openai"}, "leave `preprocess` out"),
        ({"pooling": "mean"}, "keeps its own pooling"),
        ({"image_size": 64}, "keeps its own size"),
        ({"text": {"model": "ViT-B-32"}}, "backbone.text goes with open_clip"),
    ],
)
def test_wrong_values_are_answered(keys, told, tiny_model):
    folder, _ = tiny_model("clip")
    keys = {key: f"local-dir:{folder.parent}/cilp" if value == "FOLDER/cilp" else value for key, value in keys.items()}
    with pytest.raises(UserError, match=told):
        check_model(
            BackboneConfig(
                **{"library": "transformers", "model": f"local-dir:{folder}", "pretrained": "default"} | keys
            )
        )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"auto_map": {"AutoModel": "payload.Own"}}, "auto_map asks for code that lies beside the model"),
        ({"vision_config": {"auto_map": {"AutoModel": "payload.Own"}}}, r"vision_config\.auto_map asks for code"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config asks for another package"),
        ({"model_type": "cilp"}, "the model type 'cilp' is none of those.*Near it are"),
        ({"model_type": "llama"}, "the model type 'llama' is none of those"),
        ({"model_type": None}, "it has no model_type"),
    ],
)
def test_a_description_that_asks_for_more_than_its_data_is_refused(change, told, tiny_model, tmp_path, watch):
    folder = copy(tiny_model("clip")[0], tmp_path / "other", **change)
    (folder / "payload.py").write_text(f"open({str(watch.marker)!r}, 'w').close()\nclass Own:\n    pass\n")
    for ask in (check_model, create_backbone):
        with pytest.raises(UserError, match=told):
            ask(spec(folder))
    assert watch.saw_nothing()


def test_nothing_that_is_no_data_reaches_transformers(tiny_model, tmp_path, watch):
    more = {
        "attn_implementation": "somebody/kernel",
        "_attn_implementation": "somebody/kernel",
        "dtype": "float16",
        "payload": "x.py",
    }
    folder = copy(tiny_model("vit")[0], tmp_path / "other", **more)
    ours = create_backbone(spec(folder))
    assert torch.equal(
        ours.encode_image(pixels("vit")), create_backbone(spec(tiny_model("vit")[0])).encode_image(pixels("vit"))
    )
    assert ours.tower.vision.config._attn_implementation != "somebody/kernel" and watch.saw_nothing()


def test_without_the_package_it_says_how_to_get_it(tiny_model, monkeypatch):
    monkeypatch.setattr("clip_ood.backbones.transformers_library.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'clip-ood\[transformers\]'"):
        check_model(spec(tiny_model("vit")[0]))
