"""The images that an attack makes, looked at before it begins: its batches, their steps, and the bytes that they come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from clip_ood.adversarial.images import pixels_of
from clip_ood.backbones.library import library
from clip_ood.callbacks.image_writer import Parts
from clip_ood.config.attack_schema import AttackConfig
from clip_ood.data.corruptions import Corruption
from clip_ood.experiments.attack.craft import PARTS, all_batches, folder_of, image_counts
from clip_ood.experiments.attack.plan import AFTER, BEFORE, Plan
from clip_ood.experiments.forecast.space import FLOAT, Writing

FIGURES = 6  # that are kept of each pair
FILE = 1000  # bytes of a part beside its numbers


@dataclass(frozen=True)
class Making:
    """The batches of an attack, those of them that are still to be made, and the processes that they are dealt to."""

    attack: AttackConfig
    pending: list[tuple[str, range]]
    processes: int

    @property
    def largest(self) -> list[tuple[str, range]]:
        """The batches of the process that makes the most images."""
        dealt = (self.pending[rank :: self.processes] for rank in range(self.processes))
        return max(dealt, key=lambda batches: sum(len(positions) for _, positions in batches))


def making_of(plan: Plan, folder: Path, processes: int, begun: bool) -> Making:
    """What is left to make of an attack in `folder`, where it has `begun` or begins anew."""
    parts = Parts(folder / PARTS, key="")
    pending = [each for each in all_batches(plan.attack) if not (begun and parts.path(*each).is_file())]
    return Making(plan.attack, pending, processes)


def writings_of(plan: Plan, folder: Path, making: Making, width: int | None) -> Iterator[Writing]:
    """What the attack writes beside its runs, at most; `width`: the numbers that an encoder gives of an image (None: not known).

    Raises: UserError for an encoder whose images cannot be attacked.
    """
    sizes = None if width is None else image_sizes(plan)
    for name, count in image_counts(plan.attack, making.pending).items():
        size = sizes and count * sizes.get(name, sizes[AFTER])
        yield Writing(folder_of(plan, folder, name).parent, "attacked images", size)
    pairs = sum(len(positions) for _, positions in making.pending)
    kept = None if width is None else pairs * FLOAT * (FIGURES + width) + FILE * len(making.pending)
    yield Writing(folder / PARTS, "what is found of each pair", kept)


def image_sizes(plan: Plan) -> dict[str, int]:
    """Bytes of a saved image, at most: of the set after the attack, as of all that went through no defence, and of those that did.

    Raises: UserError as `pixels_of`.
    """
    spec = plan.config.backbone
    with torch.device("meta"):
        backbone = library(spec.library).image_side(spec)
    saved = to_pil_image(pixels_of(backbone)(Image.new("RGB", (256, 256))))
    sizes = {AFTER: _png(saved)}
    for corruption, severity in plan.attack.defences.items():
        through = _png(Corruption(corruption, severity)(saved, ""))  # which may be of another size
        sizes |= {f"{name}_{corruption}": through for name in (BEFORE, AFTER)}
    return sizes


def _png(image: Image.Image) -> int:
    """Bytes of the PNG of an image of this size whose pixels cannot be compressed."""
    rows = image.height * (3 * image.width + 1)  # a byte before each row says how it is filtered
    return rows + rows // 1000 + 100
