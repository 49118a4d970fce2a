"""Finds the copies among the images of a run once their contents are known, before anything is trained, and takes them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark, Part
from clip_ood.distributed import exchange
from clip_ood.experiments.image_numbers import contents_of
from clip_ood.features.stored_set import Features
from clip_ood.leaks.copies import ROLES, Copies, ImageSet
from clip_ood.leaks.duplicates import check_left, dropped
from clip_ood.leaks.exact import exact_copies
from clip_ood.leaks.leaks_file import write_leaks
from clip_ood.leaks.near import near_copies
from clip_ood.runs.run_folder import LEAKS
from clip_ood.terminal.console import Terminal


@dataclass(frozen=True)
class Leaks:
    """The copies in the sets of a run, which are called by the keys of parts, and by set the rows of the images to take out."""

    sets: list[ImageSet]
    copies: list[Copies]
    out: dict[str, np.ndarray]

    def about(self) -> dict[str, Any]:
        """Returns what results.json says: the copies that are left, and how many images were taken out of which set."""
        left = [each.without(self.out) for each in self.copies]
        gone = [
            {"set": each.name, "images": len(self.out[each.name]), "total": len(each)}
            for each in self.sets
            if each.name in self.out
        ]
        return {"shared_images": [asdict(each.count) for each in left if len(each)], "dropped": gone}

    def write(self, folder: Path) -> None:
        """Writes the run's leaks.csv, which names all copies."""
        write_leaks(folder / LEAKS, self.copies, self.sets, self.out)


def find_leaks(
    config: Config, benchmark: Benchmark, features: Mapping[str, Features], device: torch.device, quiet: bool
) -> Leaks:
    """Finds the copies; all processes call this together. Raises: ConfigError if data.drop_duplicates would leave no image of a set."""
    sets = image_sets(benchmark, features)
    copies, out = exact_copies(sets), {}
    if (drop := config.data.drop_duplicates) != "none":
        check_left(sets, out := dropped(sets, copies, drop), drop)
    if config.evaluation.leaks == "near":
        with Terminal(quiet=quiet).status("Looking for near copies"):
            within_train = config.evaluation.cross_fit is not None  # whose images are compared with each other
            copies += near_copies(sets, copies, device, exchange(), within_train)
    return Leaks(sets, copies, out)


def image_sets(benchmark: Benchmark, features: Mapping[str, Features]) -> list[ImageSet]:
    """Returns the readable images of the parts that are learnt from, chosen by or scored, if their contents are known; the bank is a
    part of train."""
    parts = [part for part in benchmark.parts.values() if part.role in ROLES]
    known = [part for part in parts if features[part.images].identities is not None]
    return [_image_set(benchmark, features, part) for part in sorted(known, key=lambda part: ROLES.index(part.role))]


def _image_set(benchmark: Benchmark, features: Mapping[str, Features], part: Part) -> ImageSet:
    images, stored, rows = benchmark.images[part.images], features[part.images], np.asarray(part.rows, int)
    rows = rows[stored.valid.numpy()[rows]]
    contents = contents_of(benchmark, features, part)[rows]
    return ImageSet(part.key, part.role, rows, contents, images, stored.features, images.corruption is not None)


def without(benchmark: Benchmark, out: Mapping[str, np.ndarray]) -> Benchmark:
    """Returns a benchmark without the images at these rows, by part; what is taken out of train is taken out of the bank, too."""
    if not out:
        return benchmark
    gone = {**out, "bank": out.get("train", ())}
    left = {
        key: replace(part, rows=np.asarray(part.rows)[~np.isin(part.rows, gone[key])].tolist()) if key in gone else part
        for key, part in benchmark.parts.items()
    }
    return replace(benchmark, parts=left)
