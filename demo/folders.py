"""Folders that are whole or absent: written under a temporary name beside their place, renamed when finished."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `out` when the block ends, and vanishes if the block fails. Another process that
    makes the same is waited for by `clip_ood.process.locks.in_turn`.

    Raises:
        OSError: `out` exists already and is not empty.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed one's
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
