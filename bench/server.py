"""The server's throughput over detect.py's on the same images, and its slowest answers at 70 % load: python -m bench.server

The clients run on the server's own cores.
"""

from __future__ import annotations

import http.client
import logging
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from bench import chosen, seconds
from bench.detect import SMALL, judged, save
from bench.detect import Sizes as DetectorSizes
from bench.pictures import draw
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.spec import ImageSpec

PROJECT = Path(__file__).parents[1]
DEMO = PROJECT / "data" / "demo_encoder"
KIND = {"content-type": "image/jpeg"}


class Sizes(NamedTuple):
    images: int = 128
    clients: int = 16
    runs: int = 3
    seconds: float = 40.0  # under 70 % load
    bank: int = 20_000
    small: bool = False  # an encoder of no cost


TINY = Sizes(8, 4, 1, 1.0, 50, True)


@contextmanager
def served(run: Path) -> Iterator[int]:
    """Runs a server in a process of its own, and yields its port once it is ready."""
    command = [sys.executable, "-m", "clip_ood", "serve", "--run", str(run)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = int(re.search(r":(\d+)/predict", process.stdout.readline())[1])
            while "Ready" not in (line := process.stderr.readline()):
                if not line:
                    raise RuntimeError("the server has ended")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


class Client:
    """A client that keeps its connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, image: bytes) -> None:
        try:
            self.connection.request("POST", "/predict", image, KIND)
            answer = self.connection.getresponse()
        except (BrokenPipeError, ConnectionResetError):  # it was idle for long, and the server has closed it
            self.connection.close()
            self.connection.request("POST", "/predict", image, KIND)
            answer = self.connection.getresponse()
        told = answer.read()
        if answer.status != 200 or b"is_ood" not in told:
            raise RuntimeError(f"{answer.status}: {told[:200]!r}")


def asked(port: int, images: list[bytes], clients: int) -> None:
    """Asks for all images, one in a request, by some clients at the same time."""
    shares = [images[place::clients] for place in range(clients)]

    def ask(share: list[bytes]) -> None:
        client = Client(port)
        for image in share:
            client.ask(image)

    with ThreadPoolExecutor(clients) as pool:
        for _ in pool.map(ask, shares):
            pass


def latencies(port: int, images: list[bytes], rate: float, duration: float, clients: int) -> list[float]:
    """Returns the seconds from the time at which each request was due to its answer; requests are due at random times (Poisson)."""
    generator = np.random.default_rng(0)
    due = np.cumsum(generator.exponential(1 / rate, max(2, int(rate * duration))))
    mine, begun = threading.local(), time.perf_counter()

    def ask(place: int) -> float:
        if not hasattr(mine, "client"):
            mine.client = Client(port)
        mine.client.ask(images[place % len(images)])
        return time.perf_counter() - begun - due[place]

    with ThreadPoolExecutor(clients) as pool:
        waiting = []
        for place, at in enumerate(due):
            time.sleep(max(0.0, begun + at - time.perf_counter()))
            waiting.append(pool.submit(ask, place))
        return [each.result() for each in waiting]


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    demo = DEMO.is_dir() and not sizes.small
    spec = ImageSpec("open_clip", f"local-dir:{DEMO}") if demo else SMALL
    backbone = create_backbone(spec)
    width = backbone.encode_image(torch.stack([backbone.transform(Image.new("RGB", (64, 64)))])).shape[1]
    with tempfile.TemporaryDirectory() as place:
        run, folder, out = Path(place, "run"), Path(place, "images"), Path(place, "out.csv")
        draw(folder, sizes.images)
        save(run, backbone, spec, width, DetectorSizes(batch=32, bank=sizes.bank))
        images = [each.read_bytes() for each in sorted(folder.iterdir())]
        loading = [seconds(judged, run, folder / "0000.jpg", out) for _ in range(sizes.runs)]
        with served(run) as port:
            asked(port, images, sizes.clients)  # warm up
            own, ours = [], []
            for _ in range(sizes.runs):
                own.append(seconds(judged, run, folder, out) - min(loading))
                ours.append(seconds(asked, port, images, sizes.clients))
            pace = sizes.images / median(ours)
            ratios = [one / other for one, other in zip(own, ours, strict=True)]
            encoder = "the demo encoder" if demo else "a tiny encoder"
            print(
                f"server, images a second with {sizes.clients} clients on the same cores over detect.py's, {sizes.images} JPEGs, {encoder}  "
                f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}; {pace:.1f} images/s)  >= 0.9",
                flush=True,
            )
            told = latencies(port, images, 0.7 * pace, sizes.seconds, 4 * sizes.clients)
    late = float(np.quantile(told, 0.99))
    print(
        f"server at 70 % load, Poisson arrivals for {sizes.seconds:g} s, p99 over mean of the time to an answer  "
        f"{late / mean(told):.2f} (mean {1000 * mean(told):.0f} ms, p99 {1000 * late:.0f} ms, {len(told):,} requests)  < 3"
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
