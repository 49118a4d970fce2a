"""Where the head of fine-tuning starts: from text, from a probe or at random."""

from __future__ import annotations

import pytest
import tiny_clip
import torch
from fine_tuning import FITTED, STILL, start
from torch.nn.functional import normalize

import clip_ood.experiments.run
import eval as evaluation
import train
from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.config.loading import load_config
from clip_ood.config.schema import Method
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.extraction import load_features
from clip_ood.experiments.models import build

pytestmark = pytest.mark.slow

PROBE = {"linear_probe": {"epochs": 20, "batch_size": 8, "lr": 0.05}}


@pytest.fixture(scope="module")
def probe(root):
    train.main(["--config", tiny_clip.config(root, "probe", PROBE)])
    return root / "runs" / "probe"


def first_step(root, name, **settings):
    """The module as it starts, and its outputs on the ID test images beside the stored ones."""
    config = load_config(tiny_clip.config(root, name, {"finetune": STILL | settings}))
    benchmark = load_benchmark(config)
    trainer = clip_ood.experiments.run.make_trainer(config, root, OODEvaluation(None), trains=False)
    features, text = load_features(config, benchmark, trainer, root)
    module, data = build(config, benchmark, features, text)
    frozen = config.model_copy(update={"method": Method(zero_shot={})})
    features, _ = load_features(frozen, benchmark, trainer, root)
    module.eval()
    table = data.tables["id_test"]
    images = [data.transform(benchmark.images["id"].read(int(row))) for row in table.rows]
    with torch.no_grad():
        logits = module._logits(torch.stack(images))
    module.requires_grad_(False)
    return module, logits, features["id"].features.take(table.rows), features["id"].embeddings.take(table.rows)


def test_a_head_from_text_predicts_as_zero_shot(root):
    module, logits, _, embeddings = first_step(root, "text", head="text")
    cosines = embeddings @ module.text_embeddings.T
    assert torch.equal(logits.argmax(1), cosines.argmax(1))
    torch.testing.assert_close(normalize(logits, dim=1), normalize(cosines, dim=1), rtol=1e-3, atol=1e-4)
    scale = (logits / (module.logit_scale * cosines)).median()
    assert 0.8 < scale < 1.25


def test_a_head_from_a_probe_gives_its_logits(root, probe):
    _, logits, features, _ = first_step(root, "from_probe", head=str(probe))
    state = tiny_clip.checkpoint(probe)["state_dict"]
    standard = (features - state["head.mean"]) / state["head.std"]
    expected = standard @ state["head.linear.weight"].T + state["head.linear.bias"]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_random_head_is_drawn_by_the_seed(root):
    one, two = (first_step(root, "random", head="random")[0].head.weight for _ in range(2))
    assert torch.equal(one, two) and one.std() == pytest.approx(0.02, rel=0.3)


@pytest.fixture(scope="module")
def other_classes(root, probe):
    (root / "two").mkdir()
    for name in tiny_clip.CLASSES[:2]:
        (root / "two" / name).symlink_to(root / "data" / "id" / name)
    return {"root": str(root / "data"), "id": str(root / "two"), "splits": {"val": 0.0, "test": 0.3}}


def test_heads_that_do_not_fit_say_what_to_change(root, probe, other_classes):
    def refused(message, head=probe, **keys):
        with pytest.raises(ValueError, match=message):
            start(root, "refused", STILL | {"head": str(head), "batch_size": 8}, **keys)
        assert not (root / "runs" / "refused" / "config.yaml").exists()

    tuned = start(root, "tuned", STILL | {"epochs": 1, "warmup_epochs": 0, "batch_size": 8})
    refused(r"was trained on 3 classes, and the images here have 2; they differ in fox", data=other_classes)
    refused("has another encoder .*train a probe", backbone={"library": "timm", "model": "test_vit"})
    refused("divided the images by seed 42 .*train it with the seed", seed=1)
    refused("is a finetune run; take a linear_probe or plp run", head=tuned)
    refused("neither random, nor text, nor a finished run", head=root / "data")
    refused("timm's models have none: take random", head="text", backbone={"library": "timm", "model": "test_vit"})


def test_an_evaluation_needs_no_more_the_run_that_its_head_started_from(root, probe):
    (root / "runs" / "gone").mkdir()
    for part in ("config.yaml", "results.json", "checkpoints"):
        (root / "runs" / "gone" / part).symlink_to(probe / part)
    run = start(root, "lp_ft", FITTED | {"epochs": 1, "warmup_epochs": 0, "head": str(root / "runs" / "gone")})
    (root / "runs" / "gone").rename(root / "runs" / "away")
    evaluation.main(["--run", str(run)])
    assert tiny_clip.results(root / "runs" / "lp_ft-eval")["rows"] == tiny_clip.results(run)["rows"]
