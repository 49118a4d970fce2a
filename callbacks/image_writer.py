"""Writes attacked images as PNG files, and a part file for each batch, which says that its images are whole."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_ood.adversarial.images import Moved, PairBatch
from clip_ood.callbacks.part_writer import PartWriter
from clip_ood.data.corruptions import Corruption
from clip_ood.files.tensor_files import save_tensors
from clip_ood.files.writing import naming


class Parts:
    """The part files of an attack, one for each batch, with the results of each pair; `key` identifies the attack."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def path(self, variant: str, positions: range) -> Path:
        return self.folder / f"{variant}-{positions.start:06d}.safetensors"

    def is_whole(self, variant: str, positions: range) -> bool:
        """Says whether a batch is done, with these settings."""
        try:
            with safe_open(self.path(variant, positions), "pt") as file:
                return json.loads(file.metadata()["about"]) == self._about(positions)
        except (FileNotFoundError, SafetensorError, LookupError, TypeError, ValueError):  # a damaged part is made again
            return False

    def write(self, variant: str, positions: range, tensors: dict[str, Tensor]) -> None:
        """Writes a part, whole or not at all."""
        save_tensors(tensors, self.path(variant, positions), {"about": json.dumps(self._about(positions))})

    def read(self, variant: str, batches: list[range]) -> dict[str, Tensor]:
        """Returns the tensors of some batches, one after the other."""
        parts = []
        for positions in batches:
            with safe_open(self.path(variant, positions), "pt") as file:
                parts.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _about(self, positions: range) -> dict[str, str | int]:
        return {"key": self.key, "stop": positions.stop}


class ImageWriter(PartWriter):
    """Writes images/<set>/<position>.png for each batch, then its part.

    `names`: file names by position; `folders`: where before, after and other variants go; `through`: corruptions, through which
    before and after are saved as well, under <set>_<corruption>.
    """

    def __init__(self, parts: Parts, names: list[str], folder, through: list[Corruption], main: str) -> None:
        super().__init__()
        self.parts, self.names, self.folder, self.through, self.main = parts, names, folder, through, main

    def write(self, module: LightningModule, found: list[tuple[PairBatch, Moved]]) -> None:
        ((batch, outputs),) = found
        sets = {batch.variant: outputs.after}
        if batch.variant == self.main:
            sets = (
                {"before": outputs.before} | sets | {f"step_{step:04d}": seen for step, seen in outputs.steps.items()}
            )
        for name, pixels in sets.items():
            through = self.through if name in ("before", self.main) else []
            for position, image in zip(batch.positions, pixels, strict=False):
                self._save(name, position, Image.fromarray(image.permute(1, 2, 0).numpy()), through)
        exact = {"features": outputs.exact.features, "embeddings": outputs.exact.embeddings}
        exact = {name: value for name, value in exact.items() if value is not None}
        self.parts.write(batch.variant, batch.positions, outputs.figures | exact)

    def _save(self, name: str, position: int, image: Image.Image, through: list[Corruption]) -> None:
        self._write(name, position, image)
        for corruption in through:
            self._write(f"{name}_{corruption.name}", position, corruption(image, self.names[position]))

    def _write(self, name: str, position: int, image: Image.Image) -> None:
        path = self.folder(name) / self.names[position]
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            image.save(path)
