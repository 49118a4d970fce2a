"""The attack's loop against bare forward and backward passes, from images to PNGs: python -m bench.attack"""

from __future__ import annotations

import ctypes
import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import cosine_similarity

from bench import chosen, seconds, spread
from bench.pictures import draw
from bench.trainer import quiet_trainer
from clip_ood.adversarial import Attack, perturb
from clip_ood.adversarial.images import cut_out, pixels_of
from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.create import create_backbone
from clip_ood.callbacks.image_writer import ImageWriter, Parts
from clip_ood.config.schema import BackboneConfig, ImageSet
from clip_ood.data.image_list import ImageList
from clip_ood.data.listing import list_images
from clip_ood.datamodules.attacked_images import AttackData
from clip_ood.lightning_modules.pixel_attack import PixelAttack


class Sizes(NamedTuple):
    batch: int = 8
    images: int = 16
    steps: int = 60
    pairs: int = 3
    loop_steps: int = 20
    loop_pairs: int = 7


TINY = Sizes(batch=2, images=4, steps=2, pairs=1, loop_steps=2, loop_pairs=1)
SPEC = BackboneConfig(library="timm", model="tf_efficientnet_lite0")  # random weights cost the same


def ours(images: ImageList, backbone: Backbone, targets: torch.Tensor, batch: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        batches = [("after", range(start, start + batch)) for start in range(0, len(images), batch)]
        writer = ImageWriter(
            Parts(Path(folder), ""), list(images.names), lambda name: Path(folder, "images", name), [], "after"
        )
        trainer = quiet_trainer(writer, inference_mode=False)
        module = PixelAttack(lambda: backbone, {"after": Attack(steps=steps)}, list(range(len(images))), targets)
        data = AttackData(images, range(len(images)), lambda: batches, lambda: pixels_of(backbone), 0)
        trainer.predict(module, data, return_predictions=False)


def bare(images: ImageList, backbone: Backbone, targets: torch.Tensor, batch: int, steps: int) -> None:
    pixels = pixels_of(backbone)
    for start in range(0, len(images), batch):
        read = torch.stack([pixels(images.read(row)) for row in range(start, start + batch)])
        read = read.contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(steps):
            features = backbone.encode_image(cut_out(read, backbone))
            (-cosine_similarity(features, targets[start : start + batch])).sum().backward()


def loop(backbone: Backbone, pixels: torch.Tensor, targets: torch.Tensor, steps: int) -> None:
    """Runs the attack's loop by itself, without reading, scoring and saving."""
    perturb(
        lambda each: -cosine_similarity(backbone.encode_image(cut_out(each, backbone)), targets),
        pixels,
        Attack(steps=steps),
        list(range(len(pixels))),
    )


def bare_loop(backbone: Backbone, pixels: torch.Tensor, targets: torch.Tensor, steps: int) -> None:
    pixels = pixels.clone().requires_grad_()
    for _ in range(steps):
        features = backbone.encode_image(cut_out(pixels, backbone))
        (-cosine_similarity(features, targets)).sum().backward()


def keep_memory() -> None:
    """Has glibc keep freed memory: without, a third of a pass is page faults, for either side as it happens."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def main(sizes: Sizes) -> None:
    keep_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    backbone = create_backbone(SPEC).to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), sizes.images, "png")
        images = list_images("images", ImageSet(folder=Path(folder)), Path(), labelled=False, seed=0)
        targets = torch.randn(sizes.images, 1280, generator=torch.Generator().manual_seed(0))
        given = images, backbone, targets, sizes.batch
        bare(*given, steps=1)  # warm up
        ours(*given, steps=1)
        ratios = [seconds(ours, *given, sizes.steps) / seconds(bare, *given, sizes.steps) for _ in range(sizes.pairs)]
        read = torch.stack([pixels_of(backbone)(images.read(row)) for row in range(sizes.batch)])
        given = backbone, read.contiguous(memory_format=torch.channels_last), targets[: sizes.batch], sizes.loop_steps
        loops = [seconds(loop, *given) / seconds(bare_loop, *given) for _ in range(sizes.loop_pairs)]
    print(f"attack's loop, time over bare forward and backward passes, EfficientNet-Lite0  {spread(loops)}  <= 1.05")
    print(f"attack with reading, scoring and PNGs, {sizes.steps} steps, over the same  {spread(ratios)}")


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
