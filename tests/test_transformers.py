"""Encoders of transformers against transformers itself: features, texts, pixels; what is refused, and what is said before downloads."""

from __future__ import annotations

import json
import os
import shutil

import huggingface_hub
import numpy as np
import pytest
import strangers
import tiny_transformers
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_transformers import KINDS
from torch.nn.functional import normalize

from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.downloads import WouldDownload, require_here
from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.backbones.names import check_model
from clip_ood.backbones.shape import shape_of
from clip_ood.backbones.spec import ImageSpec
from clip_ood.backbones.transformers_config import IMAGES, TEXTS
from clip_ood.backbones.transformers_images import read_prepared
from clip_ood.backbones.transformers_library import parts_of
from clip_ood.backbones.weights import announce
from clip_ood.config.schema import BackboneConfig
from clip_ood.errors import UserError

PROMPTS = ["a photo of a cat", "the dog .", "a photo of many large Fox"]
IMAGES_ALONE = [kind for kind in KINDS if kind not in TEXTS]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """kind -> (folder, the model itself)."""
    made = {}

    def model(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("models") / kind
            made[kind] = folder, tiny_transformers.make(folder, kind)
        return made[kind]

    return model


def spec(folder, **keys):
    return BackboneConfig(library="transformers", model=f"local-dir:{folder}", **{"pretrained": "default"} | keys)


def copy(folder, to, **changes):
    """A copy of a model's folder whose config.json has other keys."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def pictures(shape):
    generator = np.random.default_rng(1)
    return Image.fromarray(generator.integers(0, 256, (9, 7, 3), np.uint8)).resize(shape, Image.Resampling.BICUBIC)


def pixels(kind, count=3):
    side = 64 if kind in ("convnext", "resnet") else 32
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def features_of(found):
    return getattr(found, "pooler_output", found)


# Features


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in TEXTS])
@torch.inference_mode()
def test_images_and_texts_are_those_of_transformers(kind, models):
    folder, model = models(kind)
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
def test_features_of_images_alone_are_the_pooled_output(kind, models):
    folder, model = models(kind)
    ours = create_backbone(spec(folder))
    assert torch.equal(ours.encode_image(pixels(kind)), model(pixels(kind)).pooler_output.flatten(1))
    assert ours.project(torch.zeros(1, 32)) is None and not ours.has_text and ours.logit_scale is None
    assert shape_of(spec(folder)).features == 32 and shape_of(spec(folder)).embeddings is None


@torch.inference_mode()
def test_weights_without_a_pooler_give_the_class_token(models, tmp_path):
    folder, model = models("vit")
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
def test_clip_is_the_same_through_open_clip(models, tmp_path):
    """Weights of one model under both libraries' names: the packed attention of open_clip is put together from q, k and v."""
    import open_clip

    folder, model = models("clip")
    tower = {"width": 32, "layers": 2, "mlp_ratio": 1.5}
    theirs = open_clip.CLIP(
        24, tower | {"image_size": 32, "patch_size": 8, "head_width": 16}, tower | {"context_length": 16, "vocab_size": 40, "heads": 2},
        quick_gelu=True,
    ).eval()  # fmt: skip
    state, own = {}, model.state_dict()
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for side, to in (("vision_model.encoder.layers", "visual.transformer.resblocks"),):
        for block in range(2):
            for part in ("weight", "bias"):
                packed = [own[f"{side}.{block}.self_attn.{each}_proj.{part}"] for each in "qkv"]
                state[f"{to}.{block}.attn.in_proj_{part}"] = torch.cat(packed)
                state |= {
                    f"{to}.{block}.{new}.{part}": own[f"{side}.{block}.{old}.{part}"] for old, new in names.items()
                }
    for old, new in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        state |= {f"visual.{new}.{part}": own[f"vision_model.{old}.{part}"] for part in ("weight", "bias")}
    state["visual.class_embedding"] = own["vision_model.embeddings.class_embedding"]
    state["visual.positional_embedding"] = own["vision_model.embeddings.position_embedding.weight"]
    state["visual.conv1.weight"] = own["vision_model.embeddings.patch_embedding.weight"]
    state["visual.proj"] = own["visual_projection.weight"].T
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and not [name for name in missing.missing_keys if name.startswith("visual")]
    ours = create_backbone(spec(folder))
    h = ours.project(ours.encode_image(pixels("clip")))
    torch.testing.assert_close(h, theirs.encode_image(pixels("clip"), normalize=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_weights_in_several_files_are_those_of_one(kind, models, tmp_path):
    folder, model = models(kind)
    one = create_backbone(spec(folder)).image_tower.state_dict()
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for file in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            shutil.copy(folder / file, tmp_path)
    several = create_backbone(spec(tmp_path)).image_tower.state_dict()
    assert all(torch.equal(one[name], value) for name, value in several.items())
    before = fingerprint(spec(tmp_path), tmp_path / "hashes.json")
    last = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    save_file({name: value + 1 for name, value in load_file(last).items()}, last, {"format": "pt"})
    assert fingerprint(spec(tmp_path), tmp_path / "hashes.json")["weights"] != before["weights"]


def test_random_weights_come_from_their_seed_and_files_fit_exactly(models, tmp_path):
    folder, model = models("dinov2")
    one, again, other = (
        create_backbone(spec(folder, pretrained=None, random_seed=seed)).state_dict() for seed in (5, 5, 6)
    )
    assert all(torch.equal(one[name], again[name]) for name in one) and any(
        not torch.equal(one[n], other[n]) for n in one
    )
    torch.save({"state_dict": model.state_dict()}, tmp_path / "own.pt")
    given = create_backbone(spec(folder, pretrained=str(tmp_path / "own.pt"))).image_tower.state_dict()
    assert all(torch.equal(given[f"vision.{name}"], value) for name, value in model.state_dict().items())
    torch.save(
        {name: value for name, value in model.state_dict().items() if "layer.0" not in name}, tmp_path / "cut.pt"
    )
    with pytest.raises(UserError, match=r"its weights are not this model's: \d+ missing"):
        create_backbone(spec(folder, pretrained=str(tmp_path / "cut.pt")))


# Pixels


@pytest.mark.parametrize("shape", [(50, 40), (33, 90), (64, 64), (301, 200)])
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "vit", "convnext", "resnet"])
def test_pixels_are_those_of_the_image_processor(kind, shape, models):
    """Those that Pillow resizes to 1e-5, and those of the processor that resizes tensors to two grey levels. torchvision rounds the
    left and upper edge of the middle where transformers truncates, so that the middle may lie one pixel further."""
    folder, _ = models(kind)
    ours = create_backbone(spec(folder))
    picture = pictures(shape)
    found = ours.transform(picture)
    std = torch.tensor(ours.preprocessing.std)[:, None, None]
    for backend, tolerance in (("pil", 1e-5), ("torchvision", 2.01 / 255)):
        content = json.loads((folder / "preprocessor_config.json").read_text())
        (name,) = (content[key] for key in ("image_processor_type", "feature_extractor_type") if key in content)
        made = getattr(
            transformers, name.replace("FeatureExtractor", "ImageProcessor") + ("Pil" if backend == "pil" else "")
        )
        theirs = torch.as_tensor(
            np.asarray(made(**{k: v for k, v in content.items() if "type" not in k})(images=picture)["pixel_values"][0])
        )
        assert found.shape == theirs.shape
        shifted = [theirs, theirs.roll(-1, 1), theirs.roll(-1, 2)]
        inner = (slice(None), slice(0, -1), slice(0, -1))
        differences = [((found - each).abs() * std)[inner].max().item() for each in shifted]
        assert min(differences) <= tolerance
        if all((side - 32) % 4 != 3 for side in _resized(ours, shape)):
            assert ((found - theirs).abs() * std).max() <= tolerance


def _resized(backbone, shape):
    return backbone.transform.transforms[0](Image.new("RGB", shape)).size


def test_a_processor_that_does_more_is_refused(models, tmp_path):
    folder, _ = models("vit")
    for number, (change, told) in enumerate(
        [
            ({"do_resize": False}, "not prepared by resize"),
            ({"rescale_factor": 0.5}, "does more to images"),
            ({"auto_map": {"AutoImageProcessor": "own.Own"}}, "auto_map asks for code"),
            ({"size": {"longest_edge": 32}}, "none of shortest_edge"),
            ({"image_mean": "0.5"}, "must be a number"),
        ]
    ):
        own = copy(folder, tmp_path / str(number))
        content = json.loads((own / "preprocessor_config.json").read_text())
        (own / "preprocessor_config.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=told):
            create_backbone(spec(own))
    (own / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"holds no preprocessor_config\.json, which says how images are prepared"):
        create_backbone(spec(own))


# Names, fingerprints


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
def test_wrong_values_are_answered(keys, told, models):
    folder, _ = models("clip")
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
def test_a_description_that_asks_for_more_than_its_data_is_refused(change, told, models, tmp_path, watch):
    folder = copy(models("clip")[0], tmp_path / "other", **change)
    (folder / "payload.py").write_text(f"open({str(watch.marker)!r}, 'w').close()\nclass Own:\n    pass\n")
    for ask in (check_model, create_backbone):
        with pytest.raises(UserError, match=told):
            ask(spec(folder))
    assert watch.saw_nothing()


def test_nothing_that_is_no_data_reaches_transformers(models, tmp_path, watch):
    more = {
        "attn_implementation": "somebody/kernel",
        "_attn_implementation": "somebody/kernel",
        "dtype": "float16",
        "payload": "x.py",
    }
    folder = copy(models("vit")[0], tmp_path / "other", **more)
    ours = create_backbone(spec(folder))
    assert torch.equal(
        ours.encode_image(pixels("vit")), create_backbone(spec(models("vit")[0])).encode_image(pixels("vit"))
    )
    assert ours.tower.vision.config._attn_implementation != "somebody/kernel" and watch.saw_nothing()


def test_pickled_code_in_weights_is_not_run(models, tmp_path, watch):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {watch.marker}",)

    folder = copy(models("vit")[0], tmp_path / "other")
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds pickled objects beside tensors, which are never run"):
        create_backbone(spec(folder))
    assert watch.saw_nothing()


def test_fingerprints_are_those_of_the_files(models, tmp_path):
    hashes = tmp_path / "hashes.json"
    folder, _ = models("clip")
    own = fingerprint(spec(folder), hashes)
    assert own == fingerprint(spec(copy(folder, tmp_path / "moved", _name_or_path="elsewhere")), hashes)
    assert own["weights"].startswith("sha256:") and "transformers" not in own
    found = [
        own,
        fingerprint(spec(folder, pretrained=None), hashes),
        fingerprint(spec(folder, precision="bf16"), hashes),
    ]
    found.append(fingerprint(spec(copy(folder, tmp_path / "other", projection_dim=8)), hashes))
    for number, file in enumerate(("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")):
        own = copy(folder, tmp_path / f"file{number}")
        (own / file).write_text((own / file).read_text().replace("{", '{"more": 1, ', 1))
        found.append(fingerprint(spec(own), hashes))
    assert len({json.dumps(each) for each in found}) == len(found) == 7


def test_without_the_package_it_says_how_to_get_it(models, monkeypatch):
    monkeypatch.setattr("clip_ood.backbones.transformers_library.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'clip-ood\[transformers\]'"):
        check_model(spec(models("vit")[0]))


# The hub


def hub_spec(pretrained="default"):
    return BackboneConfig(library="transformers", model="someone/tiny", pretrained=pretrained)


def test_a_model_in_the_cache_needs_no_host_and_is_known_by_its_commit(models, tmp_path, watch, hub):
    strangers.in_cache(hub, "someone/tiny", models("clip")[0], commit="c0ffee")
    own = hub_spec()
    assert own.reads_text and fingerprint(own, tmp_path / "hashes.json")["weights"] == "someone/tiny@c0ffee"
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # which the fixture sets back
    ours = create_backbone(own, download=False)
    assert ours.encode_text(["a cat"]).shape == (1, 24) and watch.saw_nothing()


def test_what_is_not_here_is_told_before_it_is_downloaded(hub, monkeypatch, capsys):
    with pytest.raises(
        WouldDownload, match=r"its configuration would be downloaded from https://huggingface\.co/someone/tiny"
    ):
        require_here(hub_spec())
    with pytest.raises(WouldDownload):
        create_backbone(hub_spec(), download=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for ask in (announce, create_backbone):
        with pytest.raises(ConnectionError, match=r"someone/tiny are not in the local cache.*downloaded to"):
            ask(hub_spec())
    assert "Downloading someone" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "GatedRepoError",
            r"someone/tiny is gated: accept its licence there, then sign in with `hf auth login` or set HF_TOKEN",
        ),
        (
            "RepositoryNotFoundError",
            "The Hugging Face hub has no repository someone/tiny, or it is private: check the name",
        ),
    ],
)
def test_gated_and_missing_repositories_are_told_in_a_line(error, told, hub, monkeypatch):
    import httpx

    cls = getattr(huggingface_hub.utils, error)
    answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))

    def refuse(*asked, **more):
        raise cls("403", response=answer)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    for ask in (announce, create_backbone, lambda spec: spec.reads_text):
        with pytest.raises(ConnectionError, match=told):
            ask(hub_spec())


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["gone.safetensors"], "names 1 files of weights, and gone.safetensors is not beside it"),
        ([""], "names no files of weights beside it"),
        ([".."], "names no files of weights beside it"),
        (["a\0b"], "names no files of weights beside it"),
        ([], "names no files of weights beside it"),
    ],
)
def test_an_index_of_weights_names_files_that_are_there(names, told, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(enumerate(names))}))
    with pytest.raises(UserError, match=told):
        parts_of(index, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("", "is damaged: it is no JSON"),
        ({"resample": 99}, "no image can be prepared by its figures .IndexError"),
        ({"crop_size": -3}, "no image can be prepared by its figures"),
        ({"image_processor_type": "Foo"}, "no image can be prepared by its figures"),
    ],
)
def test_damaged_figures_of_images_name_their_file(change, told, tmp_path):
    tiny_transformers.make(tmp_path, "clip")
    file = tmp_path / "preprocessor_config.json"
    content = json.loads(file.read_text())
    file.write_text(change if change == "" else json.dumps(content | change))
    with pytest.raises(UserError, match=rf"preprocessor_config\.json.* {told}"):
        read_prepared(file, "clip")
    file.write_text(json.dumps(content | {"image_mean": [0.5]}))
    assert read_prepared(file, "clip").mean == [0.5] * 3


def test_weights_of_another_shape_are_named(tmp_path):
    tiny_transformers.make(tmp_path, "dinov2")
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"num_attention_heads": 5}))
    with pytest.raises(UserError, match=r"of another shape \(encoder\.layer\.0\.attention"):
        create_backbone(BackboneConfig(library="transformers", model=f"local-dir:{tmp_path}", pretrained="default"))


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("tokenizer.json", "{", r"the tokenizer of .* cannot be read .*: fetch its files again"),
        ("tokenizer_config.json", {"pad_token": None}, "has no pad_token, which fills up shorter texts"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_told(file, change, told, tmp_path):
    tiny_transformers.make(tmp_path, "clip")
    content = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(change if change == "{" else json.dumps(content | change))
    with pytest.raises(UserError, match=told):
        create_backbone(BackboneConfig(library="transformers", model=f"local-dir:{tmp_path}", pretrained="default"))
