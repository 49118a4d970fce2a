"""POST /predict: from the body of a request to a line for each of its images and detectors."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response

from clip_ood.serve.batches import Batches
from clip_ood.serve.bodies import body_of
from clip_ood.serve.given_images import Given, images_in
from clip_ood.serve.judge import Judge, Line, Prepared, failed
from clip_ood.serve.limits import Limits, Room
from clip_ood.serve.refusals import full

PREDICT = "/predict"
FORM = {
    "type": "object",
    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
}
TEXTS = {
    "type": "object",
    "required": ["images"],
    "additionalProperties": False,
    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
}
ONE_FILE = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": FORM},
        "application/json": {"schema": TEXTS},
        "application/octet-stream": ONE_FILE,
        "image/*": ONE_FILE,
    },
}
LINE = {
    "type": "object",
    "description": "the values of a line of detect.py; or, of an image that cannot be judged, path and error",
    "properties": {
        "path": {"type": ["string", "null"], "description": "the name of the file in a form"},
        "is_ood": {"type": "boolean"},
        "score": {"type": "number", "description": "higher: more like ID images"},
        "p_value": {"type": "number"},
        "predicted_class": {"type": ["string", "null"]},
        "confidence": {"type": ["number", "null"]},
        "detector": {"type": "string"},
        "copy_of": {"type": ["string", "null"]},
        "error": {"type": "string"},
    },
}
ANSWER = {
    "type": "object",
    "properties": {"predictions": {"type": "array", "items": LINE}, "digest": {"type": "string"}},
}
ERROR = {"content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}}
REFUSED = {
    400: "The body holds no images, or is not of its type",
    401: "The token is missing or wrong",
    408: "The request did not come in time",
    413: "Too many bytes or images",
    415: "A content type that is not taken",
    503: "Too much waits, the detector is not loaded yet, or the server ends: send it again after the seconds in Retry-After",
}
DESCRIBED: dict[int | str, dict[str, Any]] = {
    200: {"description": "A line for each image and detector", "content": {"application/json": {"schema": ANSWER}}},
    **{status: ERROR | {"description": about} for status, about in REFUSED.items()},
}


class Predicting:
    """Judges the images of requests: receives a body, decodes its images in a few threads, and has them judged in batches.

    `current` returns the judge, or None while none is loaded. `waiting` counts images from the end of their body to their judgement,
    and `unreadable` is told how many of a request could not be decoded. `left` counts requests that the end of the server came before.
    """

    def __init__(
        self,
        current: Callable[[], Judge | None],
        batches: Batches,
        limits: Limits,
        decoders: ThreadPoolExecutor,
        unreadable: Callable[[int], None],
    ) -> None:
        self.current, self.batches, self.limits, self.decoders = current, batches, limits, decoders
        self.unreadable = unreadable
        self.waiting, self.kept = Room(limits.waiting), Room(limits.kept)
        self.left = 0

    async def answer(self, request: Request) -> tuple[Judge, list[Line]]:
        """Returns the lines of a request's images, and whose they are. Raises: Refusal, also if the server ends before."""
        try:
            return await self._answer(request)
        except asyncio.CancelledError:  # the server waits for nothing any more
            self.left += 1
            raise full("the server ends", 5) from None

    async def _answer(self, request: Request) -> tuple[Judge, list[Line]]:
        if self.waiting.taken >= self.limits.waiting:
            raise self._full()
        judge = self.current()
        if judge is None:
            raise full("the detector is not loaded yet", 5)
        loop = asyncio.get_running_loop()
        async with body_of(request, self.limits, self.kept) as body:
            kind = request.headers.get("content-type", "")
            images = await loop.run_in_executor(self.decoders, images_in, body, kind, self.limits.images)
            if not self.waiting.take(len(images)):
                raise self._full()
            try:
                return judge, await self._judged(judge, images)
            finally:
                self.waiting.give_back(len(images))

    async def _judged(self, judge: Judge, images: list[Given]) -> list[Line]:
        loop = asyncio.get_running_loop()
        prepared = await asyncio.gather(
            *(loop.run_in_executor(self.decoders, self._prepare, judge, each) for each in images)
        )
        found = [
            [failed(given.name, each)] if isinstance(each, str) else []
            for given, each in zip(images, prepared, strict=True)
        ]
        ready = [place for place, each in enumerate(prepared) if isinstance(each, Prepared)]
        self.unreadable(len(images) - len(ready))
        waiting = self.batches.put(judge, [prepared[place] for place in ready])
        try:
            for place, lines in zip(ready, waiting, strict=True):
                found[place] = await asyncio.wrap_future(lines)
        finally:
            for lines in waiting:  # nobody waits any more for those that are not judged yet
                lines.cancel()
        return [line for lines in found for line in lines]

    def _prepare(self, judge: Judge, given: Given) -> Prepared | str:
        if given.reason is not None:
            return given.reason
        return judge.prepare(given.name, given.content, self.limits.pixels)

    def _full(self) -> Exception:
        return full(f"{self.waiting.taken:,} images wait, and at most {self.limits.waiting:,} may")


def predict_routes(predicting: Predicting) -> APIRouter:
    """Returns the route of predictions."""
    router = APIRouter()

    @router.post(PREDICT, openapi_extra={"requestBody": BODY}, responses=DESCRIBED, response_class=Response)
    async def predict(request: Request) -> Response:
        """Judges images: files of a form, the bytes of one file, or base64 in JSON."""
        judge, lines = await predicting.answer(request)
        return Response(json.dumps({"predictions": lines, "digest": judge.digest}), media_type="application/json")

    return router


def decoders(count: int) -> ThreadPoolExecutor:
    """Returns threads that decode images, in each of which torch computes with one thread."""
    met = threading.Barrier(count)

    def begin() -> None:
        torch.set_num_threads(1)
        met.wait()

    pool, threads = ThreadPoolExecutor(count, "decoder", begin), torch.get_num_threads()
    for each in [pool.submit(bool) for _ in range(count)]:
        each.result()
    torch.set_num_threads(threads)  # where torch is built without OpenMP, and in MKL, the number is one for all threads
    return pool
