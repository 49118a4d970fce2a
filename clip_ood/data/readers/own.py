"""Readers that a config names by a word or their class path, checked before any image is encoded."""

from __future__ import annotations

import inspect
import operator
from pathlib import Path

from clip_ood.config.data_schema import ImageSet
from clip_ood.config.reader_names import class_path
from clip_ood.data.readers.reader import Reader, Stamp
from clip_ood.dotted_paths import module_of
from clip_ood.errors import ConfigError, nearest
from clip_ood.features.identity import SIZE
from clip_ood.files.remote.fetched import local


def own_reader(set_name: str, spec: ImageSet, root: Path) -> Reader:
    """Makes the reader of an image set with the set's path below `root` and its options.

    Raises: ConfigError for a class that is not there or is no complete reader, for arguments that it does not take, and for
    names, labels, class names and stamps that do not fit each other.
    """
    where = f"Image set {set_name}: {spec.reader}"
    reader = _make(where, _find(where, class_path(spec.reader)), spec, root)
    _check_names(where, reader)
    if reader.labels is not None:
        _check_labels(where, reader)
    _check_class_names(where, reader)
    _check_stamp(where, reader)
    return reader


def _find(where: str, path: str) -> type[Reader]:
    module, name = module_of(path, where)
    if (cls := getattr(module, name, None)) is None:
        raise ConfigError(f"{where}: {module.__name__} has no class {name!r}.{nearest(name, vars(module))}")
    if not (isinstance(cls, type) and issubclass(cls, Reader)):
        raise ConfigError(f"{where} is no reader: expected a subclass of clip_ood.data.readers.Reader, got {cls!r}")
    if cls.open is Reader.open:
        raise ConfigError(
            f"{where} has no open(self, index), which gives the bytes of an image file or an array (H, W, 3) of uint8"
        )
    return cls


def _make(where: str, cls: type[Reader], spec: ImageSet, root: Path) -> Reader:
    arguments = () if spec.path is None else (local(root / spec.path),)
    try:
        inspect.signature(cls).bind(*arguments, **spec.options)
    except TypeError as error:
        given = ", ".join([*["path"][: len(arguments)], *spec.options]) or "nothing"
        raise ConfigError(
            f"{where} is made with {inspect.signature(cls)}, and the config gives {given}: {error}"
        ) from None
    try:
        return cls(*arguments, **spec.options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be made: {type(error).__name__}: {error}") from error


def _check_names(where: str, reader: Reader) -> None:
    names = getattr(reader, "names", None)
    if names is None or isinstance(names, str):
        raise ConfigError(f"{where} has no names: expected a text for each image, all distinct")
    if wrong := next((name for name in names if not (isinstance(name, str) and name)), None):
        raise ConfigError(f"{where}: names holds {wrong!r}; expected a text for each image")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise ConfigError(f"{where}: names holds {twice!r} twice; expected distinct ones")


def _check_labels(where: str, reader: Reader) -> None:
    labels = list(reader.labels)
    if len(labels) != len(reader.names):
        raise ConfigError(f"{where} has {len(labels):,} labels for {len(reader.names):,} names; expected one an image")
    numbers = []
    for label in labels:
        try:
            numbers.append(operator.index(label))
        except TypeError:
            raise ConfigError(
                f"{where}: labels holds {label!r}; expected class indices from 0, or -1 for no class"
            ) from None
    count = None if reader.class_names is None else len(reader.class_names)
    highest = max(numbers, default=-1) if count is None else count - 1
    if wrong := [number for number in numbers if not -1 <= number <= highest]:
        of = "" if count is None else f", of {count} class names"
        raise ConfigError(
            f"{where}: labels holds {wrong[0]}; expected class indices 0 … {highest}{of}, or -1 for no class"
        )


def _check_class_names(where: str, reader: Reader) -> None:
    names = reader.class_names
    if names is None:
        return
    if reader.labels is None:
        raise ConfigError(f"{where} has class_names and no labels, which say the class of each image")
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: class_names must be texts, one a class; got {names!r}")
    if empty := sorted(set(range(len(names))) - set(map(int, reader.labels))):
        raise ConfigError(
            f"{where}: no image has label {empty[0]}, the class {names[empty[0]]!r}; name the classes that have images"
        )


def _check_stamp(where: str, reader: Reader) -> None:
    if not len(reader.names):
        return
    try:
        stamp = reader.stamp(0)
    except OSError:
        return  # it is reported later, with all other stamps
    fits = isinstance(stamp, Stamp) and isinstance(stamp.value, bytes) and len(stamp.value) == SIZE
    if stamp is not None and not fits:
        raise ConfigError(
            f"{where}.stamp(0) gave {stamp!r}; expected None, or a Stamp of {SIZE} bytes as clip_ood.features.identity.identity_of makes them"
        )
