"""Which OOD images are attacked, and where each is moved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_ood.config.attack_schema import AttackConfig
from clip_ood.config.schema import Config
from clip_ood.config.set_keys import key_of
from clip_ood.data.benchmark import Benchmark
from clip_ood.data.image_list import lot
from clip_ood.detectors.bank import Bank
from clip_ood.errors import ConfigError
from clip_ood.features.store import TextEmbeddings
from clip_ood.features.stored_set import Features
from clip_ood.outputs import Outputs
from clip_ood.texts.prompts import prototypes


@dataclass(frozen=True)
class Pairs:
    """n OOD images in the order of their lots, each with a seed and a target.

    Attributes: rows and names in the OOD set; targets (n, D) features g or, `of_text`, (n, E) text embeddings; None where a
    score is raised instead. aims: ID training images or classes, by name; aim_rows, the images' rows in the ID set; others,
    how many readable ID training images are no target.
    """

    rows: list[int]
    names: list[str]
    seeds: list[int]
    targets: Tensor | None = None
    of_text: bool = False
    aims: list[str] | None = None
    aim_rows: list[int] | None = None
    others: int = 0

    def __len__(self) -> int:
        return len(self.rows)


def check_pairs(attack: AttackConfig, benchmark: Benchmark) -> None:
    """Raises ConfigError, before any image is read, for an OOD set smaller than asked, for texts where the ID set has no classes, and where
    there are no ID test images to compare with."""
    if attack.score is None and attack.target == "text" and benchmark.class_names is None:
        raise ConfigError("target: text needs class names: name the classes (data.id.class_names), or take train")
    if not benchmark.parts["id_test"].rows:
        raise ConfigError(
            "An attack compares what it makes with ID test images, and this experiment has none: hold some out with "
            "--data.splits='{val: 0, test: 0.3}', or name data.id.test"
        )
    _enough(attack, len(benchmark.images[key_of("ood", attack.ood)]), "images")


def _enough(attack: AttackConfig, found: int, what: str) -> None:
    if attack.pairs > found:
        raise ConfigError(
            f"pairs: {attack.pairs} images are to be attacked, and the OOD set {attack.ood} has {found} {what}"
        )


def draw_pairs(
    config: Config,
    attack: AttackConfig,
    benchmark: Benchmark,
    features: dict[str, Features],
    text: TextEmbeddings | None,
) -> Pairs:
    """The draw of config.seed: the OOD images of the lowest lots, targets in the order of a random permutation (each ID
    training image once before any is taken twice).

    Raises: ConfigError for fewer readable images than asked.
    """
    key = key_of("ood", attack.ood)
    images, stored = benchmark.images[key], features[key]
    readable = stored.valid.nonzero().squeeze(1).tolist()
    _enough(attack, len(readable), "readable images")
    rows = sorted(readable, key=lambda row: lot(config.seed, images.names[row]))[: attack.pairs]
    names = [images.names[row] for row in rows]
    drawn = Pairs(rows, names, [int.from_bytes(lot(config.seed, name), "big") >> 1 for name in names])
    if attack.score is not None:
        return drawn
    if attack.target == "text":
        return _to_classes(config, drawn, benchmark, stored, text)
    return _to_images(config, attack, drawn, benchmark, features)


def _to_images(
    config: Config, attack: AttackConfig, drawn: Pairs, benchmark: Benchmark, features: dict[str, Features]
) -> Pairs:
    part = benchmark.parts["train"]
    bank, rows = features[part.images], torch.tensor(part.rows)
    rows = rows[bank.valid[rows]]
    if attack.target == "nearest":
        known = Bank()
        for some in rows.split(8192):
            known.update(Outputs(features=bank.features.take(some), indices=some))
        own = features[key_of("ood", attack.ood)].features.take(torch.tensor(drawn.rows))
        aims = known.nearest(Outputs(features=own), 1)[1].squeeze(1)
    else:
        order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))]
        aims = order.repeat(-(-len(drawn) // len(order)))[: len(drawn)]
    names = benchmark.images[part.images].names
    targets = bank.features.take(aims).float()
    aims = aims.tolist()
    others = len(rows) - len(set(aims))
    return Pairs(drawn.rows, drawn.names, drawn.seeds, targets, False, [names[aim] for aim in aims], aims, others)


def _to_classes(config: Config, drawn: Pairs, benchmark: Benchmark, stored: Features, text: TextEmbeddings) -> Pairs:
    classes = prototypes(text.embeddings, len(config.data.prompts), [len(names) for names in benchmark.called])
    nearest = (stored.embeddings.take(torch.tensor(drawn.rows)).float() @ classes.T).argmax(dim=1)
    names = [benchmark.class_names[label] for label in nearest.tolist()]
    return Pairs(drawn.rows, drawn.names, drawn.seeds, classes[nearest], True, names)
