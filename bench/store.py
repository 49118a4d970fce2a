"""Memory taken by opening and streaming a half-precision store of ImageNet's size: python -m bench.store

A sparse file of zeros stands for the features: the disk holds 1.28 M x 1664 float16 (4.3 GB), in holes.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from bench import chosen
from clip_ood.features.store import CHUNK, FeatureStore


class Sizes(NamedTuple):
    images: int = 1_281_167
    width: int = 1664


TINY = Sizes(images=3_000, width=16)


def sparse_chunk(path: Path, rows: int, width: int, metadata: dict[str, str]) -> None:
    """A chunk file of zeros: header as safetensors writes it, data as a hole."""
    size = rows * width * 2
    header = {
        "__metadata__": metadata,
        "features": {"dtype": "F16", "shape": [rows, width], "data_offsets": [0, size]},
        "valid": {"dtype": "BOOL", "shape": [rows], "data_offsets": [size, size + rows]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size + rows)


def anonymous_memory() -> int:
    """KiB of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def main(sizes: Sizes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), {"precision": "fp16"})
        stored = store.image_set("train", [(str(i),) for i in range(sizes.images)])
        stored.folder.mkdir(parents=True)
        for chunk in stored.chunks:
            about = stored.identity | {"chunk": chunk, "errors": {}}
            path = stored.folder / f"chunk-{chunk:05d}.safetensors"
            sparse_chunk(path, len(stored.rows(chunk)), sizes.width, {"about": json.dumps(about)})
        before = anonymous_memory()
        features = stored.open()
        opened = anonymous_memory()
        for rows in torch.arange(sizes.images).split(4 * CHUNK):
            features.features.take(rows).float().sum()
        streamed = anonymous_memory()
    print(
        f"store, memory beside the mapped file of {sizes.images * sizes.width * 2 / 2**30:.1f} GiB  opened {(opened - before) / 1024:.0f} MiB, "
        f"streamed {(streamed - before) / 1024:.0f} MiB  no copy (< 256 MiB)"
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
