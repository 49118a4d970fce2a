"""What prompts are made of, and who reads them: prompt sets, WordNet's lemmas, the text tower of another model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
import yaml
from PIL import Image
from torch.nn.functional import normalize

import clip_ood.texts.wordnet
import eval as evaluation
from clip_ood.backbones.create import create_backbone
from clip_ood.config.loading import dump, load_config
from clip_ood.config.schema import BackboneConfig
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.texts.prompts import fill, prototypes
from clip_ood.texts.wordnet import find_synsets, lemmas

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
LICENCE = "  1 The licence, whose lines begin with spaces.\n"
SYNSETS = [  # number of lemmas in base 16
    "05 n 02 cat 0 true_cat 1 002 @ 02120997 n 0000 ~ 02122298 n 0000 | a feline",
    "18 n 01 cat 2 001 @ 09917593 n 0000 | a spiteful gossip",
    "05 n 0a " + " ".join(f"dog{i} 0" for i in range(10)) + " 000 | ten lemmas",
]


@pytest.fixture
def wordnet(tmp_path, monkeypatch):
    """A WordNet of three synsets; returns their offsets."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    data, offsets = LICENCE, []
    for synset in SYNSETS:
        offsets.append(len(data))
        data += f"{len(data):08d} {synset}\n"
    (folder / "data.noun").write_text(data)
    cat, gossip, dog = (f"{offset:08d}" for offset in offsets)
    (folder / "index.noun").write_text(f"{LICENCE}cat n 2 2 @ ~ 2 1 {cat} {gossip}\ndog n 1 1 @ 1 1 {dog}\n")
    monkeypatch.setattr(clip_ood.texts.wordnet.find_synsets, "__defaults__", ((folder,),))
    return offsets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny_clip.make(tmp_path_factory.mktemp("texts"))
    (root / "other").mkdir()
    (root / "other" / "open_clip_config.json").write_text((root / "clip" / "open_clip_config.json").read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = open_clip.create_model(f"local-dir:{root}/clip", load_weights=False)
        model.logit_scale.data.fill_(1.0)
    torch.save(model.state_dict(), root / "other" / "open_clip_pytorch_model.bin")
    return root


@pytest.mark.parametrize(
    "name, functions", [("openai_80", "OPENAI_IMAGENET_TEMPLATES"), ("openai_7", "SIMPLE_IMAGENET_TEMPLATES")]
)
def test_named_prompts_are_those_of_open_clip(root, name, functions):
    config = load_config(tiny_clip.config(root, "named", {"zero_shot": {}}), [f"--data.prompts={name}"])
    assert fill(config.data.prompts, ["newt"]) == [function("newt") for function in getattr(open_clip, functions)]
    assert yaml.safe_load(dump(config))["data"]["prompts"] == config.data.prompts


def test_a_name_of_no_prompts_is_an_error(root):
    with pytest.raises(ConfigError, match="prompts"):
        load_config(tiny_clip.config(root, "named", {"zero_shot": {}}), ["--data.prompts=openai_81"])


def test_lemmas_are_those_of_the_first_sense_or_of_the_wnid(wordnet):
    found = lemmas(find_synsets(), ["Cat", f"n{wordnet[1]:08d}", "dog", "fox"], ["Cat", "gossip", "dog", "fox"])
    assert found == [("cat", "true cat"), ("cat",), tuple(f"dog{i}" for i in range(10)), None]
    with pytest.raises(ValueError, match=r"no synset n00000007.*3\.0"):
        lemmas(find_synsets(), ["n00000007"], ["gone"])


def test_classes_are_called_by_their_lemmas(root, wordnet, capsys):
    file = tiny_clip.config(root, "called", {"zero_shot": {}})
    of = {
        lemmas: load_benchmark(load_config(file, [f"--data.lemmas={lemmas}"])) for lemmas in ("given", "first", "all")
    }
    assert of["given"].called == (("cat",), ("dog",), ("fox",)) == tuple((name,) for name in of["all"].class_names)
    assert of["first"].called == (("cat",), ("dog0",), ("fox",))
    assert of["all"].called == (("cat", "true cat"), tuple(f"dog{i}" for i in range(10)), ("fox",))
    assert "WordNet does not know fox" in capsys.readouterr().out


def test_without_wordnet_the_way_to_get_it_is_told(root, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_ood.texts.wordnet.find_synsets, "__defaults__", ((tmp_path / "gone",),))
    file = tiny_clip.config(root, "called", {"zero_shot": {}})
    with pytest.raises(ConfigError, match=r"data\.lemmas: .*gone.*clip-ood demo wordnet"):
        load_benchmark(load_config(file, ["--data.lemmas=all"]))


def test_a_class_of_several_names_is_their_mean():
    rows = np.random.default_rng(0).normal(size=(2 * (3 + 1 + 2), 7))
    unit = [row / np.linalg.norm(row) for row in rows]
    start, expected = 0, []
    for names in (3, 1, 2):
        mean = np.mean(unit[start : start + 2 * names], axis=0)
        expected.append(mean / np.linalg.norm(mean))
        start += 2 * names
    found = prototypes(torch.tensor(rows, dtype=torch.float32), 2, [3, 1, 2])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def scores(run):
    return pq.read_table(run / "scores.parquet")


def test_another_text_tower_changes_texts_alone(root):
    file = tiny_clip.config(root, "own", {"zero_shot": {}}, detectors=["knn", "mcm"])
    evaluation.main(["--config", file])
    before = {path: path.stat().st_mtime_ns for path in (root / "features").glob("*/images/*.safetensors")}
    evaluation.main(["--config", file, "--name=others", f"--backbone.text.model=local-dir:{root}/other"])
    now = {path: path.stat().st_mtime_ns for path in (root / "features").glob("*/images/*.safetensors")}
    assert now == before != {}  # no image was encoded again
    own, others = scores(root / "runs" / "own"), scores(root / "runs" / "others")
    assert own["knn"].equals(others["knn"]) and not own["mcm"].equals(others["mcm"])
    assert tiny_clip.results(root / "runs" / "others")["encoder"].endswith(f"texts by local-dir:{root}/other")

    spec = BackboneConfig(model=f"local-dir:{root}/clip", text={"model": f"local-dir:{root}/other"})
    both, images, texts = (
        create_backbone(each) for each in (spec, spec.model_copy(update={"text": None}), spec.text_spec)
    )
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        g = images.encode_image(pixels)
        assert torch.equal(both.encode_image(pixels), g) and torch.equal(both.project(g), images.project(g))
        assert torch.equal(both.encode_text(["a cat"]), texts.encode_text(["a cat"]))
        assert both.logit_scale == texts.logit_scale == pytest.approx(np.e) != images.logit_scale
        strings = fill(load_config(file).data.prompts, tiny_clip.CLASSES)
        prototypes_ = prototypes(texts.encode_text(strings), 5)
        path = str(own["path"].to_pylist()[0])
        folder = root / "data" / "id"
        image = images.transform(Image.open(folder / path).convert("RGB"))
        h = images.project(images.encode_image(image[None]))
        mcm = (normalize(h, dim=1) @ prototypes_.T).softmax(dim=1).amax().item()
    assert others["mcm"].to_pylist()[0] == pytest.approx(mcm, abs=1e-5)
    assert sum(w.numel() for w in both.texts.model.visual.parameters()) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--backbone={library: timm, model: test_vit, text: {model: ViT-B-16}}"], "backbone.text goes with open_clip"),
        (["--backbone.text.model=ViT-B-17"], "no model 'ViT-B-17'"),
        (["--backbone.text.model=ViT-B-16"], "embeds texts in 512 dimensions, and local-dir:.* images in 16"),
        (["--backbone.text.modle=ViT-B-16"], "Did you mean backbone.text.model|Did you mean model"),
    ],
)
def test_wrong_text_towers_are_answered_at_once(root, arguments, message):
    with pytest.raises(UserError, match=message):
        load_config(tiny_clip.config(root, "wrong", {"zero_shot": {}}), arguments)


def test_two_processes_fill_an_empty_store_with_images_and_texts(root):
    """The first one encodes the prompts; the second one, which looked before, finds them too."""
    tables = {}
    for run, devices in (("of_one", 1), ("of_two", 2)):
        keys = {"features_root": f"{root}/{run}", "detectors": ["knn", "mcm"]}
        file = tiny_clip.config(root, run, {"zero_shot": {}}, **keys)
        command = [sys.executable, "eval.py", "--config", file, f"--trainer.devices={devices}"]
        command += ["--trainer.strategy=ddp"] if devices > 1 else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        tables[run] = [row["auroc"] for row in tiny_clip.results(root / "runs" / run)["rows"]]
    assert tables["of_one"] == pytest.approx(tables["of_two"], abs=1e-6)
