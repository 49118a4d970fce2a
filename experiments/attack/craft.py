"""The attack itself: images that are missing are made, a batch at a time, on all devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lightning.pytorch import Trainer
from torch import Tensor

from clip_ood.adversarial import Attack, Budget
from clip_ood.adversarial.images import pixels_of
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.fingerprint import digest, fingerprint
from clip_ood.callbacks.image_writer import ImageWriter, Parts
from clip_ood.config.attack_schema import AttackConfig
from clip_ood.config.set_keys import key_of
from clip_ood.data.benchmark import Benchmark
from clip_ood.data.corruptions import Corruption
from clip_ood.datamodules.attacked_images import AttackData
from clip_ood.detectors.detector import Detector
from clip_ood.experiments.attack.pairs import Pairs
from clip_ood.experiments.attack.plan import AFTER, BEFORE, Plan
from clip_ood.experiments.trainer import predict
from clip_ood.lightning_modules.pixel_attack import PixelAttack
from clip_ood.naming import short

PARTS = "parts"  # the folder of what is found of each pair
SHARES = (0.04, 0.1, 0.2, 0.4, 0.7)  # of the steps: where the curve looks


def folder_of(plan: Plan, folder: Path, name: str) -> Path:
    """Where the image set `name` of an attack in `folder` is saved."""
    if plan.attack.images is not None and name in (BEFORE, AFTER):
        return plan.attack.images / name
    return folder / "images" / name


def variants(attack: AttackConfig) -> dict[str, tuple[Attack, int]]:
    """The attacks that are made, by image set, each with its number of pairs: that of the config, and those of the curve
    over λ, of which the config's own λ is no other."""
    budget = None if attack.budget is None else Budget(attack.budget.norm, attack.budget.epsilon)
    main = Attack(attack.steps, attack.lr, attack.smoothness, attack.noise, attack.sign, budget)
    others = [] if attack.curve is None else [each for each in attack.curve.smoothness if each != attack.smoothness]
    return {AFTER: (main, attack.pairs)} | {
        f"smoothness_{each:g}": (
            Attack(attack.steps, attack.lr, each, attack.noise, attack.sign, budget),
            attack.curve.pairs,
        )
        for each in others
    }


def looked_at(attack: AttackConfig) -> list[int]:
    """The steps at which images are saved as well, for the curve."""
    if attack.curve is None:
        return []
    return sorted({round(share * attack.steps) for share in SHARES} - {0, attack.steps})


def batches(pairs: int, size: int) -> list[range]:
    return [range(start, min(start + size, pairs)) for start in range(0, pairs, size)]


def all_batches(attack: AttackConfig) -> list[tuple[str, range]]:
    """Every batch of an attack: its variant, and the positions of its pairs."""
    return [(name, some) for name, (_, count) in variants(attack).items() for some in batches(count, attack.batch_size)]


def image_counts(attack: AttackConfig, made: Iterable[tuple[str, range]] | None = None) -> dict[str, int]:
    """The images that batches of an attack save (None: all batches), by image set."""
    counts = Counter({BEFORE: 0})
    for variant, positions in all_batches(attack) if made is None else made:
        counts[variant] += len(positions)
        if variant != AFTER:
            continue
        counts[BEFORE] += len(positions)
        for step in looked_at(attack):
            counts[f"step_{step:04d}"] += max(0, min(attack.curve.pairs, positions.stop) - positions.start)
        for corruption in attack.defences:
            counts.update({f"{name}_{corruption}": len(positions) for name in (BEFORE, AFTER)})
    return counts


def file_names(pairs: Pairs) -> list[str]:
    """The names of the saved images, by position."""
    return [f"{position:04d}-{short(Path(name).stem)}.png" for position, name in enumerate(pairs.names)]


def craft(
    plan: Plan, folder: Path, trainer: Trainer, benchmark: Benchmark, pairs: Pairs, score: Detector | None
) -> dict[str, Tensor]:
    """Makes the images that are missing; `score`: the detector whose score is raised, if any.

    What was found of each pair (n,): l2, linf, tv of what was saved, and before, after, float (not rounded), what the attack
    raised; and features (n, D), embeddings (n, E) before rounding.
    """
    attack, config = plan.attack, plan.config
    made, images = variants(attack), benchmark.images[key_of("ood", attack.ood)]
    known_by = fingerprint(config.backbone, config.features_root / "hashes.json")
    key = digest([*plan.settled(), known_by, pairs.aims, images.known_by().tolist()])
    parts = Parts(folder / PARTS, key)
    through = [Corruption(name, severity) for name, severity in attack.defences.items()]

    def pending() -> list[tuple[str, range]]:
        return [(name, some) for name, some in all_batches(attack) if not parts.is_whole(name, some)]

    encoder = cache(lambda: create_backbone(config.backbone.model_copy(update={"text": None})))
    data = AttackData(images, pairs.rows, pending, lambda: pixels_of(encoder()), config.data.num_workers)
    module = PixelAttack(
        encoder,
        {name: each for name, (each, _) in made.items()},
        pairs.seeds,
        pairs.targets,
        pairs.of_text,
        score,
        frozenset(looked_at(attack)),
        attack.curve.pairs if attack.curve else 0,
        AFTER,
        needed=lambda: bool(data.parts),
    )
    writer = ImageWriter(parts, file_names(pairs), lambda name: folder_of(plan, folder, name), through, AFTER)
    predict(trainer, module, data, writer)
    trainer.strategy.barrier("attacked")
    return parts.read(AFTER, batches(attack.pairs, attack.batch_size))
