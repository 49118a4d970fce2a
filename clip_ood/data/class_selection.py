"""Gives label numbers their classes' names, and keeps or drops the images of some classes, whatever reader they come from."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from clip_ood.config.class_lists import classes_of
from clip_ood.config.data_schema import ImageSet
from clip_ood.data.class_order import in_order
from clip_ood.data.comparability import of_classes
from clip_ood.data.image_list import ImageList
from clip_ood.errors import ConfigError
from clip_ood.naming import matches
from clip_ood.process.ranks import say_once


def named(images: ImageList, spec: ImageSet, root: Path) -> ImageList:
    """Returns images whose labels are numbers with the names that `label_names` gives them.

    Raises: ConfigError for a set without numbers, and for a number without a name.
    """
    names = classes_of(spec.label_names, root, f"{images.name}: label_names")
    if images.labels is None or images.class_names is not None:
        what = "it has no labels" if images.labels is None else f"its classes have names ({images.class_names[0]}, …)"
        raise ConfigError(f"Image set {images.name}: label_names names label numbers, and {what}. Leave the key out")
    if (last := max(images.labels)) >= len(names):
        raise ConfigError(
            f"Image set {images.name}: label_names names {len(names)} classes (0 … {len(names) - 1}), and there is a label {last}"
        )
    order = in_order({names[label] for label in images.labels if label >= 0})
    place = {name: index for index, name in enumerate(order)}
    labels = tuple(place[names[label]] if label >= 0 else -1 for label in images.labels)
    return replace(images, labels=labels, class_names=tuple(order))


def selected(images: ImageList, spec: ImageSet, root: Path, partial: bool) -> ImageList:
    """Returns the images of the classes of `keep_classes`, or those of all classes but `drop_classes`; labels count through these.

    Raises: ConfigError for a set without classes, for listed classes that are not there, unless `partial`, and if none is left.
    """
    key, value = next(
        (key, getattr(spec, key)) for key in ("keep_classes", "drop_classes") if getattr(spec, key) is not None
    )
    wanted = classes_of(value, root, f"{images.name}: {key}")
    if images.labels is None:
        raise ConfigError(f"Image set {images.name}: {key} needs classes, and {images.root} has none")
    numbers = sorted(set(images.labels) - {-1})
    calls = {number: images.class_names[number] if images.class_names else str(number) for number in numbers}
    found = matches(wanted, list(calls.values()))
    if missing := [name for name in wanted if name not in found]:
        _tell_missing(
            images, key, missing, len(wanted), [name for name in calls.values() if name not in found.values()], partial
        )
    listed = {number for number, name in calls.items() if name in found.values()}
    kept = [number for number in numbers if (number in listed) == (key == "keep_classes")]
    if not kept:
        raise ConfigError(f"Image set {images.name}: {key} leaves no class of the {len(numbers)} of {images.root}")
    part = images.subset([row for row, label in enumerate(images.labels) if label in set(kept)])
    if images.class_names is None:
        return part
    place = {number: index for index, number in enumerate(kept)}
    labels = tuple(place[label] for label in part.labels)
    return replace(part, labels=labels, class_names=tuple(calls[number] for number in kept))


def _tell_missing(
    images: ImageList, key: str, missing: list[str], count: int, others: list[str], partial: bool
) -> None:
    """Raises ConfigError for listed classes that are not there, or says so if a part of the set is enough.

    A class that was to be dropped and is there under another name would be taken for one of the rest: that is an error in any case.
    """
    alike = [match for name in missing for match in get_close_matches(name, others, n=1, cutoff=0.8)]
    told = f"Image set {images.name}: of {key}, {of_classes(missing, count, list(dict.fromkeys(alike)))}"
    if alike and key == "drop_classes":
        raise ConfigError(f"{told}. Rename them in {images.root}, or call them in {key} as they are called there")
    if not partial:
        raise ConfigError(
            f"{told}. Complete or rename them in {images.root}, or run on what is there with --data.allow_partial=true"
        )
    say_once(f"{told} (data.allow_partial)")
