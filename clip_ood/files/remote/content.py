"""Reads an object whole into memory, but no more than so many bytes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clip_ood.files.remote.address import WEB, Address
from clip_ood.files.remote.file_systems import file_system
from clip_ood.files.remote.patience import asked, longest_wait, patiently

if TYPE_CHECKING:
    from fsspec.implementations.http import HTTPFileSystem


def content_at(address: Address, size: int | None, most: int) -> bytes:
    """Returns the bytes at an address, which were listed as `size` (None: not known); if there are more, only some of them.

    Of an object in a bucket, one byte more than its size is asked for, in one request: whoever compares sees that it has grown. Servers of
    the web may say no size, or a wrong one: after `most` bytes, no more are taken. Raises: as `asked` does.
    """
    if size == 0 and address.protocol not in WEB:
        return b""
    if address.protocol not in WEB:
        end = most if size is None else size
        return asked(address, "cat_file", size=end, start=0, end=end + 1)
    from fsspec.asyn import sync

    fs, path = file_system(address)
    return patiently(lambda: sync(fs.loop, _beginning, fs, path, most, timeout=longest_wait(size or 0)), address)


async def _beginning(fs: HTTPFileSystem, url: str, most: int) -> bytes:
    """Returns the bytes at a URL, and stops once these are more than `most`."""
    session, content = await fs.set_session(), bytearray()
    async with session.get(fs.encode_url(url), **fs.kwargs) as answer:
        answer.raise_for_status()
        async for piece in answer.content.iter_any():
            content += piece
            if len(content) > most:
                break
    return bytes(content)
