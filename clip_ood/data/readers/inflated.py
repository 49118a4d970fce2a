"""Inflates a member of a zip file to no more bytes than its archive states, and compares it with its checksum."""

from __future__ import annotations

import zlib


def inflated(content: bytes, gives: int | None, checksum: int) -> bytes:
    """Returns what raw deflate made `content` of, `gives` bytes (None: it is stored as it is), with this CRC-32.

    Raises: ValueError for content that is damaged, or that gives another number of bytes; no more than these are ever made.
    """
    if gives is not None:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflate.decompress(content, gives + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if len(content) != gives:
            raise ValueError(
                f"it gives {'more' if len(content) > gives else 'fewer'} than the {gives:,} bytes it states"
            )
    if zlib.crc32(content) != checksum:
        raise ValueError("its checksum is another one")
    return content
