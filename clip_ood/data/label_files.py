"""Reads files that say which class each image of a folder belongs to: TinyImageNet's, Kaggle's and those of ImageNet's devkit."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from clip_ood.errors import ConfigError
from clip_ood.files.pictures import SUFFIXES
from clip_ood.files.regular_file import check_regular
from clip_ood.files.text_files import read_lines, read_text
from clip_ood.files.written_names import path_of


class Label(NamedTuple):
    """A class name (wnid) and the line of the file that says so."""

    name: str
    line: int


def read_labels(set_name: str, path: Path) -> tuple[Path, dict[str, Label]]:
    """Returns the file that was read, and the label of each image by its file name without extension.

    `path` is a devkit folder (with data/ILSVRC2012_validation_ground_truth.txt and data/meta.mat), a .csv with columns
    ImageId and PredictionString, or a text file of tab-separated lines "image, class, …".
    Raises: ConfigError for a line of another form, and for an image that two lines name.
    """
    if path.is_dir():
        path, rows = path / "data" / "ILSVRC2012_validation_ground_truth.txt", _devkit(set_name, path)
    elif path.suffix == ".csv":
        try:
            rows = _kaggle(set_name, path)
        except csv.Error as error:
            raise ConfigError(f"Image set {set_name}: {path} is no table of labels ({error})") from None
    else:
        rows = _tab_separated(set_name, path)
    labels: dict[str, Label] = {}
    for stem, label in rows:
        if stem in labels:
            raise ConfigError(
                f"Image set {set_name}: {path}, line {label.line}: {stem} stands there a second time (first in line "
                f"{labels[stem].line})"
            )
        labels[stem] = label
    return path, labels


def _tab_separated(set_name: str, path: Path) -> list[tuple[str, Label]]:
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) < 2 or not (cells[0].strip() and cells[1].strip()):
            raise _wrong(set_name, path, number, '"image<tab>class"', line)
        rows.append((_stem(cells[0].strip()), Label(cells[1].strip(), number)))
    return rows


def _stem(image: str) -> str:
    """Returns an image's file name without the extension, if it has one."""
    name = Path(image).name
    return Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name


def _kaggle(set_name: str, path: Path) -> list[tuple[str, Label]]:
    rows = []
    reader = csv.DictReader(io.StringIO(read_text(path)))
    if not {"ImageId", "PredictionString"} <= set(reader.fieldnames or ()):
        raise _wrong(set_name, path, 1, "columns ImageId and PredictionString", ",".join(reader.fieldnames or ()))
    for row in reader:
        words = (row["PredictionString"] or "").split()  # wnid and box of each object
        if not row["ImageId"] or not words:
            raise _wrong(set_name, path, reader.line_num, '"image,wnid box …"', ",".join(filter(None, row.values())))
        rows.append((_stem(path_of(row["ImageId"])), Label(words[0], reader.line_num)))
    return rows


def _devkit(set_name: str, folder: Path) -> list[tuple[str, Label]]:
    truth = folder / "data" / "ILSVRC2012_validation_ground_truth.txt"
    wnids = _wnids(set_name, folder / "data" / "meta.mat")
    try:
        lines = read_lines(truth)
    except OSError as error:
        raise ConfigError(f"Image set {set_name}: {truth} cannot be read ({error.strerror})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip().isdigit() or int(line) not in wnids:
            raise _wrong(set_name, truth, number, f"a class number of 1 … {len(wnids)}", line)
        rows.append((f"ILSVRC2012_val_{number:08d}", Label(wnids[int(line)], number)))
    return rows


def _wnids(set_name: str, path: Path) -> dict[int, str]:
    """Returns ILSVRC2012_ID -> wnid of the synsets without children, which are the classes."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise ConfigError(f"Image set {set_name}: {path} is read with scipy: pip install scipy") from error
    try:
        check_regular(path)
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"].astype(int) == 0]
        return {int(number): str(wnid) for number, wnid in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}
    except (MatReadError, NotImplementedError, OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ConfigError(f"Image set {set_name}: {path} cannot be read as the devkit's meta.mat ({error})") from error


def _wrong(set_name: str, path: Path, number: int, expected: str, line: str) -> ConfigError:
    return ConfigError(f"Image set {set_name}: {path}, line {number}: expected {expected}, got {line!r}")
