"""The vocabulary of a saved detector as a file, vocabulary.parquet: a row for each word, with its embedding."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_ood.errors import brief
from clip_ood.files.records import Unfit
from clip_ood.files.writing import written_whole
from clip_ood.texts.vocabulary import Vocabulary

FILE = "vocabulary.parquet"
FLOATS = {pa.float16(): torch.float16, pa.float32(): torch.float32}


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Writes a vocabulary into a detector's folder."""
    values = vocabulary.embeddings.cpu().contiguous().numpy()
    columns = {
        "word": pa.array(vocabulary.words, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]),
    }
    with written_whole(folder / FILE) as file:
        pq.write_table(pa.table(columns), file, compression="zstd")


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads what `write_vocabulary` has written. Raises: Unfit for anything else."""
    try:
        with path.open("rb") as file:
            table = pq.ParquetFile(file).read().combine_chunks()
    except (pa.ArrowException, ValueError) as error:
        raise Unfit(brief(error)) from error
    kind = table.schema.field("embedding").type if table.column_names == ["word", "embedding"] else None
    if not isinstance(kind, pa.FixedSizeListType) or kind.value_type not in FLOATS or table["word"].type != pa.string():
        raise Unfit("it has other columns")
    if not len(table) or table["word"].null_count or table["embedding"].null_count:
        raise Unfit("it has no words, or rows without a value")
    values = table["embedding"].chunk(0).flatten()
    embeddings = torch.from_numpy(values.to_numpy(zero_copy_only=False).copy()).view(len(table), kind.list_size)
    if values.null_count or not embeddings.isfinite().all():
        raise Unfit("it has embeddings that are not finite")
    return Vocabulary(tuple(table["word"].to_pylist()), embeddings)
