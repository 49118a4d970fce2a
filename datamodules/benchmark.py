"""The image sets of a config and the parts they play: bank, val, id_test, covariate-shifted ID, OOD."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from configs.checks import check_folders, image_sets
from configs.errors import ConfigError
from configs.schema import Config
from datamodules.image_list import ImageList, balanced, list_images
from datamodules.splits import split


@dataclass(frozen=True)
class Part:
    """Some rows of an image set and what they are for.

    Attributes: role is bank, val, id, csid or ood; rows are positions in the image set `images`.
    """

    name: str
    role: str
    group: str
    images: str
    rows: list[int]


@dataclass(frozen=True)
class Benchmark:
    """Everything a config says of its images, listed and checked; no image is read.

    Attributes: images, the lists that features are extracted from, by name; parts, in the order of evaluation: bank,
    id_test, csid…, ood…, then train and val; class_names, None for ID images without classes.
    """

    images: dict[str, ImageList]
    parts: dict[str, Part]
    class_names: tuple[str, ...] | None

    @property
    def labelled(self) -> bool:
        """Whether the ID training images have class labels."""
        return self.images[self.parts["train"].images].labels is not None

    @property
    def evaluated(self) -> list[Part]:
        """[bank, id_test, csid…, ood…], and before id_test [val, ood_val] where detectors are chosen by them."""
        bank, *tested = (part for part in self.parts.values() if part.role in ("bank", "id", "csid", "ood"))
        chosen_by = [self.parts["val"], self.parts["ood_val"]] if "ood_val" in self.parts else []
        return [bank, *chosen_by, *tested]

    def labels(self, part: Part) -> list[int]:
        """The true class of each row of a part, -1 where it has none."""
        known = self.images[part.images].labels
        return (
            [-1] * len(part.rows)
            if known is None or part.role in ("ood", "ood_val")
            else [known[row] for row in part.rows]
        )


def load_benchmark(config: Config) -> Benchmark:
    """Lists the images of a config.

    Raises: ConfigError for a missing folder, an empty set or class, or class names of the wrong number.
    """
    check_folders(config)
    data = config.data
    images = {
        name: list_images(name, spec, data.root, name not in data.ood or spec.per_class is not None, config.seed)
        for name, spec in image_sets(config).items()
    }
    named = _named_classes(config)
    known = next(iter(images.values())).class_names or named  # as the training folders number them
    class_names = named or known
    images = {name: listed if name in data.ood else _numbered(listed, known) for name, listed in images.items()}
    id_parts = _id_parts(config, images)
    train = id_parts["train"]
    _check_names(images[train.images], class_names)
    bank = train.rows
    if config.evaluation.bank_per_class is not None:
        if images[train.images].labels is None:
            raise ConfigError("evaluation.bank_per_class needs classes, and the ID images are a flat folder")
        listed = images[train.images].subset(train.rows)
        bank = [train.rows[i] for i in balanced(listed, config.evaluation.bank_per_class, config.seed)]
    parts = [Part("bank", "bank", "", train.images, bank), id_parts["id_test"]]
    for role, sets in (("csid", data.csid), ("ood", data.ood)):
        parts += [Part(name, role, spec.group, name, list(range(len(images[name])))) for name, spec in sets.items()]
    parts += [train, id_parts["val"]]
    if data.ood_val is not None:
        parts.append(Part("ood_val", "ood_val", "", "ood_val", list(range(len(images["ood_val"])))))
        if not id_parts["val"].rows:
            raise ConfigError("data.ood_val stands against ID val, which has no images: raise data.splits.val")
    return Benchmark(images, {part.name: part for part in parts}, class_names)


def _id_parts(config: Config, images: dict[str, ImageList]) -> dict[str, Part]:
    """train, val and id_test: of one set divided by the shares, or as published with val held out of train."""
    shares = config.data.splits
    if config.data.id.images is not None:
        rows = split(images["id"], {"id_test": shares.test, "val": shares.val}, "train", config.seed)
        source = dict.fromkeys(rows, "id")
    else:
        source = {"train": "id.train", "val": "id.train", "id_test": "id.test"}
        rows = {"id_test": list(range(len(images["id.test"])))}
        if "id.val" in images:
            source["val"] = "id.val"
            rows |= {"train": list(range(len(images["id.train"]))), "val": list(range(len(images["id.val"])))}
        else:
            rows |= split(images["id.train"], {"val": shares.val}, "train", config.seed)
    for name in ("train", "id_test"):
        if not rows[name]:
            raise ConfigError(
                f"The ID images ({len(images[source[name]])}) leave none for {name}: add images or change data.splits"
            )
    role = {"train": "train", "val": "val", "id_test": "id"}
    return {name: Part(name, role[name], "", source[name], rows[name]) for name in role}


def imagenet_names() -> tuple[str, ...]:
    """open_clip's 1000 ImageNet names, in the order of the wnids, with the two that stand there twice told apart."""
    from open_clip import IMAGENET_CLASSNAMES

    names = list(IMAGENET_CLASSNAMES)
    names[744], names[836] = "projectile", "sunglass"  # n04008634 and n04355933: WordNet's own first words
    return tuple(names)


def _named_classes(config: Config) -> tuple[str, ...] | None:
    names = config.data.id.class_names
    if names == "imagenet":
        return imagenet_names()
    if isinstance(names, Path):
        path = config.data.root / names
        if not path.is_file():
            raise ConfigError(f"data.id.class_names: there is no file {path}")
        return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    return None if names is None else tuple(names)


def _numbered(images: ImageList, known: tuple[str, ...] | None) -> ImageList:
    """Labels that count through `known`, the training classes: another set may lack a class, never bring a new one."""
    own = images.class_names
    if own is not None and own != known:
        if unknown := [name for name in own if name not in (known or ())]:
            raise ConfigError(f"Image set {images.name}: class {unknown[0]!r} is not among the training classes")
        labels = tuple(known.index(own[label]) for label in images.labels)
        return replace(images, labels=labels, class_names=known)
    if known is not None and images.labels is not None and max(images.labels) >= len(known):
        raise ConfigError(
            f"Image set {images.name}: label {max(images.labels)} is not among the {len(known)} classes (0 …)"
        )
    return images


def _check_names(train: ImageList, class_names: tuple[str, ...] | None) -> None:
    if class_names is None:
        return
    if twice := sorted({name for name in class_names if class_names.count(name) > 1}):
        raise ConfigError(
            f"Class names must be distinct; {twice[0]!r} stands for {class_names.count(twice[0])} classes"
        )
    if train.labels is None:
        return
    found = len(train.class_names) if train.class_names else max(train.labels) + 1
    if found != len(class_names):
        raise ConfigError(f"data.id.class_names has {len(class_names)} names for {found} classes of {train.root}")
