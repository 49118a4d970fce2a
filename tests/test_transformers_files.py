"""Files of transformers' models: weights in one file or several, tokenizers, what identifies them, and what is damaged."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import tiny_transformers
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import copy, spec

from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.backbones.transformers_library import parts_of
from clip_ood.errors import UserError


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_weights_in_several_files_are_those_of_one(kind, tiny_model, tmp_path):
    folder, model = tiny_model(kind)
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


def test_random_weights_come_from_their_seed_and_files_fit_exactly(tiny_model, tmp_path):
    folder, model = tiny_model("dinov2")
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


def test_fingerprints_are_those_of_the_files(tiny_model, tmp_path):
    hashes = tmp_path / "hashes.json"
    folder, _ = tiny_model("clip")
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


def test_weights_of_another_shape_are_named(tmp_path):
    tiny_transformers.make(tmp_path, "dinov2")
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"num_attention_heads": 5}))
    with pytest.raises(UserError, match=r"of another shape \(encoder\.layer\.0\.attention"):
        create_backbone(spec(tmp_path))


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
        create_backbone(spec(tmp_path))


def test_pickled_code_in_weights_is_not_run(tiny_model, tmp_path, watch):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {watch.marker}",)

    folder = copy(tiny_model("vit")[0], tmp_path / "other")
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds pickled objects beside tensors, which are never run"):
        create_backbone(spec(folder))
    assert watch.saw_nothing()
