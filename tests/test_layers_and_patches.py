"""Detectors on layers and patches: their scores, and runs that store what they ask for, judge by it, and say what cannot be."""

from __future__ import annotations

import os
import sys

import forked
import judged_run
import pytest
import tiny_clip
import torch
import yaml
from tiny_clip import PROJECT
from torch.nn.functional import normalize

import attack
import eval as evaluation
from clip_ood import load
from clip_ood.datamodules.feature_data import FeatureData
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors import build_detectors, read_specs
from clip_ood.detectors.gl_mcm import GLMCM
from clip_ood.detectors.knn import KNN
from clip_ood.errors import UserError
from clip_ood.evaluation import DetectorSuite
from clip_ood.outputs import Outputs, Reference

DETECTORS = [
    "mcm",
    "gl_mcm",
    {"name": "gl_mcm", "tokens": "output", "as": "gl_mcm_output"},
    "knn",
    {"name": "knn", "layer": 1},
    {"name": "knn", "layer": "1+2"},
    {"name": "mahalanobis", "layer": 1},
    {"name": "layered_mcm", "layer": 1},
]
COLUMNS = [
    "mcm",
    "gl_mcm",
    "gl_mcm_output",
    "knn",
    "knn_layer1",
    "knn_layer1+2",
    "mahalanobis_layer1",
    "layered_mcm_layer1",
]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("tau", "weight"), [(1.0, 1.0), (0.01, 1.0), (1.0, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize("cells", [2**22, 50])
def test_gl_mcm_is_that_of_the_authors(tau, weight, cells, monkeypatch):
    monkeypatch.setattr("clip_ood.detectors.patches.CELLS", cells)
    text, h, x = (normalize(random(*shape, seed=len(shape)), dim=-1) for shape in ((5, 8), (7, 8), (7, 9, 8)))
    detector = GLMCM(Reference(text_embeddings=text), tau=tau, weight=weight)
    scores = detector.score(Outputs(embeddings=h, tokens={"value": x, "output": x.flip(0)}))
    text, h, x = text.double(), h.double(), x.double()
    expected = [
        (image @ text.T / tau).softmax(0).max()
        + weight * max((patch @ text.T / tau).softmax(0).max() for patch in patches)
        for image, patches in zip(h, x, strict=True)
    ]
    torch.testing.assert_close(scores.double(), torch.stack(expected), rtol=1e-6, atol=1e-7)


def test_detectors_of_one_layer_share_a_bank_and_no_others_do():
    detectors, _ = build_detectors(
        ["knn", {"name": "knn", "layer": 2}, {"name": "knn", "layer": 2, "k": 3}], Reference(), {"features", "layers"}
    )
    from clip_ood.detectors.statistic import share

    assert len(share(detectors.values())) == 2
    g, own, three = detectors.values()
    assert own.bank is three.bank is not g.bank


def test_features_of_several_layers_have_the_mean_of_their_cosines():
    outputs = Outputs(features=random(6, 4), layers={"1": random(6, 3, seed=1), "2": 5 * random(6, 9, seed=2)})
    train, test = (outputs.map(lambda value, rows=rows: value[rows]) for rows in (slice(0, 4), slice(4, 6)))
    detector = KNN().on("1+2")
    detector.update(train)
    detector.fit()
    cosines = sum(normalize(test.layers[name], dim=1) @ normalize(train.layers[name], dim=1).T for name in ("1", "2"))
    torch.testing.assert_close(detector.score(test), (cosines / 2).amax(dim=1))
    with pytest.raises(UserError, match=r"knn: needs layers.2, and these outputs have layers.1"):
        detector.score(Outputs(features=random(1, 4), layers={"1": random(1, 3)}))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"name": "msp", "layer": 1}, "takes no features of a layer: it works on logits"),
        ({"name": "vim", "layer": 1}, "takes no features of a layer"),
        ({"name": "mcm", "layer": 1}, "takes no features of a layer"),
        ({"name": "knn", "layer": 0}, "layer = 0, expected the number of a layer"),
        ({"name": "knn", "layer": "last"}, "layer = last, expected the number of a layer"),
        ({"name": "knn", "layer": "01"}, "layer = 01, expected the number of a layer"),
        ({"name": "knn", "layer": "٣"}, "layer = ٣, expected the number of a layer"),
        ({"name": "knn", "layer": "1+"}, r"layer = 1\+, expected the number"),
        ({"name": "knn", "layer": "2+2"}, "names a layer twice"),
        ({"name": "gl_mcm", "tokens": "values"}, "tokens = values, expected value or output"),
        ({"name": "gl_mcm", "weight": -1}, "weight = -1, expected 0 or more"),
    ],
)
def test_what_no_detector_can_be_is_said(spec, why):
    with pytest.raises(UserError, match=why):
        build_detectors(
            [spec],
            Reference(text_embeddings=random(2, 3)),
            {"features", "embeddings", "tokens", "layers"} | {"text_embeddings", "labels", "logits", "weight", "bias"},
        )


