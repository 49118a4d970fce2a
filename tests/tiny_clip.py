"""A tiny random CLIP of 32 px, images of three coloured classes to fine-tune it on, and configs: runs of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from PIL import Image

PROJECT = Path(__file__).parents[1]

CLASSES = ("cat", "dog", "fox")
SIZES = {"id/cat": 16, "id/dog": 16, "id/fox": 14, "near": 9, "far": 7, "lone": 1}  # 32 to train on, 14 to test
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PREPROCESSING = {"size": 32, "mean": [0.3, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def make(root: Path) -> Path:
    """Fills `root` with images (data/) and the encoder (clip/)."""
    generator = np.random.default_rng(0)
    for number, (place, count) in enumerate(SIZES.items()):
        folder = root / "data" / place
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = generator.normal(70 + 20 * number, 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((40, 36)).save(folder / f"{index}.png")
    (root / "clip").mkdir()
    described = {"model_cfg": CLIP, "preprocess_cfg": PREPROCESSING}
    (root / "clip" / "open_clip_config.json").write_text(json.dumps(described))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{root}/clip", load_weights=False)
    torch.save(model.state_dict(), root / "clip" / "open_clip_pytorch_model.bin")
    return root


def config(root: Path, name: str, method: dict[str, Any], **keys: Any) -> str:
    """A config file for a run `name`; `keys` replace others at the top."""
    content = {
        "data": {
            "root": f"{root}/data",
            "id": "id",
            "ood": {"near": "near", "far": "far", "lone": "lone"},
            "splits": {"val": 0.0, "test": 0.3},
            "batch_size": 8,
        },
        "backbone": {"model": f"local-dir:{root}/clip"},
        "method": method,
        "evaluation": {"figures": False, "report": False},
        "runs_root": f"{root}/runs",
        "features_root": f"{root}/features",
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | keys))
    return str(path)


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
