"""Draws the pictures that benchmarks read."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image


def draw(folder: Path, count: int, suffix: str = "jpg") -> None:
    """Draws smooth pictures of 400 x 300 pixels into a folder: 0000.jpg, …"""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((400, 300)).save(folder / f"{index:04d}.{suffix}")
