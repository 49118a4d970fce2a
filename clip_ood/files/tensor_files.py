"""Writes safetensors files in pieces to an open file, so that an error of the disk is an OSError, as for any other file.

safetensors' own writer raises an error of its own for a full disk, and lets only its user read what it writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clip_ood.files.writing import written_whole

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all, with the mode that the umask gives or that of the file which it replaces.

    Raises: OSError, which names the file.
    """
    ordered = sorted(
        tensors, key=lambda name: (-tensors[name].element_size(), name)
    )  # each array begins at a multiple of its item size
    with written_whole(path) as file:
        for block in blocks({name: [tensors[name]] for name in ordered}, metadata):
            file.write(block)


def blocks(
    columns: Mapping[str, Sequence[Tensor]], metadata: Mapping[str, str] | None = None, checksum: int = 0
) -> Iterator[bytes | memoryview]:
    """Yields a safetensors file: the length of its header, its header, and its arrays, whose pieces follow one another.

    With `checksum`, this many bytes of that name are still to be written after them.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, pieces in columns.items():
        shape = [sum(map(len, pieces)), *pieces[0].shape[1:]] if pieces[0].ndim else []
        start, end = end, end + sum(piece.numel() * piece.element_size() for piece in pieces)
        header[name] = {"dtype": DTYPES[pieces[0].dtype], "shape": shape, "data_offsets": [start, end]}
    if checksum:
        header["checksum"] = {"dtype": "U8", "shape": [checksum], "data_offsets": [end, end + checksum]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # arrays begin at multiples of 8 bytes
    yield len(encoded).to_bytes(8, "little") + encoded
    for pieces in columns.values():
        for piece in pieces:
            if piece.numel():
                yield memoryview(piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
