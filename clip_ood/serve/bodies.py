"""Receives the body of a request within limits of bytes and time, counted while it comes in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from clip_ood.serve.limits import Limits, Room
from clip_ood.serve.refusals import Refusal, full


@asynccontextmanager
async def body_of(request: Request, limits: Limits, room: Room) -> AsyncIterator[bytes]:
    """Yields the body of a request, for which there is room while the block lasts.

    Raises: Refusal of a body that is empty (400), too long (413), too slow (408), or one more than there is room for (503).
    """
    held = _Held(limits, room)
    try:
        yield await asyncio.wait_for(held.receive(request), limits.seconds)
    except asyncio.TimeoutError:
        raise Refusal(408, f"the body of the request did not come within {limits.seconds:g} s") from None
    except ClientDisconnect:
        raise Refusal(400, "the request ended before its body did") from None
    finally:
        room.give_back(held.size)


class _Held:
    """What has come of a body."""

    def __init__(self, limits: Limits, room: Room) -> None:
        self.limits, self.room, self.size = limits, room, 0

    async def receive(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.limits.bytes:
            raise self._too_long(f"{int(declared):,} bytes")
        body = bytearray()
        async for chunk in request.stream():
            if len(body) + len(chunk) > self.limits.bytes:
                raise self._too_long("more bytes")
            if not self.room.take(len(chunk)):
                raise full("other requests take the memory that there is for requests")
            self.size += len(chunk)
            body += chunk
        if not body:
            raise Refusal(400, "the request has no body: send an image, a form of files, or JSON")
        return bytes(body)

    def _too_long(self, what: str) -> Refusal:
        return Refusal(413, f"the request has {what}, and at most {self.limits.bytes:,} are taken: send fewer images")
