"""Images of a tiny run among which copies of each kind are planted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import tiny_clip
from PIL import Image, ImageOps

EXACT = {  # (set, path) of each copy, by (copy_set, copy_path)
    ("val", "cat/of_train.png"): ("train", "cat/0.png"),
    ("id_test", "dog/of_train.png"): ("train", "dog/1.png"),
    ("ood/a", "of_test.png"): ("id_test", "fox/2.png"),
    ("ood/b", "of_a.png"): ("ood/a", "0.png"),
    ("ood/b", "twice.png"): ("ood/b", "1.png"),
}
NEAR = {
    ("id_test", "cat/small.png"): ("train", "cat/4.png"),
    ("ood/a", "saved_anew.jpg"): ("train", "fox/3.png"),
    ("ood/a", "small.jpg"): ("val", "dog/1.png"),
    ("ood/b", "mirrored.png"): ("id_test", "cat/1.png"),
}
DATA = {"id": {"train": "train", "val": "val", "test": "test"}, "ood": {"a": "a", "b": "b"}, "batch_size": 8}
FOLDER = {"train": "train", "val": "val", "id_test": "test", "ood/a": "a", "ood/b": "b"}


def make(root: Path) -> Path:
    """An encoder, and images with all of `EXACT` and `NEAR`, and one that is cut out of a training image."""
    tiny_clip.make(root)
    data, generator = root / "data", np.random.default_rng(1)
    sizes = {
        f"{part}/{name}": count for part, count in (("train", 6), ("val", 3), ("test", 4)) for name in tiny_clip.CLASSES
    }
    for place, count in (sizes | {"a": 5, "b": 5}).items():
        (data / place).mkdir(parents=True)
        for index in range(count):
            coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), np.uint8))
            coarse.resize((96, 80), Image.Resampling.BICUBIC).save(data / place / f"{index}.png")
    where = {
        copy: [data / FOLDER[name] / path for name, path in (original, copy)]
        for copy, original in (EXACT | NEAR).items()
    }
    for copy in EXACT:
        shutil.copy(*where[copy])
    for copy, change in {
        ("id_test", "cat/small.png"): lambda image: image.resize((48, 40)),
        ("ood/a", "saved_anew.jpg"): lambda image: image,
        ("ood/a", "small.jpg"): lambda image: image.resize((60, 60)),
        ("ood/b", "mirrored.png"): ImageOps.mirror,
    }.items():
        change(Image.open(where[copy][0])).save(where[copy][1])
    Image.open(data / "train" / "dog" / "5.png").crop((10, 8, 86, 72)).save(data / "b" / "cut_out.png")
    return root


def config(root: Path, name: str, method: dict | None = None, **keys) -> str:
    evaluation = {"resamples": 0, "figures": False, "report": False, "save_detector": False} | keys.pop(
        "evaluation", {}
    )
    data = DATA | {"root": f"{root}/data"} | keys.pop("data", {})
    return tiny_clip.config(root, name, method or {"zero_shot": {}}, data=data, evaluation=evaluation, **keys)
