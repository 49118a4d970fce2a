"""Runs on encoders of transformers: processes, detector folders with and without weights, fine-tuning, export."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import forked
import judged_run
import pytest
import strangers
import tiny_clip
import tiny_transformers
import torch

from clip_ood import load
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.spec import ImageSpec
from clip_ood.detect.save import add_encoder
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.local_knn import LocalKNN
from clip_ood.errors import UserError
from clip_ood.export import export
from clip_ood.model import encode
from clip_ood.outputs import Reference

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
QUIET = {"report": False, "figures": False}


@pytest.fixture(scope="module")
def models(root):
    for kind in ("clip", "siglip", "dinov2"):
        tiny_transformers.make(root / kind, kind)
    return root


def backbone(root, kind, **keys):
    return {"library": "transformers", "model": f"local-dir:{root / kind}", "pretrained": "default"} | keys


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_judging_equals_the_evaluation_with_the_models_folder_and_without(kind, models, tmp_path):
    run = judged_run.make(models, kind, backbone=backbone(models, kind), evaluation=QUIET)
    scores = judged_run.scores(run, "ood")
    assert ("mcm_sigmoid" in scores["0.png"]) == (kind == "siglip") and ("mcm" in scores["0.png"]) == (kind != "dinov2")

    def judged(place):
        return load(place, detector="all")([models / "data/near/0.png", models / "data/near/1.png"])

    before = judged(run)
    for prediction in before:
        assert prediction.score == pytest.approx(
            scores[Path(prediction.path).name][prediction.detector], rel=1e-5, abs=2e-6
        )
    copied = shutil.copytree(run / "detector", tmp_path / "copied")
    assert add_encoder(SavedDetector(copied))
    written = json.loads((copied / "encoder/architecture/config.json").read_text())
    assert written["config"]["model_type"] == kind
    hidden = (models / kind).rename(models / "hidden")
    try:
        assert [each.score for each in judged(copied)] == [each.score for each in before]
        with pytest.raises(UserError, match="cannot be had here"):
            load(run)
    finally:
        hidden.rename(models / kind)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("config", {"model_type": "clip", "auto_map": {"AutoModel": "own.Own"}}, "auto_map asks for code"),
        ("config", {"model_type": "llama"}, "the model type 'llama' is none"),
        ("config", None, "it has no model_type"),
        ("pooler", "yes", "describes no model of transformers"),
        ("preprocessing", {"resize": "all"}, "preprocessing.resize is"),
    ],
)
def test_a_folder_whose_description_asks_for_more_is_refused(key, value, told, models, tmp_path, watch):
    backbone_ = backbone(models, "dinov2")
    run = judged_run.make(models, "whole", backbone=backbone_, evaluation=QUIET | {"with_encoder": True})
    folder = shutil.copytree(run / "detector", tmp_path / "copied")
    file = folder / "encoder/architecture/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    strangers.seal(folder, json.loads((folder / "detector.json").read_text()))
    with pytest.raises(UserError, match=told):
        load(folder)
    assert watch.saw_nothing()


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_layers_and_patches_are_scored_as_new_images_are(kind, models):
    own = {"name": "local_knn", "images": 30, "patches": 200}
    detectors = ["knn", {"name": "knn", "layer": 1}, {"name": "knn", "layer": "1+2"}, own]
    detectors += [] if kind == "dinov2" else ["gl_mcm"]
    run = judged_run.make(models, f"in-{kind}", backbone=backbone(models, kind), evaluation=QUIET, detectors=detectors)
    scores = judged_run.scores(run, "ood")
    columns = {"knn", "knn_layer1", "knn_layer1+2", "local_knn"} | ({"gl_mcm"} if kind != "dinov2" else set())
    assert columns <= scores["0.png"].keys()
    predictions = load(run, detector="all")([models / "data/near/0.png", models / "data/near/1.png"])
    assert {each.detector for each in predictions} == columns
    for each in predictions:
        assert each.score == pytest.approx(scores[Path(each.path).name][each.detector], rel=1e-5), each.detector


def test_a_layer_that_is_not_there_is_told_before_images_are_encoded(models):
    with pytest.raises(UserError, match=r"layer 9: .*clip has layers 1 to 2"):
        detectors = ["knn", {"name": "knn", "layer": 9}]
        judged_run.make(models, "ninth", "zero_shot", backbone=backbone(models, "clip"), detectors=detectors)
    assert not (models / "runs/ninth/results.json").exists()


def test_two_processes_store_the_same_features(models):
    run = judged_run.make(models, "one", "zero_shot", backbone=backbone(models, "clip"), evaluation=QUIET)
    config = models / "one.yaml"
    options = ["--name=two", f"--features_root={models}/elsewhere", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "eval.py", "--config", str(config), *options]
    done = forked.run(command, cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=400)
    assert done.returncode == 0, done.stderr
    one, two = judged_run.scores(run), judged_run.scores(models / "runs" / "two")
    assert one.keys() == two.keys()
    for path, row in one.items():
        for name in ("knn", "mcm"):
            assert two[path][name] == pytest.approx(row[name], abs=1e-6)


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_the_tower_is_fine_tuned(kind, models):
    settings = {"epochs": 1, "warmup_epochs": 0, "batch_size": 8, "layer_decay": 0.8, "gradient_checkpointing": True}
    config = tiny_clip.config(
        models, f"tuned-{kind}", {"finetune": settings}, backbone=backbone(models, kind),
        data={"root": f"{models}/data", "id": "id", "ood": {"near": "near"}, "splits": judged_run.SPLITS, "batch_size": 8},
    )  # fmt: skip
    judged_run.train.main(["--config", config])
    run = models / "runs" / f"tuned-{kind}"
    scores = judged_run.scores(run, "ood")
    for prediction in load(run, detector="knn")([models / "data/near/0.png"]):
        assert prediction.score == pytest.approx(scores["0.png"]["knn"], rel=1e-4)


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["clip", "dinov2"])
@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_it_is_exported(kind, name, models, tmp_path):
    own = create_backbone(ImageSpec("transformers", f"local-dir:{models / kind}", "default"))
    detectors = {"knn_layer1": KNN().on("1"), "local_knn": LocalKNN(images=4, patches=8)}
    for detector in detectors.values():
        outputs = encode(own, torch.randn(4, 3, 32, 32), detector.inside)
        detector.update(replace(outputs, indices=torch.arange(4)))
        detector.fit()
    exported = export(tmp_path / name, own, Reference(), detectors, {})
    assert max(exported.differences.values()) < 1e-4 and not exported.notes
    assert exported.detectors == tuple(detectors) and not exported.omitted
    assert [each.name for each in exported.files] == [name, "clip_ood_pixels.py"]


def test_the_plan_counts_layers_and_patches(models, tmp_path, capsys):
    takes = {}
    for name, detectors in (("bare", ["knn"]), ("inside", ["knn", {"name": "knn", "layer": 1}, "gl_mcm"])):
        keys = {"backbone": backbone(models, "clip"), "detectors": detectors}
        config = tiny_clip.config(models, f"plan-{name}", {"zero_shot": {}}, **keys)
        with pytest.raises(SystemExit) as ended:
            judged_run.evaluation.main(["--config", config, "--plan", f"--features_root={tmp_path}"])
        told = capsys.readouterr().out
        assert not ended.value.code and "The run would start" in told
        takes[name] = float(re.search(r"features +([0-9.]+) kB", told).group(1)) * 1000
    scored = 14 + 17  # ID test images and those of three OOD sets; 63 images in all
    assert takes["inside"] - takes["bare"] == pytest.approx(4 * (63 * 32 + scored * 16 * 24), rel=0.05)


def test_the_attack_knows_it(models):
    from clip_ood.adversarial.images import pixels_of

    own = create_backbone(ImageSpec("transformers", f"local-dir:{models / 'clip'}", "default"))
    assert pixels_of(own) is not None and isinstance(own.image_tower, torch.nn.Module)
