"""InterNeg in whole runs on a tiny random CLIP: its rows, judging with a memory, and what is refused before images are read."""

from __future__ import annotations

import json

import judged_run
import pytest
import tiny_clip
import torch
from judged_run import judged, read
from safetensors import safe_open

import detect
import eval as evaluation
from clip_ood.backbones.create import create_backbone
from clip_ood.config.schema import BackboneConfig
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import ConfigError, UserError
from clip_ood.texts.negative_words import neglabel_pool
from clip_ood.texts.wordnet import Words

pytestmark = pytest.mark.slow

WORDS = ["sea star", "iron gate", "paper boat", "old nail", "blue ring", "wet stone", "round table", "loud bell"]
METHOD = {"name": "interneg", "threshold": 0.9, "steps": 2, "length": 5}  # few steps: these are about the run
ASKED = {"orders": 2, "batch_size": 8, "methods": [METHOD, {"name": "interneg", "threshold": 0.9, "as": "more"}]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny_clip.make(tmp_path_factory.mktemp("interneg"))
    (root / "words.txt").write_text("\n".join(WORDS))
    return root


def made(root, name, detectors=("mcm",), stream=ASKED, **keys):
    data = {"negative_words": f"{root}/words.txt", "negative_choice": "given"}
    shown = {"figures": False, "report": False, "stream": stream}
    return judged_run.make(
        root, name, "zero_shot", data=data, detectors=list(detectors), evaluation=shown, **keys
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(root):
    return made(root, "streaming")


@pytest.fixture(scope="module")
def images(root):
    return sorted((root / "data/near").glob("*.png")) + sorted((root / "data/id").rglob("*.png"))[::5]


def test_its_rows_stand_in_the_table_of_streams_and_come_again(root, run):
    found = tiny_clip.results(run)["stream"]
    assert {(row["method"], row["ood"]) for row in found["rows"]} == {
        (method, ood) for method in ("interneg", "more") for ood in ("near", "mean")
    }
    assert tiny_clip.results(made(root, "again"))["stream"] == found


def test_a_folder_has_the_mean_images_and_says_where_the_texts_are_read(root, run):
    saved = SavedDetector(run)
    clip = create_backbone(BackboneConfig(model=f"local-dir:{root}/clip"))
    known, classes = saved.reference, neglabel_pool(Words(tuple(WORDS), ()), tiny_clip.CLASSES).classes
    assert known.class_images.shape == (3, 16) and (known.class_images.norm(dim=1) > 0).all()
    texts = [prompt.replace("{}", name) for name in classes.words for prompt in classes.prompts]
    torch.testing.assert_close(known.text_tower().encode_text(texts), clip.encode_text(texts))
    assert known.text_tower() is known.text_tower()


def test_two_calls_with_one_memory_are_one(run, images, tmp_path):
    def scored(images, memory):
        out = tmp_path / "out.csv"
        judged(
            "--run",
            run,
            *images,
            "--adapt",
            "interneg",
            "--memory",
            memory,
            "--out",
            out,
            "--batch-size=4",
            "--overwrite",
        )
        return [row["score"] for row in read(out)]

    whole = scored(images, tmp_path / "whole.safetensors")
    parts = scored(images[:8], tmp_path / "parts.safetensors") + scored(images[8:], tmp_path / "parts.safetensors")
    assert parts == whole and len(set(whole)) > 5
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    with safe_open(tmp_path / "whole.safetensors", "pt") as file:
        assert set(file.keys()) == {"embeddings", "scores"}
        assert json.loads(file.metadata()["memory"])["seen"] == len(images)


def test_a_run_that_did_not_ask_for_it_says_what_to_do(root, images, tmp_path):
    other = made(root, "other", detectors=("mcm", "neglabel"), stream={"orders": 1})
    told = r"interneg needs mean images .*evaluation\.stream\.methods; an encoder of texts"
    with pytest.raises((UserError, SystemExit), match=told):
        detect.main(["--run", str(other), str(images[0]), "--adapt=interneg", f"--memory={tmp_path}/m.safetensors"])


@pytest.mark.parametrize(
    ("keys", "options", "told"),
    [
        (
            {"backbone": {"library": "timm", "model": "test_vit", "pretrained": None}},
            ["--data.negative_words=null"],
            "interneg needs the logit scale of an encoder of texts; .*an encoder of texts, which it asks",
        ),
        ({}, ["--data.id=near", "--data.id.class_names=[cat, dog]", "--data.ood={far: far}"], "label the ID training"),
        ({}, ["--data.negative_words=null"], "interneg needs negative words"),
        ({}, ["--evaluation.stream.methods=[{name: interneg, steps: 0}]"], "interneg: steps = 0, expected a whole"),
    ],
)
def test_what_cannot_be_is_refused_before_images_are_read(root, keys, options, told, monkeypatch):
    monkeypatch.setattr("clip_ood.experiments.run.load_features", lambda *_: pytest.fail("images are read"))
    shown = {"figures": False, "report": False, "stream": {"methods": ["interneg"]}}
    config = tiny_clip.config(root, "refused", {"zero_shot": {}}, detectors=["knn"], evaluation=shown, **keys)
    with pytest.raises((UserError, SystemExit), match=told):
        evaluation.main(["--config", config, f"--data.negative_words={root}/words.txt", *options])


def test_an_encoder_that_takes_no_tokens_is_refused_before_images_are_read(root, monkeypatch):
    monkeypatch.setattr("clip_ood.experiments.run.load_features", lambda *_: pytest.fail("images are read"))
    monkeypatch.setattr("clip_ood.backbones.open_clip_library.OpenClip.takes_tokens", False)
    with pytest.raises(ConfigError, match="interneg needs a text tower that takes embeddings of tokens"):
        made(root, "tokenless")