def test_layers_are_candidates_for_one_column():
    specs = read_specs([{"name": "knn", "layer": [1, "1+2"], "as": "deep"}])
    assert [spec.label for spec in specs] == ["deep_layer1", "deep_layer1+2"]
    assert {spec.chosen_as for spec in specs} == {"deep"}


@pytest.fixture(scope="module")
def finished(root):
    return judged_run.make(root, "inside", "zero_shot", detectors=DETECTORS)


def test_new_images_are_scored_as_the_evaluation_scores_them(root, finished):
    assert SavedDetector(finished).columns == COLUMNS
    scores = judged_run.scores(finished, "ood")
    predictions = load(finished, detector="all")([root / "data/near/0.png", root / "data/near/1.png"])
    assert len(predictions) == 2 * len(COLUMNS)
    for prediction in predictions:
        name = prediction.path.rpartition("/")[2]
        assert prediction.score == pytest.approx(scores[name][prediction.detector], rel=1e-5), prediction.detector


def test_a_bank_is_saved_for_each_layer_alone(finished):
    banks = sorted(path.name for path in (finished / "detector").glob("bank-*.safetensors"))
    assert banks == ["bank-00000.safetensors", "bank-layer1+2-00000.safetensors", "bank-layer1-00000.safetensors"]
    widths = [SavedDetector(finished).bank(layer).chunks[0].shape[1] for layer in (None, "1", "1+2")]
    assert widths == [32, 32, 64]


