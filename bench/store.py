"""The feature store at its limits: python -m bench.store

Memory taken by opening and streaming half-precision features of ImageNet's size; opening 100 million entries and finding some of
them; listing and looking up a million files. Features are sparse files of zeros: the disk holds them in holes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from bench import chosen
from clip_ood.config.schema import ImageSet
from clip_ood.data.listing import list_images
from clip_ood.features.entries import LARGE, Entries
from clip_ood.features.store import FeatureStore

T = TypeVar("T")


class Sizes(NamedTuple):
    images: int = 1_281_167
    width: int = 1664
    entries: int = 100_000_000
    files: int = 1_000_000
    wanted: int = 10_000


TINY = Sizes(images=3_000, width=16, entries=5_000, files=300, wanted=100)


def identities(count: int, seed: int) -> np.ndarray:
    """Returns random identities (count, 2)."""
    return np.random.default_rng(seed).integers(0, 2**64, (count, 2), dtype=np.uint64)


def sparse_segment(path: Path, of: np.ndarray, width: int) -> None:
    """Writes a segment of these entries (n, 2) whose float16 features are a hole of zeros, without a valid checksum."""
    order, n = np.argsort(of[:, 0]), len(of)
    ours = [of[order, 0].tobytes(), of[order, 1].tobytes(), order.astype(np.int64).tobytes()]
    header, end = {"__metadata__": {"about": json.dumps({"errors": {}, "made_with": []})}}, 0
    arrays = {"first": ("I64", 8), "second": ("I64", 8), "order": ("I64", 8), "features": ("F16", 2 * width)}
    for name, (dtype, size) in (arrays | {"valid": ("BOOL", 1)}).items():
        shape = [n, width] if name == "features" else [n]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + n * size]}
    header["checksum"] = {"dtype": "U8", "shape": [16], "data_offsets": [end, end + 16]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(ours))
        file.truncate(8 + len(text) + end + 16)


def sparse_entries(folder: Path, count: int, width: int) -> np.ndarray:
    """Fills a folder with `count` entries; returns their identities."""
    folder.mkdir(parents=True)
    of = identities(count, seed=0)
    for number, start in enumerate(range(0, count, LARGE)):
        sparse_segment(folder / f"{number:05d}.safetensors", of[start : start + LARGE], width)
    return of


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = perf_counter()
    return work(), perf_counter() - start


def anonymous_memory() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def memory(folder: Path, sizes: Sizes) -> None:
    of = sparse_entries(folder, sizes.images, sizes.width)
    before = anonymous_memory()
    rows = Entries(folder).rows(of, ["features"])["features"]
    opened = anonymous_memory()
    for some in torch.arange(sizes.images).split(4096):
        rows.take(some).float().sum()
    print(
        f"store, memory beside mapped segments of {sizes.images * sizes.width * 2 / 2**30:.1f} GiB  opened "
        f"{(opened - before) / 2**20:.0f} MiB, streamed {(anonymous_memory() - before) / 2**20:.0f} MiB  no copy (< 256 MiB)"
    )


def opening(folder: Path, sizes: Sizes) -> None:
    of = sparse_entries(folder, sizes.entries, 8)
    entries, seconds = timed(lambda: Entries(folder))
    wanted = of[np.random.default_rng(1).integers(0, len(of), sizes.wanted)]
    rows, found = timed(lambda: entries.rows(wanted, ["features"])["features"])
    print(
        f"store, opening {sizes.entries:,} entries in {len(entries.segments)} segments  {seconds:.1f} s  <= 5 s, 1,024 segments; "
        f"{len(rows):,} of them found in {found:.1f} s"
    )


def files(folder: Path, sizes: Sizes) -> None:
    for number in range(sizes.files):
        place = folder / "data" / f"class_{number // 1000:04d}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        (place / f"image_{number:07d}.jpg").touch()
    before = anonymous_memory()
    spec = ImageSet(folder=folder / "data")
    images, listing = timed(lambda: list_images("files", spec, folder, labelled=True, seed=0))
    (stamps, _), stating = timed(images.stamps)
    store = FeatureStore(folder / "features", {"precision": "fp16"})
    content = identities(sizes.files, seed=0)
    for some in torch.arange(sizes.files).split(LARGE):
        store.files.remember(stamps[some.numpy()], content[some])
    store.files.refresh()
    (found, _), looking = timed(lambda: store.files.contents(stamps))
    each = (anonymous_memory() - before) / sizes.files
    assert np.array_equal(found, content)
    print(
        f"store, {sizes.files:,} files listed {listing:.0f} s, stat {stating:.0f} s, looked up {looking:.0f} s  <= 60 s together; "
        f"{each:.0f} bytes of memory a file  <= 500"
    )


def main(sizes: Sizes) -> None:
    for part in (memory, opening, files):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder, "made"), sizes)


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
