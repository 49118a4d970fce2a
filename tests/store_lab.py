"""A tiny CLIP with images, whose runs tell what they asked of it."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import open_clip
import torch
from lightning.pytorch import Trainer
from PIL import Image

from clip_ood.backbones.open_clip_backbone import OpenClipBackbone
from clip_ood.config.loading import load_config
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.extraction import load_features

# What a first run asks of the encoder
ID, OTHER, TEXT = ("encode_image", 11), ("encode_image", 3), ("encode_text", 2)

CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def draw_images(folder, count, seed=0):
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")


def save_encoder(folder, seed):
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {"size": 16}}))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")


class Lab:
    """A tiny CLIP, its images, and what was asked of it."""

    def __init__(self, root, monkeypatch):
        self.root, self.asked = root, []
        for place, count in {"id/cat": 6, "id/dog": 5, "other": 3}.items():
            draw_images(root / "data" / place, count, seed=count)
        save_encoder(root / "clip", seed=0)
        for kind in ("encode_image", "encode_inside", "encode_text"):
            original = getattr(OpenClipBackbone, kind)
            monkeypatch.setattr(OpenClipBackbone, kind, self._watched(kind, original))

    def _watched(self, kind, original):
        def encode(backbone, batch, *more):
            self.asked.append((kind, len(batch)))
            return original(backbone, batch, *more)

        return encode

    def load(self, *changes, **where):
        """Features by set, read whole, with `changes` to the config, and the texts."""
        features, text = self.open(*changes, **where)
        return {name: each.features.take(torch.arange(len(each.valid))) for name, each in features.items()}, text

    def open(self, *changes, store="features", precision="32-true"):
        path = self.root / "tiny.yaml"
        path.write_text(
            f"""
data: {{root: {self.root}/data, id: id, ood: {{other: other}}, batch_size: 64, prompts: ["a {{}}."]}}
backbone: {{model: "local-dir:{self.root}/clip"}}
method: {{zero_shot: {{}}}}
features_root: {self.root}/{store}
"""
        )
        config = load_config(str(path), list(changes))
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = Trainer(accelerator="cpu", devices=1, precision=precision, **off)
        self.asked.clear()
        benchmark = load_benchmark(config)
        features, text = load_features(config, benchmark, trainer, self.root)
        return {benchmark.images[key].name: each for key, each in features.items()}, text


def segments(folder):
    return sorted(folder.glob("*/images/*.safetensors"))


# What may become of images


def touch(lab):
    os.utime(lab.root / "data/other/001.png", (1, 1))


def replace_image(lab):
    draw_images(lab.root / "data/other", 3, seed=99)


def of_the_id_set(lab):
    shutil.copy(lab.root / "data/id/cat/001.png", lab.root / "data/other/001.png")


def swap(lab):
    """Another image under the same name, of the same size and time."""
    path = lab.root / "data/other/001.png"
    state = path.stat()
    Image.new("RGB", (8, 8), "red").save(path, "PNG")
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * (state.st_size - len(content)))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size and path.stat().st_mtime_ns == state.st_mtime_ns
