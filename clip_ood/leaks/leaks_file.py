"""Writes leaks.csv of a run, which names every copy beside the image that it is a copy of."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from clip_ood.files.writing import written_text
from clip_ood.files.written_names import path_cell, text_cell
from clip_ood.leaks.copies import Copies, ImageSet

COLUMNS = ("set", "path", "copy_set", "copy_path", "kind", "similarity", "dropped")


def write_leaks(path: Path, copies: Sequence[Copies], sets: Sequence[ImageSet], out: Mapping[str, np.ndarray]) -> None:
    """Writes a line for each copy, or no file if there is none.

    Columns: an image (set, path); its copy in the same or a later set (copy_set, copy_path); kind: exact, near or corrupted;
    similarity of the two (1: equal); dropped: the set that one of them was taken out of, empty if both are left.
    """
    path.unlink(missing_ok=True)
    if copies:
        with written_text(path) as file:
            csv.writer(file).writerow(COLUMNS)
            csv.writer(file).writerows(_lines(copies, {each.name: each for each in sets}, out))


def _lines(
    copies: Sequence[Copies], sets: Mapping[str, ImageSet], out: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, ...]]:
    for each in copies:
        names = sets[each.earlier].images.names, sets[each.later].images.names
        gone = {
            name: np.isin(rows, out.get(name, ()))
            for name, rows in ((each.earlier, each.originals), (each.later, each.rows))
        }
        for place in range(len(each)):
            paths = [
                path_cell(of[row]) for of, row in zip(names, (each.originals[place], each.rows[place]), strict=True)
            ]
            ends = [name for name, is_gone in gone.items() if is_gone[place]]
            yield (
                text_cell(each.earlier), paths[0], text_cell(each.later), paths[1], each.kind,
                f"{each.similarity[place]:.4f}", text_cell(ends[-1]) if ends else "",
            )  # fmt: skip
