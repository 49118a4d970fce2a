"""Fine-tuning runs of seconds on the tiny CLIP, and their scores computed anew in plain loops."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import tiny_clip
import torch
from PIL import Image
from torch.nn.functional import normalize

import train
from clip_ood.backbones.create import create_backbone
from clip_ood.config.loading import load_config
from clip_ood.experiments.benchmarks import load_benchmark

STILL = {"mixup": 0, "cutmix": 0, "augment": None, "random_erasing": 0, "min_crop": 1, "flip": 0, "label_smoothing": 0}
FITTED = STILL | {"epochs": 30, "warmup_epochs": 2, "batch_size": 16, "lr": 0.02, "layer_decay": 0.9}
MOVING = {"epochs": 4, "warmup_epochs": 1, "batch_size": 8, "lr": 0.02, "random_erasing": 0.5, "ema": 0.5}


def start(root, name, settings, *options, **keys):
    """The folder of a finished run of fine-tuning."""
    train.main(["--config", tiny_clip.config(root, name, {"finetune": settings}, **keys), *options])
    return root / "runs" / name


def naive_scores(root, run, state):
    """knn and msp of every scored image of a run from the weights in `state`, by (detector, set, path)."""
    config = load_config(str(run / "config.yaml"))
    backbone, benchmark = create_backbone(config.backbone), load_benchmark(config)
    tower = {k.removeprefix("backbone.model.visual."): v for k, v in state.items() if ".visual." in k}
    backbone.image_tower.load_state_dict(tower)
    features = {}
    for part in benchmark.evaluated:
        listed = benchmark.images[part.images]
        paths = [listed.names[row] for row in part.rows]
        images = [backbone.transform(Image.open(Path(listed.root, path)).convert("RGB")) for path in paths]
        features[part.name] = paths, backbone.encode_image(torch.stack(images))
    bank = normalize(features.pop("bank")[1], dim=1)
    scores = {}
    for name, (paths, g) in features.items():
        knn = (normalize(g, dim=1) @ bank.T).amax(1)
        msp = (g @ state["head.weight"].T + state["head.bias"]).softmax(1).amax(1)
        for detector, values in (("knn", knn), ("msp", msp)):
            scores |= {(detector, name, path): value for path, value in zip(paths, values.tolist(), strict=True)}
    return scores


def written_scores(run):
    table = pq.read_table(run / "scores.parquet").to_pylist()
    return {(name, row["set"], row["path"]): row[name] for row in table for name in ("knn", "msp")}


def assert_same_state(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
