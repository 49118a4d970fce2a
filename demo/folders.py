"""Folders that are whole or absent: written under a temporary name beside their place, renamed when finished."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `out` when the block ends, and vanishes if the block fails.

    Raises:
        OSError: `out` exists already and is not empty.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
