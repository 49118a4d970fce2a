"""Runs of LoCoOp: the patches that they store, plans, resumed runs, several processes, folds, judging, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import forked
import judged_run
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from interrupted import train_until
from safetensors import safe_open
from tiny_clip import PROJECT

import eval as evaluation
import train
from clip_ood import load
from clip_ood.errors import UserError
from clip_ood.experiments.forecast.forecast import Forecast, look_ahead
from clip_ood.experiments.forecast.runs import single_runs
from clip_ood.features.rows import Rows
from clip_ood.lightning_modules.locoop import LoCoOp

OWN = {"epochs": 3, "batch_size": 7, "lr": 0.5, "context": 4, "per_class": 5, "rank": 1}
DETECTORS = ["gl_mcm", "mcm", "knn"]
PATCHES, WIDTH = 16, 16  # of the tiny CLIP


def config(root, name, detectors=DETECTORS, **keys):
    own = {"locoop": OWN | keys.pop("own", {})}
    return tiny_clip.config(root, name, own, detectors=detectors, **keys)


def stored(features):
    """The number of images of which each array is stored."""
    counts = {}
    for segment in features.glob("*/images/*.safetensors"):
        with safe_open(segment, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                counts[name] = counts.get(name, 0) + file.get_slice(name).get_shape()[0]
    return counts


@pytest.fixture(scope="module")
def run(root):
    train.main(["--config", config(root, "run")])
    return root / "runs" / "run"


def test_rows_of_one_are_joined_by_those_of_another():
    one = Rows((torch.arange(3.0)[:, None],)).spread(torch.tensor([0, 2, 4]), 6)
    other = Rows((torch.arange(10.0, 12)[:, None],)).spread(torch.tensor([4, 5]), 6)
    both = one.or_else(other)
    assert both.take(torch.tensor([0, 2, 4, 5])).squeeze(1).tolist() == [0, 1, 2, 11]
    assert both.has(torch.tensor([1, 0, 5])).tolist() == [False, True, True]


def test_patches_are_stored_of_drawn_and_scored_images_alone(root, run):
    scored = pq.read_metadata(run / "scores.parquet").num_rows
    counts = stored(root / "features")
    assert tiny_clip.results(run)["trained_on"] == {"images": 15, "classes": 3, "fewest": 5, "most": 5}
    assert counts["features"] == 63 and counts["tokens.value"] == 15 + scored < 63


def test_without_gl_mcm_patches_are_stored_of_drawn_images_alone(root, run):
    given = config(root, "alone", ["mcm"], features_root=f"{root}/alone")
    train.main(["--config", given])
    assert stored(root / "alone")["tokens.value"] == 15
    one, other = (tiny_clip.checkpoint(each) for each in (run, root / "runs" / "alone"))
    assert torch.equal(one["prompts"]["prompts.context"], other["prompts"]["prompts.context"])


@pytest.mark.parametrize(("detectors", "read"), [(DETECTORS, 0), (["local_knn", "gl_mcm"], 32), (["mcm"], 0)])
def test_patches_of_the_bank_are_read_only_where_a_detector_learns_from_them(root, monkeypatch, detectors, read):
    seen, original = [], LoCoOp.bank_outputs
    scored, scoring = [], LoCoOp.outputs

    def watch(self, batch):
        seen.append(len(batch) if batch.tokens else 0)
        return original(self, batch)

    def watch_scored(self, batch):
        scored.append(batch.tokens is not None)
        return scoring(self, batch)

    monkeypatch.setattr(LoCoOp, "bank_outputs", watch)
    monkeypatch.setattr(LoCoOp, "outputs", watch_scored)
    train.main(["--config", config(root, f"read_{len(detectors)}_{read}", detectors, own={"epochs": 1})])
    assert seen and sum(seen) == read and any(scored) == (detectors != ["mcm"])


def test_local_knn_learns_from_its_own_images_whatever_the_method_draws(root):
    detectors = [{"name": "local_knn", "images": 9, "coreset": 1.0}, "mcm"]
    train.main(["--config", config(root, "both", detectors, own={"epochs": 1, "per_class": 2})])
    evaluation.main(["--config", tiny_clip.config(root, "alone_knn", {"zero_shot": {}}, detectors=detectors)])
    of_both, alone = (judged_run.scores(root / "runs" / name) for name in ("both", "alone_knn"))
    assert {path: row["local_knn"] for path, row in of_both.items()} == {
        path: row["local_knn"] for path, row in alone.items()
    }


def test_without_a_draw_it_learns_from_all_images_and_the_plan_knows(root):
    given = config(root, "all", ["mcm"], features_root=f"{root}/all", own={"per_class": None})
    planned = forecast(given).encoders[0]
    few = forecast(config(root, "few", ["mcm"], features_root=f"{root}/all")).encoders[0]
    assert planned.size - few.size == (32 - 15) * PATCHES * WIDTH * planned.item
    train.main(["--config", given])
    assert stored(root / "all")["tokens.value"] == 32
    assert forecast(given).encoders[0].size == 0


def forecast(given):
    from clip_ood.config.loading import load_config

    config = load_config(given)
    return look_ahead(single_runs(config.name, config, config.runs_root / "planned", None, False), Forecast())


def test_the_regularisation_has_changed_what_is_learnt(root, run):
    train.main(["--config", config(root, "coop", own={"weight": 0.0})])
    one, other = (tiny_clip.checkpoint(each)["prompts"]["prompts.context"] for each in (run, root / "runs" / "coop"))
    assert not torch.allclose(one, other, atol=1e-4)


def test_a_resumed_run_ends_as_an_uninterrupted_one(root, run):
    given = config(root, "resumed")
    train_until(2, LoCoOp, given)
    train.main(["--config", given, "--resume"])
    one, other = (tiny_clip.checkpoint(each) for each in (run, root / "runs" / "resumed"))
    assert torch.equal(one["prompts"]["prompts.context"], other["prompts"]["prompts.context"])
    assert tiny_clip.results(run)["rows"] == tiny_clip.results(root / "runs" / "resumed")["rows"]


def test_a_run_is_scored_again_without_the_patches_of_its_training_images(root, run, monkeypatch):
    def needless(*_):
        raise AssertionError("patches of training images were asked for")

    monkeypatch.setattr("clip_ood.experiments.run.with_training_patches", needless)
    evaluation.main(["--run", str(run)])
    assert tiny_clip.results(root / "runs" / "run-eval")["rows"] == tiny_clip.results(run)["rows"]


def test_new_images_are_judged_as_the_evaluation_scores_them(root):
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near"}, "splits": judged_run.SPLITS, "batch_size": 8}
    train.main(["--config", config(root, "judging", data=data)])
    scores = judged_run.scores(root / "runs" / "judging", "ood")["0.png"]
    predictions = load(root / "runs" / "judging", detector="all")([root / "data/near/0.png"])
    assert [each.detector for each in predictions] == DETECTORS
    for each in predictions:
        assert each.score == pytest.approx(scores[each.detector], rel=1e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(root, run):
    given = config(root, "two", features_root=f"{root}/two")
    several = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, str(PROJECT / "train.py"), "--config", given, *several]
    process = forked.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    told = process.communicate(timeout=200)[0].decode()
    assert process.returncode == 0, told
    one, other = (tiny_clip.checkpoint(each) for each in (run, root / "runs" / "two"))
    torch.testing.assert_close(
        other["prompts"]["prompts.context"], one["prompts"]["prompts.context"], rtol=1e-3, atol=1e-5
    )
    assert stored(root / "two")["tokens.value"] == 15 + pq.read_metadata(run / "scores.parquet").num_rows


def test_folds_learn_from_the_patches_of_their_own_draws(root):
    keys = {"figures": False, "report": False, "cross_fit": 2}
    data = {"root": f"{root}/data", "id": "id", "ood": {}, "splits": {"val": 0, "test": 0}, "batch_size": 8}
    train.main(["--config", config(root, "crossed", evaluation=keys, data=data)])
    assert len(judged_run.scores(root / "runs" / "crossed", "train")) == 46


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"own": {"rank": 3}}, r"method\.locoop\.rank = 3: .* learnt for 3 classes: take fewer"),
        ({"backbone": {"library": "timm", "model": "test_vit"}}, "needs a text encoder"),
    ],
)
def test_what_cannot_be_learnt_is_refused_before_anything_is_encoded(root, keys, message):
    given = config(root, "refused", features_root=f"{root}/refused", **keys)
    with pytest.raises(UserError, match=message):
        train.main(["--config", given])
    assert not stored(root / "refused")


def test_an_encoder_without_such_patches_is_refused_before_anything_is_encoded(root, tmp_path, monkeypatch):
    pooled = tiny_clip.CLIP["vision_cfg"] | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    monkeypatch.setattr(tiny_clip, "CLIP", tiny_clip.CLIP | {"vision_cfg": pooled})
    other = tiny_clip.make(tmp_path)
    with pytest.raises(
        UserError, match=r"method\.locoop learns from patches, and .* gives no tokens.*take another encoder"
    ):
        train.main(["--config", config(other, "pooled")])
    assert not stored(other / "features")
