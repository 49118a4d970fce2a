"""The attack's loop against bare forward and backward passes, from images to PNGs: python -m bench.attack"""

from __future__ import annotations

import ctypes
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch.nn.functional import cosine_similarity

from callbacks.image_writer import ImageWriter, Parts
from clip_ood.adversarial import Attack, perturb
from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.create import create_backbone
from configs.schema import BackboneConfig, ImageSet
from datamodules.attacked_images import AttackData, cut_out, pixels_of
from datamodules.image_list import ImageList, list_images
from lightning_modules.pixel_attack import PixelAttack

BATCH, IMAGES, STEPS, PAIRS = 8, 16, 60, 3
LOOP_STEPS, LOOP_PAIRS = 20, 7
SPEC = BackboneConfig(library="timm", model="tf_efficientnet_lite0")  # random weights cost the same


def ours(images: ImageList, backbone: Backbone, targets: torch.Tensor, steps: int = STEPS) -> None:
    with tempfile.TemporaryDirectory() as folder:
        batches = [("after", range(start, start + BATCH)) for start in range(0, IMAGES, BATCH)]
        writer = ImageWriter(
            Parts(Path(folder), ""), list(images.names), lambda name: Path(folder, "images", name), [], "after"
        )
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[writer],
            enable_model_summary=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            inference_mode=False,
            use_distributed_sampler=False,
        )
        module = PixelAttack(lambda: backbone, {"after": Attack(steps=steps)}, list(range(IMAGES)), targets)
        trainer.predict(module, AttackData(images, range(IMAGES), lambda: batches, 0), return_predictions=False)


def bare(images: ImageList, backbone: Backbone, targets: torch.Tensor, steps: int = STEPS) -> None:
    pixels = pixels_of(backbone)
    for start in range(0, IMAGES, BATCH):
        read = torch.stack([pixels(images.read(row)) for row in range(start, start + BATCH)])
        read = read.contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(steps):
            features = backbone.encode_image(cut_out(read, backbone))
            (-cosine_similarity(features, targets[start : start + BATCH])).sum().backward()


def seconds(function: Callable, *arguments) -> float:
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


def loop(backbone: Backbone, pixels: torch.Tensor, targets: torch.Tensor) -> None:
    """The attack's loop by itself, without reading, scoring and saving."""
    perturb(
        lambda each: -cosine_similarity(backbone.encode_image(cut_out(each, backbone)), targets),
        pixels,
        Attack(steps=LOOP_STEPS),
        list(range(BATCH)),
    )


def bare_loop(backbone: Backbone, pixels: torch.Tensor, targets: torch.Tensor) -> None:
    pixels = pixels.clone().requires_grad_()
    for _ in range(LOOP_STEPS):
        features = backbone.encode_image(cut_out(pixels, backbone))
        (-cosine_similarity(features, targets)).sum().backward()


def keep_memory() -> None:
    """Has glibc keep freed memory: without, a third of a pass is page faults, for either side as it happens."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def main() -> None:
    keep_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    backbone = create_backbone(SPEC).to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        generator = torch.Generator().manual_seed(0)
        for index in range(IMAGES):
            pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).resize((400, 300)).save(Path(folder, f"{index:03d}.png"))
        images = list_images("images", ImageSet(folder=Path(folder)), Path(), labelled=False, seed=0)
        targets = torch.randn(IMAGES, 1280, generator=generator)
        bare(images, backbone, targets, steps=1)  # warm up
        ours(images, backbone, targets, steps=1)
        ratios = [
            seconds(ours, images, backbone, targets) / seconds(bare, images, backbone, targets) for _ in range(PAIRS)
        ]
        read = torch.stack([pixels_of(backbone)(images.read(row)) for row in range(BATCH)])
        given = backbone, read.contiguous(memory_format=torch.channels_last), targets[:BATCH]
        loops = [seconds(loop, *given) / seconds(bare_loop, *given) for _ in range(LOOP_PAIRS)]
    print(
        f"attack's loop, time over bare forward and backward passes, EfficientNet-Lite0  "
        f"{median(loops):.2f} ({min(loops):.2f}–{max(loops):.2f})  <= 1.05"
    )
    print(
        f"attack with reading, scoring and PNGs, {STEPS} steps, over the same  "
        f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
