"""The copies among the images of a run, once their contents are known and before anything is trained: told, written, taken out."""

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
    """The copies in some sets, by their keys, and the rows of those images that are taken out, by set."""

    sets: list[ImageSet]
    copies: list[Copies]
    out: dict[str, np.ndarray]

    def about(self) -> dict[str, Any]:
        """What results.json says: copies that are left, and how many images of which set were taken out."""
        left = [each.without(self.out) for each in self.copies]
        gone = [
            {"set": each.name, "images": len(self.out[each.name]), "total": len(each)}
            for each in self.sets
            if each.name in self.out
        ]
        return {"shared_images": [asdict(each.count) for each in left if len(each)], "dropped": gone}

    def write(self, folder: Path) -> None:
        """Names all copies in the run's leaks.csv."""
        write_leaks(folder / LEAKS, self.copies, self.sets, self.out)


def find_leaks(
    config: Config, benchmark: Benchmark, features: Mapping[str, Features], device: torch.device, quiet: bool
) -> Leaks:
    """All processes look together. Raises: ConfigError where data.drop_duplicates would leave no image of a set."""
    sets = image_sets(benchmark, features)
    copies, out = exact_copies(sets), {}
    if (drop := config.data.drop_duplicates) != "none":
        check_left(sets, out := dropped(sets, copies, drop), drop)
    if config.evaluation.leaks == "near":
        with Terminal(quiet=quiet).status("Looking for near copies"):
            copies += near_copies(sets, copies, device, exchange())
    return Leaks(sets, copies, out)


def image_sets(benchmark: Benchmark, features: Mapping[str, Features]) -> list[ImageSet]:
    """The readable images of the parts that are learnt from, chosen by or scored; the bank is a part of train."""
    parts = sorted(
        (part for part in benchmark.parts.values() if part.role in ROLES), key=lambda part: ROLES.index(part.role)
    )
    return [_image_set(benchmark, features, part) for part in parts]


def _image_set(benchmark: Benchmark, features: Mapping[str, Features], part: Part) -> ImageSet:
    images, stored, rows = benchmark.images[part.images], features[part.images], np.asarray(part.rows, int)
    contents = stored.identities
    if images.corruption is not None:  # made of the ID test images, in their order
        tested = benchmark.parts["id_test"]
        contents = features[tested.images].identities[tested.rows]
    rows = rows[stored.valid.numpy()[rows]]
    corrupted = images.corruption is not None
    return ImageSet(part.key, part.role, rows, contents[rows], images, stored.features, corrupted)


def without(benchmark: Benchmark, out: Mapping[str, np.ndarray]) -> Benchmark:
    """A benchmark without the images at these rows of its parts, by their keys; what leaves train leaves the bank."""
    if not out:
        return benchmark
    gone = {**out, "bank": out.get("train", ())}
    left = {
        key: replace(part, rows=np.asarray(part.rows)[~np.isin(part.rows, gone[key])].tolist()) if key in gone else part
        for key, part in benchmark.parts.items()
    }
    return replace(benchmark, parts=left)