def test_patches_are_stored_of_scored_images_alone(root, finished):
    from safetensors import safe_open

    counts = {}
    for segment in (root / "features").glob("*/images/*.safetensors"):
        with safe_open(segment, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                counts[name] = counts.get(name, 0) + file.get_slice(name).get_shape()[0]
    images, scored = 46 + 9, 46 - counts["tokens.value"] + 9
    assert counts["features"] == counts["layers.1"] == images
    assert counts["tokens.value"] == counts["tokens.output"] < images
    assert scored > 0


def test_a_second_run_encodes_nothing(root, finished, monkeypatch):
    def loaded(*_):
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr("clip_ood.experiments.extraction.create_backbone", loaded)
    again = judged_run.make(root, "again", "zero_shot", detectors=DETECTORS)
    assert judged_run.scores(again) == judged_run.scores(finished)


@pytest.mark.slow
def test_two_processes_score_as_one(root, finished):
    options = ["--name=both", f"--features_root={root}/features2", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "eval.py", "--config", f"{root}/inside.yaml", "--data.num_workers=1", *options]
    done = forked.run(command, cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr
    alone = judged_run.scores(finished)
    for path, row in judged_run.scores(root / "runs/both").items():
        for column in COLUMNS:
            assert row[column] == pytest.approx(alone[path][column], rel=1e-5)


@pytest.mark.parametrize("method", ["finetune", "plp"])
def test_other_methods_see_them_too(root, method):
    run = judged_run.make(root, f"of_{method}", method, detectors=DETECTORS)
    expected = COLUMNS[:-1] if method == "finetune" else COLUMNS  # whose projection is trained as well
    assert list(dict.fromkeys(row["detector"] for row in tiny_clip.results(run)["rows"])) == expected
    scores = judged_run.scores(run, "ood")
    for prediction in load(run, detector="all")([root / "data/near/0.png"]):
        assert prediction.score == pytest.approx(scores["0.png"][prediction.detector], rel=1e-4)


def test_cross_fitted_images_are_scored_by_their_patches(root):
    run = judged_run.cross_fitted(root, "crossed", detectors=DETECTORS)
    rows = judged_run.scores(run, "train")
    assert len(rows) == 46
    assert all(row["gl_mcm"] > 0 and row["knn_layer1"] < 1 for row in rows.values())


def test_a_layer_that_is_not_there_is_said_before_anything_is_encoded(root):
    config = tiny_clip.config(root, "deep", {"zero_shot": {}}, detectors=[{"name": "knn", "layer": 3}])
    with pytest.raises(UserError, match=r"layer 3: local-dir:.*clip has layers 1 to 2"):
        evaluation.main(["--config", config])
    assert not (root / "runs/deep/results.json").exists()


def test_a_parameter_out_of_range_is_said_before_anything_is_encoded(root, tmp_path):
    config = tiny_clip.config(root, "ranged", {"zero_shot": {}}, detectors=[{"name": "knn", "k": 0}])
    with pytest.raises(UserError, match="knn: k = 0, expected"):
        evaluation.main(["--config", config, f"--features_root={tmp_path}/features"])
    assert not list((tmp_path / "features").rglob("*.safetensors"))


def test_patches_of_an_encoder_without_texts_leave_gl_mcm_out(root):
    backbone = {"library": "timm", "model": "test_vit", "image_size": 32}
    run = judged_run.make(root, "textless", "zero_shot", backbone=backbone, detectors=["knn", "gl_mcm"])
    omitted = {each["detector"]: each["reason"] for each in tiny_clip.results(run)["omitted"]}
    assert "no text side" in omitted["gl_mcm"]


@pytest.mark.slow
def test_an_attack_leaves_them_out_and_refuses_them_as_its_score(root):
    experiment = tiny_clip.config(
        root, "attacked", judged_run.PROBE, detectors=["knn", "gl_mcm", {"name": "knn", "layer": 1}]
    )
    content = {"name": "attack", "config": experiment, "runs_root": f"{root}/attacks", "ood": "near", "pairs": 3}
    content |= {"steps": 2, "lr": 0.01, "batch_size": 4, "budget": {"norm": "linf", "epsilon": 0.05}}
    path = root / "attack.yaml"
    for score in ("knn_layer1", "gl_mcm"):
        path.write_text(yaml.safe_dump(content | {"score": score}))
        with pytest.raises(UserError, match="looks at layers or patches"):
            attack.main(["--config", str(path)])
    path.write_text(yaml.safe_dump(content))
    attack.main(["--config", str(path)])
    rows = judged_run.scores(root / "attacks/attack/scored")
    assert all({"knn", "gl_mcm", "knn_layer1"} <= set(row) for row in rows.values())


def test_id_val_is_kept_without_its_patches(root):
    """A probe looks at ID val after each epoch, and the device must not hold all patches for that."""
    held = []
    original = FeatureData.val_loader

    def watched(data):
        loader = original(data)
        held.extend(batch.tokens for batch in loader)
        return loader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureData, "val_loader", watched)
        judged_run.make(root, "held", "linear_probe", detectors=["gl_mcm", "msp"])
    assert held and all(tokens is None for tokens in held)


@pytest.mark.parametrize("layers", [["1+2"], ["1", "2"], ["1", None]])
def test_neighbours_in_a_layer_do_not_vote_on_classes(layers):
    outputs = Outputs(
        features=random(30, 4),
        layers={"1": random(30, 4, seed=1), "2": random(30, 3, seed=2)},
        indices=torch.arange(30),
    )
    labels = torch.arange(30) % 3
    asked = [{"name": "knn", "as": f"at {layer}"} | ({} if layer is None else {"layer": layer}) for layer in layers]
    votes = {}
    for name, specs in (("these", asked), ("g", ["knn"])):
        suite = DetectorSuite(Reference(class_names=("a", "b", "c")), specs)
        suite.update(outputs.map(lambda value: value[:20]))
        suite.fit()
        rows = outputs.map(lambda value: value[20:])
        scores = suite.score(rows, labels)
        votes[name] = scores.votes
        assert ("knn" in suite.classes(rows, scores)) == (name == "g" or None in layers)
    if None in layers:
        assert torch.equal(votes["these"], votes["g"])
    else:
        assert votes["these"] is None
