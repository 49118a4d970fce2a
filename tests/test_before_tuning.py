"""What is done with images before an encoder is tuned on them: they are read, once, and not encoded."""

from __future__ import annotations

import tiny_clip
import torch

import clip_ood.experiments.run
from clip_ood.backbones.open_clip_backbone import OpenClipBackbone
from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.config.loading import load_config
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.extraction import START, load_features

FEW = {"epochs": 4, "warmup_epochs": 1, "batch_size": 8}


def encoded(root, monkeypatch, **settings):
    """How many images the frozen encoder sees before fine-tuning begins, into an empty store, and what the store knows then."""
    seen, encode = [], OpenClipBackbone.encode_image
    monkeypatch.setattr(OpenClipBackbone, "encode_image", lambda *of: seen.append(len(of[1])) or encode(*of))
    name = "-".join(settings)
    config = load_config(tiny_clip.config(root, name, {"finetune": FEW | settings}), [f"--features_root={root / name}"])
    benchmark = load_benchmark(config)
    trainer = clip_ood.experiments.run.make_trainer(config, root, OODEvaluation(None), trains=False)
    features, _ = load_features(config, benchmark, trainer, root)
    return sum(seen), features, benchmark


def test_before_the_encoder_is_tuned_images_are_read_but_not_encoded(root, monkeypatch):
    images, features, benchmark = encoded(root, monkeypatch, head="random")
    assert images == 0 and all(each.features is None for each in features.values())
    assert all(int(each.valid.sum()) == len(benchmark.images[key]) for key, each in features.items())
    images, features, benchmark = encoded(root, monkeypatch, head="text", epochs=4)
    assert images == len(benchmark.parts["train"].rows) == len(features[START].features)
    assert all(each.features is None for key, each in features.items() if key != START)


def test_images_that_were_only_read_are_encoded_by_the_next_run(root, monkeypatch):
    encoded(root, monkeypatch, head="random", batch_size=8)
    config = load_config(
        tiny_clip.config(root, "after", {"zero_shot": {}}), [f"--features_root={root / 'head-batch_size'}"]
    )
    benchmark = load_benchmark(config)
    trainer = clip_ood.experiments.run.make_trainer(config, root, OODEvaluation(None), trains=False)
    features, _ = load_features(config, benchmark, trainer, root)
    assert all(each.features.take(torch.arange(len(each.valid))).abs().sum(1).min() > 0 for each in features.values())
