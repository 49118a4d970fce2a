"""NegPrompt: its loss and score against loops, a run on texts, and one on what CoOp has learnt."""

from __future__ import annotations

import math

import pytest
import tiny_clip
import torch
from torch.nn.functional import normalize

import eval as evaluation
import train
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors.neg_prompt import NegPrompt as Score
from clip_ood.errors import ConfigError
from clip_ood.lightning_modules.neg_prompt import NOISE, NegPrompt, negative_prompt_loss
from clip_ood.outputs import NegativeLabels, Outputs, Reference

COOP = {"coop": {"epochs": 2, "context": 4, "lr": 0.5}}
NEGATIVE = {"epochs": 3, "batch_size": 16, "lr": 0.5, "negatives": 3}


def vectors(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_the_loss_is_that_of_loops():
    rows, positives, negatives = vectors(4, 6), vectors(3, 6, seed=1), vectors(3, 2, 6, seed=2)
    labels = torch.tensor([0, 2, 2, 1])
    found = negative_prompt_loss(rows, labels, positives, negatives, 5.0, 0.3, 0.7).item()
    image = positive = negative = 0.0
    for row, label in zip(rows, labels.tolist(), strict=True):
        for c in range(3):
            for text in [positives[c], *negatives[c]]:
                p = 1 / (1 + math.exp(-5.0 * float(row @ text)))
                image -= math.log(p if c == label else 1 - p) / (4 * 3 * 3)
    for c in range(3):
        positive -= sum(1 - float(positives[c] @ each) for each in negatives[c]) / (2 * 3)
        negative -= (1 - float((sum(negatives[c]) / 2).norm())) / 3
    assert found == pytest.approx(image + 0.3 * positive + 0.7 * negative, rel=1e-12)


@pytest.mark.parametrize("tau", [1.0, 0.05])
def test_the_score_is_the_largest_positive_share_of_a_softmax_over_all_prompts(tau):
    rows, positives, negatives = vectors(5, 6), vectors(3, 6, seed=1), vectors(6, 6, seed=2)
    scores = Score(Reference(negprompt=NegativeLabels(positives, negatives)), tau=tau).score(Outputs(embeddings=rows))
    for row, score in zip(rows, scores.tolist(), strict=True):
        weights = [math.exp(float(row @ text) / tau) for text in [*positives, *negatives]]
        assert score == pytest.approx(max(weights[:3]) / sum(weights), rel=1e-5)


@pytest.fixture(scope="module")
def coop(root):
    train.main(["--config", tiny_clip.config(root, "coop", COOP)])
    return root / "runs" / "coop"


def config(root, name, **settings):
    return tiny_clip.config(root, name, {"negprompt": NEGATIVE | settings}, detectors=["negprompt", "mcm"])


@pytest.fixture(scope="module")
def run(root):
    train.main(["--config", config(root, "negprompt")])
    return root / "runs" / "negprompt"


def loaded(run):
    return NegPrompt.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)


def test_a_run_learns_negatives_alone(root, run):
    module, rows = loaded(run), tiny_clip.results(run)["rows"]
    assert torch.equal(module.learnt, module.text_embeddings)
    cosines = torch.einsum("ce,cme->cm", module.learnt, module.learnt_negatives)
    assert module.learnt_negatives.shape == (3, 3, 16) and (cosines < 0.999).all()
    assert {row["detector"] for row in rows} == {"negprompt", "mcm"}
    saved = SavedDetector(run)
    torch.testing.assert_close(saved.reference.negprompt.negatives, module.learnt_negatives.flatten(0, 1))
    evaluation.main(["--run", str(run)])
    assert tiny_clip.results(root / "runs" / "negprompt-eval")["rows"] == rows


def test_negatives_of_what_coop_has_learnt(root, coop, run):
    name = config(root, "on_coop", positives=str(coop))
    train.main(["--config", name])
    module, learnt = loaded(root / "runs" / "on_coop"), tiny_clip.checkpoint(coop)
    assert torch.equal(module.learnt, learnt["state_dict"]["learnt"])
    contexts = tiny_clip.checkpoint(root / "runs" / "on_coop")["prompts"]
    assert len(contexts) == 3 and all(each.shape == (1, 4, 32) for each in contexts.values())
    coop.rename(coop.with_name("moved"))  # what is scored is in the checkpoint
    try:
        evaluation.main(["--run", str(root / "runs" / "on_coop")])
    finally:
        coop.with_name("moved").rename(coop)
    again = tiny_clip.results(root / "runs" / "on_coop-eval")["rows"]
    assert again == tiny_clip.results(root / "runs" / "on_coop")["rows"]


def test_contexts_start_from_that_of_coop(root, coop):
    name = config(root, "begun", positives=str(coop), lr=1e-12, warmup_lr=1e-12)
    train.main(["--config", name])
    start = tiny_clip.checkpoint(coop)["prompts"]["prompts.context"]
    contexts = list(tiny_clip.checkpoint(root / "runs" / "begun")["prompts"].values())
    assert all(0 < (each - start).abs().max() <= 1.01 * NOISE for each in contexts)
    assert not torch.equal(contexts[0], contexts[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positives": "nowhere"}, r"'nowhere' is neither text nor a finished run with a head"),
        ({"positives": "{run}"}, r"negprompt is a negprompt run; take a coop or locoop run"),
        (
            {"positives": "{coop}", "class_specific": True},
            r"class_specific is True, and .*coop has learnt .* False: give the same",
        ),
    ],
)
def test_positives_that_do_not_fit_are_refused(root, coop, run, settings, message):
    settings = settings | {"positives": settings["positives"].format(run=run, coop=coop)}
    with pytest.raises(ConfigError, match=message):
        train.main(["--config", config(root, "refused", **settings)])


def test_other_methods_have_no_such_score(root):
    name = tiny_clip.config(root, "zero", {"zero_shot": {}}, detectors=["negprompt"])
    with pytest.raises(ValueError, match=r"negprompt: needs learnt negative prompts: train them \(method\.negprompt\)"):
        evaluation.main(["--config", name])
