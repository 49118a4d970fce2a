"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from clip_ood.serve.access import Call, Scope
from clip_ood.serve.judge import Judge, Line
from clip_ood.stream.martingale import Martingale

TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
P_VALUES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Figures:
    """The figures of one server, each described where it is made; `waiting` gives the number of images that wait to be judged."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "clip_ood_requests", "Requests by path and status", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "clip_ood_predict_seconds",
            "Time from the head of a request for predictions to its answer",
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram("clip_ood_batch_images", "Images of a batch", buckets=IMAGES, registry=registry)
        self.images = Counter(
            "clip_ood_images", "Images judged by a detector: id, ood", ["detector", "verdict"], registry=registry
        )
        self.unreadable = Counter("clip_ood_unreadable_images", "Images that could not be judged", registry=registry)
        self.share = Gauge(
            "clip_ood_flagged_share",
            "Share of the images judged since the start that are OOD",
            ["detector"],
            registry=registry,
        )
        self.p_values = Histogram(
            "clip_ood_p_value", "p-values of the images judged", ["detector"], buckets=P_VALUES, registry=registry
        )
        self.detector = Gauge(
            "clip_ood_detector", "1 for the detector folder that judges", ["digest"], registry=registry
        )
        Gauge("clip_ood_waiting_images", "Images that wait", registry=registry).set_function(waiting)
        self._counts: dict[str, list[int]] = {}  # detector -> images that are OOD, and all

    def text(self) -> bytes:
        """Returns all figures as they are now."""
        return generate_latest(self.registry)

    def note_batch(self, found: list[list[Line]]) -> None:
        """Counts a batch and its images."""
        self.batches.observe(len(found))
        for line in (line for lines in found for line in lines):
            if "error" in line:
                self.unreadable.inc()
                continue
            detector, is_ood = line["detector"], line["is_ood"]
            self.images.labels(detector, "ood" if is_ood else "id").inc()
            self.p_values.labels(detector).observe(line["p_value"])
            counts = self._counts.setdefault(detector, [0, 0])
            counts[0] += is_ood
            counts[1] += 1
            self.share.labels(detector).set(counts[0] / counts[1])

    def note_judge(self, judge: Judge) -> None:
        """Notes which detector judges from now on."""
        self.detector.clear()
        self.detector.labels(judge.digest).set(1)

    def add_watch(self, martingale: Martingale) -> None:
        """Adds the figures of a watched stream."""
        told = {
            "images": ("Images of the watched stream", lambda: martingale.seen),
            "log_martingale": ("Natural logarithm of the martingale: evidence of a change", lambda: martingale.log),
            "log_martingale_highest": ("Its maximum so far", lambda: martingale.highest),
            "log_limit": ("Its value at which the alarm comes, log(1 / delta)", lambda: martingale.limit),
            "alarm": ("1 once the stream has changed", lambda: int(martingale.alarm is not None)),
        }
        for name, (about, value) in told.items():
            Gauge(f"clip_ood_watch_{name}", about, registry=self.registry).set_function(value)


class Counted:
    """ASGI middleware that counts every answer, also those of other middleware within it."""

    def __init__(self, app: Call, figures: Figures, paths: frozenset[str], timed: str) -> None:
        self.app, self.figures, self.paths, self.timed = app, figures, paths, timed

    async def __call__(self, scope: Scope, receive: Call, send: Call) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def send_counted(message: Scope) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            self.figures.requests.labels(path, str(status)).inc()
            if path == self.timed and status == 200:
                self.figures.seconds.observe(time.perf_counter() - begun)
