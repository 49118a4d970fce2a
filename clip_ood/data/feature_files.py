"""Reads files of features that are given, with their labels: .npy, .npz, .safetensors and .parquet."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_ood.config.source_schema import FeatureFile
from clip_ood.data.parquet_files import classes_of
from clip_ood.data.parquet_table import WrongTable
from clip_ood.data.readers.vectors import DTYPE, Vectors
from clip_ood.errors import ConfigError, nearest
from clip_ood.files.regular_file import check_regular
from clip_ood.files.remote.address import Address
from clip_ood.files.remote.fetched import local

DTYPES = {  # as safetensors calls them
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
}
SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet")
FEATURES, LABELS = ("features", "embeddings", "embedding"), ("labels", "label")
OBJECTS = "object"  # the name of numpy's dtype
NOT_UNPICKLED = "Python objects, which are not unpickled: save numbers or texts, as np.array(values.tolist())"
SMALLEST = 1e-12  # the least that the largest number of a row may be, unless it is 0: cosines take no shorter vector
BLOCK = 1 << 16  # rows that are looked at together
FAULTS = (OSError, EOFError, ValueError, KeyError, MemoryError, SafetensorError, pa.ArrowException, zipfile.BadZipFile)


def read_features(set_name: str, source: FeatureFile, root: Path | Address) -> Vectors:
    """Reads features (N, D) and their labels; they are called "file/row".

    Raises: ConfigError for a file of another kind, arrays of other shapes or types, NaN or infinite numbers, and labels of another
    number.
    """
    path = root / source.file
    where = f"Image set {set_name}: {path}"
    try:
        values, labels = _read(local(path), source, root)
        _check(values)
        labels, class_names = (None, None) if labels is None else _classes(labels, len(values))
    except WrongTable as error:
        raise ConfigError(f"{where}: {error}") from None
    except FAULTS as error:
        told = getattr(error, "strerror", None) or " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"{where} cannot be read: {told}") from error
    names = tuple(f"{path.name}/{row:06d}" for row in range(len(values)))
    return Vectors(values, names, labels, class_names)


def _read(path: Path, source: FeatureFile, root: Path | Address) -> tuple[np.ndarray, Any]:
    check_regular(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if source.array is not None:
            raise WrongTable(f"a .npy file holds one array, and array names {source.array!r}: leave it out")
        return _array(path), None if source.labels is None else _labels_beside(local(root / source.labels))
    if suffix == ".npz":
        with zipfile.ZipFile(path) as members, np.load(path, allow_pickle=False) as file:
            heads, held = {}, set(members.namelist())
            for name in file.files:
                if f"{name}.npy" in held:  # notes may lie beside arrays
                    with members.open(f"{name}.npy") as array:
                        heads[name] = _header(array)
            return _named(heads, file.__getitem__, source)
    if suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            names = file.keys()
            heads = {
                name: (tuple(part.get_shape()), DTYPES.get(part.get_dtype(), part.get_dtype()))
                for name in names
                if (part := file.get_slice(name))
            }
            return _named(heads, lambda name: _of_tensor(file.get_tensor(name)), source)
    if suffix == ".parquet":
        return _columns(path, source)
    raise WrongTable(f"features are read from {', '.join(SUFFIXES)}, and it is called {path.name}")


def _labels_beside(path: Path) -> np.ndarray:
    if path.suffix.lower() != ".npy":
        raise WrongTable(f"the labels of a .npy file lie in another one, and labels names {path}: name a .npy file")
    if not path.is_file():
        raise WrongTable(f"there is no file of labels {path}")
    try:
        return _array(path)
    except (EOFError, ValueError, OSError) as error:
        raise WrongTable(f"its file of labels {path} cannot be read: {error}") from error


def _array(path: Path) -> np.ndarray:
    """Returns the array of a .npy file, of which no row is read yet."""
    if zipfile.is_zipfile(path):
        raise WrongTable("it is called .npy, and is a .npz file of several arrays: call it so")
    with path.open("rb") as file:
        if _header(file)[1] == OBJECTS:
            raise WrongTable(f"its array holds {NOT_UNPICKLED}")
    return np.load(path, mmap_mode="c", allow_pickle=False)  # torch takes no array that it may not change


def _named(
    heads: Mapping[str, tuple[tuple[int, ...], str]], read: Callable[[str], np.ndarray], source: FeatureFile
) -> tuple[np.ndarray, Any]:
    """Reads features and labels out of arrays, of which shape and type are known; no other array is read."""
    floats = [name for name, (shape, kind) in heads.items() if len(shape) == 2 and "float" in kind]
    shown = ", ".join(f"{name} {shape} {kind}" for name, (shape, kind) in heads.items())
    values, labels = _choice(source, list(heads), floats, shown)
    for name in (values, labels):
        if name is not None and heads[name][1] == OBJECTS:
            raise WrongTable(f"its array {name} holds {NOT_UNPICKLED}")
    return read(values), None if labels is None else read(labels)


def _header(array: IO[bytes]) -> tuple[tuple[int, ...], str]:
    version = np.lib.format.read_magic(array)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(array)
    return shape, kind.name  # whatever the order of bytes


def _of_tensor(tensor: Tensor) -> np.ndarray:
    is_short = tensor.is_floating_point() and tensor.itemsize < 4  # some of which numpy does not have
    return (tensor.float() if is_short else tensor).numpy()


def _columns(path: Path, source: FeatureFile) -> tuple[np.ndarray, Any]:
    schema = pq.read_schema(path)
    shown = ", ".join(f"{field.name} ({field.type})" for field in schema)
    lists = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
    floats = [
        field.name for field in schema if isinstance(field.type, lists) and pa.types.is_floating(field.type.value_type)
    ]
    values, labels = _choice(source, schema.names, floats, shown)
    if twice := [name for name in (values, labels) if schema.names.count(name) > 1]:
        raise WrongTable(f"it has several columns {twice[0]}: rename all but one")
    if values not in floats:
        raise WrongTable(f"its column {values} holds {schema.field(values).type}, and no lists of floats")
    table = pq.read_table(path, columns=[values, *([] if labels is None else [labels])])
    column = table.column(values)
    lengths = set(pa.compute.unique(pa.compute.list_value_length(column)).to_pylist())
    if len(lengths) > 1 or None in lengths:
        told = ", ".join("none" if each is None else str(each) for each in sorted(lengths, key=lambda n: n or 0))
        raise WrongTable(f"the rows of its column {values} have {told} numbers; expected the same number in each")
    width = next(iter(lengths), 0)
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    array = np.concatenate(flat).reshape(-1, width) if flat and width else np.empty((0, 0), DTYPE)
    return array, None if labels is None else table.column(labels).to_pylist()


def _choice(source: FeatureFile, names: list[str], floats: list[str], shown: str) -> tuple[str, str | None]:
    """Returns the name of the features, and that of the labels or None, out of what a file has. Raises: WrongTable."""
    for key, asked in (("array", source.array), ("labels", source.labels)):
        if asked is not None and asked not in names:
            raise WrongTable(f"it has no {asked!r} ({key}).{nearest(asked, names)} It has {shown}")
    labels = source.labels or next((name for name in LABELS if name in names), None)
    if source.array is not None:
        return source.array, labels
    if usual := next((name for name in FEATURES if name in floats), None):
        return usual, labels
    if len(floats) == 1:
        return floats[0], labels
    found = f"several arrays of floats, {', '.join(floats)}" if floats else "no array (N, D) of floats"
    raise WrongTable(f"it has {found}: name the one that is meant (array). It has {shown}")


def _check(values: np.ndarray) -> None:
    if values.ndim != 2 or values.dtype.kind != "f" or 0 in values.shape:
        raise WrongTable(
            f"its array is {values.shape} of {values.dtype}; expected (N, D) of floats, a row an image, with at least one of each"
        )
    for first in range(0, len(values), BLOCK):
        with np.errstate(over="ignore"):
            rows = values[first : first + BLOCK].astype(DTYPE)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            row = first + int(np.argmin(finite))
            raise WrongTable(f"row {row} of its array has NaN or infinite numbers (as float32): take it out")
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        if (wrong := (largest > 1 / SMALLEST) | ((largest > 0) & (largest < SMALLEST))).any():
            row = int(np.argmax(wrong))
            raise WrongTable(
                f"the largest number of row {first + row} of its array is {largest[row]:.3g}, too near to 0 or to infinity for cosines in "
                f"float32: multiply all features by one number, so that each row's lies between {SMALLEST:g} and {1 / SMALLEST:g}"
            )


def _classes(labels: Any, count: int) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    if isinstance(labels, np.ndarray):
        if labels.ndim != 1 or labels.dtype.kind not in "iuU":
            raise WrongTable(
                f"its labels are {labels.shape} of {labels.dtype}; expected ({count},) of whole numbers or texts"
            )
        labels = labels.tolist()
    if wrong := [each for each in labels if not isinstance(each, int | str | None) or isinstance(each, bool)]:
        kind = type(wrong[0]).__name__
        raise WrongTable(
            f"it has the label {wrong[0]!r}, a {kind}; labels are whole numbers from 0, -1 for none, or texts"
        )
    if len(labels) != count:
        raise WrongTable(f"it has {len(labels):,} labels for {count:,} features; expected one a row")
    if wrong := [each for each in labels if isinstance(each, int) and each < -1]:
        raise WrongTable(f"it has the label {wrong[0]}; labels count from 0, and -1 is none")
    return classes_of(
        [None if each in (None, -1) else str(each) for each in labels], None
    )  # no text encoder reads them
