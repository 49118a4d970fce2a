"""Writes folders that are whole or absent: under a temporary name beside their place, renamed when finished."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Yields an empty temporary folder that becomes `out` when the block ends, and is removed if the block fails.

    If another process makes the same folder, `clip_ood.process.locks.in_turn` waits for it.

    Raises:
        OSError: `out` exists already and is not empty.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
