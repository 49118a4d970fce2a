"""Gathers the images of several requests into batches, which one thread judges one after the other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import torch

from clip_ood.files.unreadable import NO_MEMORY, is_no_memory
from clip_ood.serve.judge import Judge, Line, Prepared, failed

LOST = getattr(torch, "AcceleratorError", ())  # older versions of torch have none
END = None  # in the queue, behind the last image


@dataclass(frozen=True)
class Waiting:
    """An image that waits, and the judge that it was prepared for. `lines` are there once it is judged; if they are cancelled, it is not."""

    judge: Judge
    image: Prepared
    lines: Future[list[Line]] = field(default_factory=Future)


class Batches:
    """A thread that judges what waits: up to `size` images at a time, or those that came within `seconds` of the first.

    While a batch is judged, others gather, so that a busy server has full batches. A batch is judged by one judge, for which all of its
    images were prepared. `see` is called in the thread with the lines of each batch, in the order of the images, before they are answered,
    and `broken` with the error after which nothing can be judged any more: of the thread itself, or of a device that is lost.
    """

    def __init__(
        self,
        size: int | None,
        seconds: float,
        see: Callable[[list[list[Line]]], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        self.size, self.seconds, self.see, self.broken = size, seconds, see, broken
        self._queue: SimpleQueue[Waiting | None] = SimpleQueue()
        self._next: Waiting | None = None  # the first of the next batch, which another judge takes
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)

    def start(self) -> None:
        """Begins to judge."""
        self._thread.start()

    def end(self) -> None:
        """Judges what waits, and ends."""
        self._queue.put(END)
        self._thread.join()

    def put(self, judge: Judge, images: Sequence[Prepared]) -> list[Future[list[Line]]]:
        """Has images judged, one behind the other."""
        waiting = [Waiting(judge, each) for each in images]
        for each in waiting:
            self._queue.put(each)
        return [each.lines for each in waiting]

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # each thread has its own number of them
        ended = False
        try:
            while not ended or self._next is not None:
                batch, ended = self._gather(ended)
                if batch:
                    self._judge(batch)
        except BaseException as error:
            self.broken(error)

    def _gather(self, ended: bool) -> tuple[list[Waiting], bool]:
        """Returns the next batch, and whether the end has come."""
        first, self._next = self._next or self._queue.get(), None
        if first is END:
            return [], True
        batch, until = [first], time.monotonic() + self.seconds
        size = self.size or first.judge.predictor.batch_size
        while len(batch) < size and not ended:
            try:
                each = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if each is END:
                ended = True
            elif each.judge is not first.judge:
                self._next = each
                break
            else:
                batch.append(each)
        return batch, ended

    def _judge(self, batch: list[Waiting]) -> None:
        batch = [each for each in batch if each.lines.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            found = batch[0].judge.judge([each.image for each in batch])
        except Exception as error:
            if not is_no_memory(error):
                for each in batch:
                    each.lines.set_exception(error)
                if isinstance(error, LOST):  # every call of the process fails behind it
                    self.broken(error)
                return
            found = [[failed(each.image.name, NO_MEMORY)] for each in batch]
        try:
            self.see(found)
        except Exception:  # the images are judged, and the next ones are to be
            logging.getLogger(__name__).exception("A batch was judged, and what came of it could not be noted")
        for each, lines in zip(batch, found, strict=True):
            each.lines.set_result(lines)
