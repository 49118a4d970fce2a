"""Numbers the classes of every ID set alike: by name if sets name them, otherwise by the labels themselves."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from clip_ood.data.class_names import Classes
from clip_ood.data.class_order import is_number
from clip_ood.data.image_list import ImageList
from clip_ood.errors import ConfigError, nearest
from clip_ood.naming import matches

MOST = 1_000_000  # classes: what is learnt of each, up to the highest label, must fit into memory


def trained_on(train: ImageList, classes: Classes | None, partial: bool) -> Classes | None:
    """Returns the classes that the training images have: all of them or, with `partial`, those that are there.

    Raises: ConfigError if there are not as many classes as names, for labels that count from 1 or leave a class without images, unless
    `partial`, and for one beyond `MOST`.
    """
    if train.labels is None:
        return classes
    own = train.class_names
    if own is None and not partial:
        _check_counting(train, None if classes is None else len(classes.keys))
    if own is None and (last := max(train.labels)) >= MOST:
        raise ConfigError(
            f"Image set {train.name}: it has the label {last}, and labels lie below {MOST:,}: number the classes from 0"
        )
    if classes is None:
        return None
    found = len(own) if own else max(train.labels) + 1
    fits = set(own or ()) <= set(classes.keys) and found <= len(classes.keys)
    if found != len(classes.keys) and not (partial and fits):
        counted = "" if own else f", whose labels count 0 … {found - 1}"
        raise ConfigError(
            f"data.id.class_names has {len(classes.names)} names for {found} classes of {train.root}{counted}"
        )
    if not partial:
        return classes
    return classes.subset(sorted({classes.keys.index(key) for key in own} if own else set(train.labels) - {-1}))


def _check_counting(train: ImageList, count: int | None) -> None:
    """Raises ConfigError unless label numbers count 0, 1, … through classes that all have images."""
    there = set(train.labels) - {-1}
    if there == set(range(1, len(there) + 1)) and count in (None, len(there)):
        raise ConfigError(
            f"Image set {train.name}: its labels count from 1 to {len(there)}, and labels count from 0: subtract 1 from each"
        )
    lacking = next((label for label, each in enumerate(sorted(there)) if each != label), None)
    if lacking is not None:
        raise ConfigError(
            f"Image set {train.name}: no image has label {lacking}, and labels count 0 … {max(there)}: number the classes without "
            "gaps, or run on those that are there with --data.allow_partial=true"
        )


def numbered(images: ImageList, known: Classes | None, trained: Classes | None, train: ImageList) -> ImageList:
    """Maps a set's labels to indices of the trained classes; a set may lack a class, but may not bring a new one.

    Classes are matched by name, and labels without names by the numbers of `known`, of which `trained` may be a part. Without
    either, labels are those of `train`.

    Raises: ConfigError for a class or label that the training images do not have.
    """
    if images.labels is None or (train.labels is None and known is None):
        return images
    if known is None:
        return _unnamed(images, train)
    if images.class_names is not None:
        found = dict(enumerate(images.class_names))
    else:
        calls = dict(zip(known.numbers, known.keys, strict=True))
        _check_labels(images, calls)
        found = {label: calls[label] for label in set(images.labels) - {-1}}
    place, match = {key: index for index, key in enumerate(trained.keys)}, matches(list(found.values()), trained.keys)
    if unknown := [key for key in found.values() if key not in match]:
        raise ConfigError(
            f"Image set {images.name}: class {unknown[0]!r} is not among the training classes.{nearest(unknown[0], trained.keys)} "
            f"{len(unknown):,} of {len(found):,} classes are not, and what is measured on them is no covariate shift: rename them on "
            "disk as the training classes are called, or select others (keep_classes)"
        )
    number = {-1: -1} | {label: place[match[key]] for label, key in found.items()}
    return replace(images, labels=tuple(number[label] for label in images.labels), class_names=trained.keys)


def _unnamed(images: ImageList, train: ImageList) -> ImageList:
    """Returns the images of a set with its own labels, beside training images whose labels are numbers without names."""
    if images.class_names is not None:
        if not all(map(is_number, images.class_names)):
            raise ConfigError(
                f"Image set {images.name}: its classes have names ({images.class_names[0]}, …), and those of {train.name} are numbers: "
                "name these in data.id.class_names"
            )
        labels = tuple(int(images.class_names[label]) for label in images.labels)
        images = replace(images, labels=labels, class_names=None)
    _check_labels(images, set(train.labels) - {-1})
    return images


def _check_labels(images: ImageList, known: Collection[int]) -> None:
    wrong = max((label for label in images.labels if label >= 0 and label not in known), default=None)
    if wrong is None:
        return
    there = set(images.labels) - {-1}
    from_one = (
        "; they count from 0: subtract 1 from each" if 0 in known and there == set(range(1, len(known) + 1)) else ""
    )
    first, last = min(known, default=0), max(known, default=0)
    raise ConfigError(
        f"Image set {images.name}: label {wrong} is not among the {len(known)} classes ({first} … {last}){from_one}"
    )
