"""What labels stand for: one numbering of the classes for every ID set, and the names that prompts are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from clip_ood.text_files import read_lines
from clip_ood.wordnet import find_synsets, lemmas
from configs.errors import ConfigError
from configs.schema import Config
from datamodules.image_list import ImageList


@dataclass(frozen=True)
class Classes:
    """K classes in label order: `keys`, what folders and label files call them, and `names`, all distinct, for prompts."""

    keys: tuple[str, ...]
    names: tuple[str, ...]


def imagenet_names() -> tuple[str, ...]:
    """open_clip's 1000 ImageNet names, in the order of the wnids, with the two that stand there twice told apart."""
    from open_clip import IMAGENET_CLASSNAMES

    names = list(IMAGENET_CLASSNAMES)
    names[744], names[836] = "projectile", "sunglass"  # n04008634 and n04355933: WordNet's own first words
    return tuple(names)


def imagenet_wnids() -> tuple[str, ...]:
    """The wnids of ImageNet-1k's classes, in label order, which is alphabetical."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def find_classes(config: Config, train: ImageList) -> Classes | None:
    """All classes that labels may count through, as data.id.class_names and the training folders tell; None without any.

    Raises: ConfigError for names of the wrong number, not distinct, or lacking for a class folder.
    """
    given, own = config.data.id.class_names, train.class_names
    if given is None:
        classes = None if own is None else Classes(own, own)
    elif given == "imagenet":
        classes = Classes(imagenet_wnids(), imagenet_names())
        if other := sorted(set(own or ()) - set(classes.keys)):
            raise ConfigError(
                f"data.id.class_names: imagenet names the classes of wnids (n01440764, …), and {train.root} holds "
                f"{other[0]!r}. Leave class_names out to take the folders' names"
            )
    elif isinstance(given, Path):
        classes = _from_file(config.data.root / given, train)
    else:
        classes = Classes(own if own and len(own) == len(given) else tuple(given), tuple(given))
    if classes is not None and (twice := sorted({name for name in classes.names if classes.names.count(name) > 1})):
        raise ConfigError(
            f"Class names must be distinct; {twice[0]!r} stands for {classes.names.count(twice[0])} classes"
        )
    return classes


def _from_file(path: Path, train: ImageList) -> Classes:
    if not path.is_file():
        raise ConfigError(f"data.id.class_names: there is no file {path}")
    lines = [line.rstrip() for line in read_lines(path) if line.strip()]
    own = train.class_names
    if own is None or not all("\t" in line for line in lines):
        names = tuple(line.strip() for line in lines)
        return Classes(own if own and len(own) == len(names) else names, names)
    named = {key: names.split(",")[0].strip() for key, names in (line.split("\t", 1) for line in lines)}
    if unnamed := [key for key in own if key not in named]:
        raise ConfigError(f"data.id.class_names: {path} has no line for the class folder {unnamed[0]!r}")
    return Classes(own, tuple(named[key] for key in own))


def trained_on(train: ImageList, classes: Classes | None, partial: bool) -> Classes | None:
    """The classes that the training images have: all, or with `partial` those that are there.

    Raises: ConfigError for another number of classes than there are names, unless `partial`.
    """
    if classes is None or train.labels is None:
        return classes
    own = train.class_names
    found = len(own) if own else max(train.labels) + 1
    fits = set(own or ()) <= set(classes.keys) and found <= len(classes.keys)
    if found != len(classes.keys) and not (partial and fits):
        raise ConfigError(f"data.id.class_names has {len(classes.names)} names for {found} classes of {train.root}")
    if not partial:
        return classes
    kept = sorted({classes.keys.index(key) for key in own} if own else set(train.labels) - {-1})
    return Classes(tuple(classes.keys[i] for i in kept), tuple(classes.names[i] for i in kept))


def called(config: Config, classes: Classes | None) -> tuple[tuple[str, ...], ...] | None:
    """What prompts call each class, by data.lemmas; says which classes WordNet does not know.

    Raises: ConfigError without WordNet.
    """
    if classes is None:
        return None
    given = tuple((name,) for name in classes.names)
    if config.data.lemmas == "given":
        return given
    try:
        found = lemmas(find_synsets(), classes.keys, classes.names)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"data.lemmas: {error}") from None
    if unknown := [name for name, each in zip(classes.names, found, strict=True) if each is None]:
        from lightning.pytorch.utilities import rank_zero_only

        rank_zero_only(print)(f"WordNet does not know {', '.join(unknown)}: prompts call them so (data.lemmas)")
    found = [each or name for each, name in zip(found, given, strict=True)]
    return tuple(each[:1] if config.data.lemmas == "first" else each for each in found)


def numbered(images: ImageList, known: Classes | None, trained: Classes | None) -> ImageList:
    """Labels that count through `trained`: another set may lack a class, never bring a new one.

    Labels without class names of their own count through `known`, of which `trained` may be a part.
    """
    if known is None or images.labels is None:
        return images
    own = images.class_names or known.keys
    if max(images.labels) >= len(own):
        raise ConfigError(
            f"Image set {images.name}: label {max(images.labels)} is not among the {len(own)} classes (0 …)"
        )
    if own == trained.keys:
        return replace(images, class_names=own)
    number = {key: index for index, key in enumerate(trained.keys)} | {None: -1}
    there = [None if label < 0 else own[label] for label in images.labels]
    if unknown := [key for key in (images.class_names or there) if key not in number]:
        raise ConfigError(f"Image set {images.name}: class {unknown[0]!r} is not among the training classes")
    return replace(images, labels=tuple(number[key] for key in there), class_names=trained.keys)
