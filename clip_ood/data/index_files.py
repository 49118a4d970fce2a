"""Reads the files in which publishers say which images of a folder belong to a split, and to which class.

| set | file | a line |
|---|---|---|
| CUB-200-2011 | `train_test_split.txt`, beside `images.txt` | `1 0`: image 1 is a test image |
| WaterBirds | `metadata.csv` | `1,001.Black_footed_Albatross/….jpg,1,0,0,…`: a waterbird of train, on land |
| Food-101 | `meta/test.txt` | `apple_pie/1011328` |
| Oxford-IIIT Pet | `annotations/test.txt` | `Abyssinian_201 1 1 1` |
| FGVC-Aircraft | `data/images_variant_test.txt` | `1514522 707-320` |
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from clip_ood.errors import ConfigError, shortened
from clip_ood.files.text_files import read_lines, read_text

WATERBIRDS = ("landbird", "waterbird")  # y = 0 and y = 1
PARTS = ("train", "val", "test")  # 0, 1 and 2 of WaterBirds


class Indexed(NamedTuple):
    """An image that a file lists: its class (None: the folder that it lies in), the line that says so, and its name as it stands there."""

    label: str | None
    line: int
    written: str


def read_index(set_name: str, path: Path, split: str | None) -> dict[str, Indexed]:
    """Returns the images of a split by their path in the folder, without extension.

    `split` is train, val or test, and is needed where one file lists all of them. Raises: ConfigError for a line of another form, an
    image that is listed twice, and a split that the file does not have.
    """
    if path.name == "train_test_split.txt":
        rows = _cub(set_name, path, split)
    elif path.suffix == ".csv":
        try:
            rows = _waterbirds(set_name, path, split)
        except csv.Error as error:
            raise ConfigError(f"Image set {set_name}: {path} is no table of images ({error})") from None
    elif split is not None:
        raise ConfigError(f"Image set {set_name}: {path} lists a single split: leave the key split out")
    else:
        rows = [_listed(set_name, path, number, line) for number, line in _lines(path)]
    found: dict[str, Indexed] = {}
    for name, indexed in rows:
        if name in found:
            raise ConfigError(
                f"Image set {set_name}: {path}, line {indexed.line}: lists {name} a second time (first in line {found[name].line})"
            )
        found[name] = indexed
    if not found:
        raise ConfigError(f"Image set {set_name}: {path} lists no image" + (f" of {split}" if split else ""))
    return found


def _lines(path: Path) -> list[tuple[int, str]]:
    lines = enumerate(read_lines(path), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip() and not line.startswith("#")]


def _without_suffix(name: str) -> str:
    return re.sub(r"\.(jpe?g|png)$", "", name, flags=re.IGNORECASE)


def _listed(set_name: str, path: Path, number: int, line: str) -> tuple[str, Indexed]:
    name, _, rest = line.partition(" ")
    if pet := re.fullmatch(r"(.+)_\d+ \d+ \d+ \d+", line):
        return name, Indexed(pet[1].replace("_", " "), number, name)
    if not rest and "/" not in name:
        raise _wrong(set_name, path, number, '"class/image" or "image class"', line)
    return _without_suffix(name), Indexed(rest.strip() or None, number, name)


def _cub(set_name: str, path: Path, split: str | None) -> list[tuple[str, Indexed]]:
    wanted = _part(set_name, path, split, {"test": "0", "train": "1"})
    names = {}
    beside = path.with_name("images.txt")
    try:
        for number, line in _lines(beside):
            key, _, name = line.partition(" ")
            if not re.fullmatch(r"\d+ \d{3}\.[^/]+/[^/]+", line):
                raise _wrong(set_name, beside, number, '"1 001.Class/image.jpg"', line)
            if key in names:
                raise ConfigError(f"Image set {set_name}: {beside}, line {number}: lists image {key} a second time")
            names[key] = name
    except OSError as error:
        raise ConfigError(f"Image set {set_name}: {beside} cannot be read ({error.strerror})") from error
    rows, divided = [], set()
    for number, line in _lines(path):
        key, _, part = line.partition(" ")
        if key not in names or part not in ("0", "1"):
            raise _wrong(set_name, path, number, f'"image 0" or "image 1", with an image of {beside.name}', line)
        if key in divided:
            raise ConfigError(f"Image set {set_name}: {path}, line {number}: lists image {key} a second time")
        divided.add(key)
        if part == wanted:
            label = names[key].split("/")[0].split(".", 1)[1].replace("_", " ")
            rows.append((_without_suffix(names[key]), Indexed(label, number, names[key])))
    if left := [key for key in names if key not in divided]:
        raise ConfigError(
            f"Image set {set_name}: {path} does not say which split image {left[0]} of {beside.name} belongs to ({len(left):,} of "
            f"{len(names):,} images): get the published file"
        )
    return rows


def _waterbirds(set_name: str, path: Path, split: str | None) -> list[tuple[str, Indexed]]:
    wanted = _part(set_name, path, split, {part: str(number) for number, part in enumerate(PARTS)})
    table = csv.DictReader(io.StringIO(read_text(path)))
    if not {"img_filename", "y", "split"} <= set(table.fieldnames or ()):
        raise _wrong(set_name, path, 1, "columns img_filename, y and split", ",".join(table.fieldnames or ()))
    rows = []
    for row in table:
        if row["y"] not in ("0", "1") or row["split"] not in ("0", "1", "2") or not row["img_filename"]:
            expected = "an image with y = 0 or 1 and split = 0, 1 or 2"
            raise _wrong(set_name, path, table.line_num, expected, ",".join(str(value) for value in row.values()))
        if row["split"] == wanted:
            name = row["img_filename"]
            rows.append((_without_suffix(name), Indexed(WATERBIRDS[int(row["y"])], table.line_num, name)))
    return rows


def _part(set_name: str, path: Path, split: str | None, parts: dict[str, str]) -> str:
    if split not in parts:
        got = "none is named" if split is None else f"not {split!r}"
        raise ConfigError(
            f"Image set {set_name}: {path} lists several splits: split takes {', '.join(parts)}, and {got}"
        )
    return parts[split]


def _wrong(set_name: str, path: Path, number: int, expected: str, line: str) -> ConfigError:
    return ConfigError(
        f"Image set {set_name}: {path}, line {number}: expected {expected}, got {shortened(repr(line), 200)}"
    )
