"""Serves a finished run's detector over HTTP until a signal ends it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket

import torch

from clip_ood.detect.decisions import decisions_of
from clip_ood.detect.predictor import load
from clip_ood.detect.saved import SavedDetector
from clip_ood.detect.watch_file import watching
from clip_ood.experiments.watching import Watched
from clip_ood.serve.access import LOOPBACK, Access
from clip_ood.serve.application import create_service
from clip_ood.serve.batches import Batches
from clip_ood.serve.callers import Callers
from clip_ood.serve.detectors import Detectors
from clip_ood.serve.figures import Counted, Figures
from clip_ood.serve.judge import Judge, Line
from clip_ood.serve.limits import Limits
from clip_ood.serve.listening import listen, service
from clip_ood.serve.predict_routes import PREDICT, Predicting, decoders, predict_routes
from clip_ood.serve.state_routes import STATES, state_routes
from clip_ood.terminal.shown import one_line, say
from clip_ood.versions import versions

NAMELESS = "an image without a name"


@dataclass(frozen=True)
class Asked:
    """What `clip-ood serve` is asked for; None: as the run has it, or none."""

    run: Path
    detector: str | None = None
    accept: float | None = None
    per_class: bool = False
    nearest: int = 0
    words: int = 0
    encoder: str | None = None
    device: str = "auto"
    trust_classes: bool = False
    allow_download: bool = False
    host: str = "127.0.0.1"
    port: int | None = None
    token: str | None = None
    watch: Path | None = None
    delta: float | None = None
    batch: int | None = None
    wait: float = 5.0
    decoders: int = 2
    limits: Limits = field(default_factory=Limits)

    def judge(self) -> Judge:
        """Loads the judge. Raises: as `load` does."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        asked = {"nearest": self.nearest, "per_class": self.per_class, "words": self.words}
        allowed = (self.trust_classes, self.allow_download)
        return Judge(load(self.run, self.detector, self.accept, self.encoder, device, *allowed, **asked))


def serve(asked: Asked) -> None:
    """Serves until a signal ends it, and answers what was asked before; a second signal does not wait for that.

    Raises: UserError for a run that cannot judge images, an address that cannot be had, and a watch that cannot go on.
    """
    saved = SavedDetector(asked.run, asked.trust_classes)
    saved.check_encodes()
    columns = saved.chosen(asked.detector)
    decisions_of(saved, columns, asked.accept, None, asked.per_class)
    saved.check_words(asked.words)
    with listen(asked.host, asked.port) as at, _watched(asked, saved, columns[0]) as watch:
        _tell_address(asked, at.getsockname()[1])
        left = Serving(asked, watch).run(at)
    if left:
        tell(f"Stopped: {left:,} requests were not judged, and answered with 503.")
    else:
        tell("Stopped: what was asked is answered.")


class Serving:
    """A server of a run with all its parts."""

    def __init__(self, asked: Asked, watch: Watched | None) -> None:
        self.asked, self.watch = asked, watch
        self.error: BaseException | None = None  # why nothing can be judged any more
        self.detectors = Detectors(asked.run, self.load, self.taken, self.failed, tell)
        self.batches = Batches(asked.batch, asked.wait / 1000, self.see, self.failed)
        self.pool = decoders(asked.decoders)
        self.figures = Figures(lambda: self.predicting.waiting.taken)
        if watch is not None:
            self.figures.add_watch(watch.watch.martingale)
        unreadable = self.figures.unreadable.inc
        self.predicting = Predicting(self.current, self.batches, asked.limits, self.pool, unreadable)
        states = state_routes(self.current, self.figures, versions("fastapi", "uvicorn"))
        app = create_service("clip-ood serve", versions()["clip-ood"], [predict_routes(self.predicting), states])
        access = Access() if asked.host in LOOPBACK else None
        app.add_middleware(Callers, token=asked.token, access=access, connections=asked.limits.connections)
        app.add_middleware(Counted, figures=self.figures, paths=frozenset((PREDICT, *STATES)), timed=PREDICT)
        self.server = service(app, asked.limits)

    def run(self, at: socket) -> int:
        """Serves until it is stopped, and returns how many requests were not judged. Raises: what loading the detector raises."""
        self.batches.start()
        self.detectors.start()
        self.server.run(sockets=[at])
        self.detectors.end()
        self.batches.end()
        self.pool.shutdown(wait=False, cancel_futures=True)
        if self.error is not None:
            raise self.error
        return self.predicting.left

    def current(self) -> Judge | None:
        """Returns the judge, None while none is loaded."""
        return self.detectors.current

    def load(self) -> Judge:
        """Loads a judge.

        Raises: as `Asked.judge` does, UserError for one of features that were given, and WatchError for one that cannot go on with the
        watched stream.
        """
        judge = self.asked.judge()
        judge.predictor.saved.check_encodes()
        if self.watch is not None:
            self.watch.watch.check_goes_on(judge.predictor.saved, judge.predictor.columns)
        return judge

    def taken(self, judge: Judge) -> None:
        """Notes that a judge was loaded."""
        self.figures.note_judge(judge)
        columns = ", ".join(judge.predictor.columns)
        tell(f"Ready: images are judged by {columns} of {self.asked.run} ({judge.digest[:12]})")

    def failed(self, error: BaseException) -> None:
        """Ends the server, in which nothing can be judged."""
        self.error = error
        self.server.stop(at_once=True)  # nothing that waits is judged any more

    def see(self, found: list[list[Line]]) -> None:
        """Counts and watches a batch."""
        self.figures.note_batch(found)
        if self.watch is not None:
            _watch(self.watch, found)


def _tell_address(asked: Asked, port: int) -> None:
    host = f"[{asked.host}]" if ":" in asked.host else asked.host
    say(f"Serving {asked.run} at http://{host}:{port}/predict. Ctrl-C ends it.", flush=True)
    if asked.host not in LOOPBACK:
        who = "whoever has the token" if asked.token else "whoever can reach it"
        tell(
            f"--host {asked.host}: other machines can reach it, what goes to and fro is not encrypted, and {who} may ask"
            + ("" if asked.token else " (--token)")
        )


def _watch(watch: Watched, found: list[list[Line]]) -> None:
    for line in (line for lines in found for line in lines):
        watch.take(line | {"path": line["path"] or NAMELESS})
    watch.catch_up()
    try:
        watch.save_if_due()
    except OSError as error:
        tell(f"--watch {watch.shown}: the file cannot be written, and is tried again ({error.strerror or error})")


@contextmanager
def _watched(asked: Asked, saved: SavedDetector, column: str) -> Iterator[Watched | None]:
    """Opens the watch that is asked for, and writes its file at the end."""
    if asked.watch is None:
        yield None
        return
    with watching(asked.watch, saved, column, asked.delta) as found:
        watch = Watched(found, asked.watch, at_once=True)
        try:
            yield watch
        finally:
            watch.save()
        tell(watch.told())


def tell(line: str) -> None:
    """Prints a line on standard error at once; a server goes on where nobody takes it, or the disk of its log is full."""
    with suppress(OSError, ValueError):
        say(one_line(line), file=sys.stderr, flush=True)
