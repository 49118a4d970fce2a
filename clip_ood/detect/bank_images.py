"""The ID images of a saved detector by name and content, in its folder's bank.parquet, so that they are recognised and can be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clip_ood.errors import brief
from clip_ood.features.identity import find
from clip_ood.files.records import Unfit
from clip_ood.files.writing import written_whole
from clip_ood.files.written_names import BYTES, path_columns, paths_of

FILE = "bank.parquet"
SCORE = "score."  # begins the names of the columns of scores


@dataclass(frozen=True)
class BankImages:
    """The n ID images that a detector was fitted on, and their copies.

    Attributes: paths; contents (n, 2) uint64, their identities (see `clip_ood.features.identity`); rows (n,) int64, their places in their
    image set, ascending; copy_of (n,) int64, the row of the bank's image that each is a copy of, its own for most; scores (n,) float32, by
    detector, by what has not seen the image, NaN where nothing has scored it; none without cross-fitting.
    """

    paths: Sequence[str]
    contents: np.ndarray
    rows: np.ndarray
    copy_of: np.ndarray
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def find(self, contents: np.ndarray) -> np.ndarray:
        """Returns which of these images have the contents (m, 2): places (m,), −1 for none."""
        first, second, order = self._sorted
        places = find(first, second, contents)
        return np.where(places < 0, -1, order[places])

    def names(self, rows: Tensor) -> list[str]:
        """Returns the paths of images by their rows."""
        return [self.paths[place] for place in np.searchsorted(self.rows, rows.numpy()).tolist()]

    def copies(self, places: np.ndarray) -> Tensor:
        """Returns the rows (m,) of the bank's images that images at these places (m,) are copies of, −1 for the place −1."""
        return torch.from_numpy(np.where(places < 0, -1, self.copy_of[places]))

    def out_of_sample(self, places: np.ndarray, column: str, scores: Tensor) -> Tensor:
        """Returns scores (m,) in which those of images at places (m,) that are not −1 are by what has not seen them, if they are known."""
        if column not in self.scores:
            return scores
        known = torch.from_numpy(self.scores[column][places])
        replaces = torch.from_numpy(places >= 0) & ~known.isnan()
        return known.to(scores).where(replaces, scores)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = np.lexsort((self.contents[:, 1], self.contents[:, 0]))
        return self.contents[order, 0], self.contents[order, 1], order

    def write(self, folder: Path) -> None:
        """Writes them into a detector's folder."""
        contents = np.ascontiguousarray(self.contents, "<u8")
        columns = {
            **path_columns(self.paths),
            "content": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(self), [None, pa.py_buffer(contents)]),
            "row": pa.array(self.rows, pa.int64()),
            "copy_of": pa.array(self.copy_of, pa.int64()),
            **{f"{SCORE}{name}": pa.array(values, pa.float32()) for name, values in self.scores.items()},
        }
        with written_whole(folder / FILE) as file:
            pq.write_table(pa.table(columns), file, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> BankImages:
        """Reads what `write` has written. Raises: Unfit for anything else."""
        try:
            with path.open("rb") as file:
                table = pq.ParquetFile(file).read()
        except (pa.ArrowException, ValueError) as error:
            raise Unfit(brief(error)) from error
        scores = [name for name in table.column_names if name.startswith(SCORE)]
        kinds = {"path": pa.string(), "content": pa.binary(16), "row": pa.int64(), "copy_of": pa.int64()}
        kinds |= dict.fromkeys(scores, pa.float32())
        kinds |= {BYTES: pa.binary()} if BYTES in table.column_names else {}
        if {each.name: each.type for each in table.schema} != kinds or len(kinds) != table.num_columns:
            raise Unfit("it has other columns")
        if any(table[name].null_count for name in kinds if name != BYTES):
            raise Unfit("it has rows without a value")
        rows, copy_of = (table[name].to_numpy() for name in ("row", "copy_of"))
        if (np.diff(rows) <= 0).any() or not np.isin(copy_of, [*rows, -1]).all():
            raise Unfit("its rows are not in order, or a copy has no original")
        contents = np.frombuffer(b"".join(table["content"].to_pylist()), "<u8").astype(np.uint64).reshape(-1, 2)
        found = {name.removeprefix(SCORE): table[name].to_numpy() for name in scores}
        return cls(paths_of(table), contents, rows, copy_of, found)
