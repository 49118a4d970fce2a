"""PLP with soft labels: a fit against plain torch, resumed runs, two processes, and what takes none."""

from __future__ import annotations

import subprocess
import sys

import forked
import pytest
import tiny_clip
import torch
from interrupted import train_until
from pydantic import ValidationError
from tiny_clip import PROJECT

import train
from clip_ood.config.loading import load_config
from clip_ood.config.method_schema import PLP as Settings
from clip_ood.data.labelled import FeatureTable
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.extraction import load_features
from clip_ood.experiments.trainer import new_trainer
from clip_ood.head import StandardisedLinear, mean_and_std
from clip_ood.lightning_modules.batches import DeviceBatches
from clip_ood.lightning_modules.linear_probe import warmup_cosine
from clip_ood.lightning_modules.plp import PLP
from clip_ood.texts.prompts import prototypes

OWN = {"epochs": 3, "batch_size": 7, "lr": 0.5, "min_confidence": 0.5, "targets": "soft"}


def config(root, name, **own):
    return tiny_clip.config(root, name, {"plp": OWN | own})


@pytest.fixture(scope="module")
def run(root):
    train.main(["--config", config(root, "soft")])
    return root / "runs" / "soft"


def test_a_fit_is_that_of_a_loop(root, run):
    """Only images above the threshold; targets are all probabilities of the text encoder."""
    given = load_config(str(root / "soft.yaml"))
    benchmark = load_benchmark(given)
    features, text = load_features(given, benchmark, new_trainer({"logger": False}, given.trainer), root)
    part = benchmark.parts["train"]
    table = FeatureTable(part, features[part.images], benchmark.labels(part))
    names = prototypes(text.embeddings, len(given.data.prompts), [1, 1, 1]).double()
    rows = table[torch.arange(len(table))]
    shares = torch.stack(
        [torch.stack([(text.logit_scale * h @ t).exp() for t in names]) for h in rows.embeddings.double()]
    )
    shares = shares / shares.sum(dim=1, keepdim=True)
    kept = (shares.amax(dim=1) >= 0.5).nonzero().squeeze(1)
    assert 1 < len(kept) < len(table)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        head = StandardisedLinear(32, 3)
    head.standardise(*mean_and_std(features[part.images].features, table.rows))
    optimizer = torch.optim.Adam(head.parameters(), 0.5 * 7 / 256, weight_decay=1e-3)
    batches = DeviceBatches(rows.features[kept], kept, 7, 42)
    factor, step = warmup_cosine(3 * len(batches)), 0
    for epoch in range(3):
        batches.epoch = epoch
        for some, which, _ in batches:
            optimizer.param_groups[0]["lr"] = 0.5 * 7 / 256 * factor(step)
            optimizer.zero_grad()
            log_shares = head(some).log_softmax(dim=1)
            loss = sum(-(shares[image] * each).sum() for image, each in zip(which, log_shares, strict=True)) / len(
                which
            )
            loss.backward()
            optimizer.step()
            step += 1
    weights = tiny_clip.checkpoint(run)["state_dict"]
    torch.testing.assert_close(weights["head.linear.weight"], head.linear.weight.detach(), rtol=1e-3, atol=1e-5)
    results = tiny_clip.results(run)
    assert results["pseudo_labels"]["passed"] == results["trained_on"]["images"] == len(kept)


def test_hard_labels_are_the_default_and_another_head(root, run):
    assert Settings().targets == "hard"
    train.main(["--config", config(root, "hard", targets="hard")])
    one, other = (tiny_clip.checkpoint(each)["state_dict"] for each in (run, root / "runs" / "hard"))
    assert not torch.allclose(one["head.linear.weight"], other["head.linear.weight"], atol=1e-3)


def test_a_resumed_run_ends_as_an_uninterrupted_one(root, run):
    given = config(root, "resumed")
    train_until(2, PLP, given)
    train.main(["--config", given, "--resume"])
    one, other = (tiny_clip.checkpoint(each)["state_dict"] for each in (run, root / "runs" / "resumed"))
    assert torch.equal(one["head.linear.weight"], other["head.linear.weight"])


def test_a_sweep_takes_none():
    with pytest.raises(ValidationError, match="targets: soft takes no sweep"):
        Settings.model_validate({"targets": "soft", "sweep": {"lr": [0.1, 1.0]}})


@pytest.mark.slow
def test_two_processes_learn_what_one_does(root, run):
    command = [sys.executable, str(PROJECT / "train.py"), "--config", config(root, "two")]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    process = forked.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    told = process.communicate(timeout=200)[0].decode()
    assert process.returncode == 0, told
    one, other = (tiny_clip.checkpoint(each)["state_dict"] for each in (run, root / "runs" / "two"))
    torch.testing.assert_close(other["head.linear.weight"], one["head.linear.weight"], rtol=1e-4, atol=1e-6)
