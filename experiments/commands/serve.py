"""Judges images over HTTP: POST /predict.

clip-ood serve --run runs/x                     answers at an address of this machine alone, which the terminal shows
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from clip_ood.config.detect_checks import check_delta
from clip_ood.config.encoder_options import add_encoder_options
from clip_ood.config.new_files import check_kept
from clip_ood.errors import ConfigError
from clip_ood.process.called import called
from clip_ood.process.loading import loading
from clip_ood.process.streams import Parser
from clip_ood.process.watch import leave
from clip_ood.serve.limits import Limits

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
TOKEN = "CLIP_OOD_TOKEN"


def main(argv: list[str] | None = None) -> None:
    given = vars(_parser().parse_args(argv))
    check(given)
    with loading():  # torch and FastAPI
        from clip_ood.experiments.serving import Asked, serve

    limits = Limits(**{name: given.pop(f"max_{name}") for name in LIMITS}, seconds=given.pop("patience"))
    serve(Asked(**given | {"token": token_of(given["token"])}, limits=limits))
    leave(0)  # Python itself would wait for pictures that are still decoded


LIMITS = {
    "bytes": "bytes of a request",
    "images": "images of a request",
    "pixels": "pixels of an image",
    "waiting": "images of all requests that wait; more are answered with 503",
    "kept": "bytes of all requests that are received or decoded; more are answered with 503",
    "connections": "open connections; more are answered with 503",
}


def _parser() -> Parser:
    parser = Parser(
        prog=called("serve"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--run", metavar="DIR", type=Path, required=True, help="the finished run, or a copy of its folder detector/")
    add("--host", default="127.0.0.1", help="the address to listen at; 0.0.0.0 lets other machines in [127.0.0.1]")
    add("--port", type=_whole(1, 65535), help="the port to listen at [8710, or a free one]")
    add(
        "--token",
        metavar="TEXT|none",
        help=f"what callers must know, sent as Authorization: Bearer TEXT [{TOKEN} of the environment, or none]",
    )
    add(
        "--detector",
        metavar="NAME",
        help='one or several, with commas between them, or "all" [the run\'s first detector]',
    )
    add("--accept", type=float, metavar="SHARE", help="the share of new ID images to accept [as in the run]")
    add("--per-class", action="store_true", help="decide by a threshold for each predicted class")
    add(
        "--nearest",
        type=_whole(1),
        default=0,
        metavar="N",
        help="name the N ID images that are nearest to each image [none]",
    )
    add(
        "--words",
        type=_whole(1),
        default=0,
        metavar="N",
        help="name the N nearest words of the run's vocabulary [none]",
    )
    add(
        "--watch",
        type=Path,
        metavar="FILE",
        help="also watch whether the stream of images has changed: its scores so far, FILE.safetensors",
    )
    add(
        "--delta",
        type=float,
        metavar="SHARE",
        help="with --watch: the probability of a false alarm over the whole stream [0.01]",
    )
    add("--batch", type=_whole(1), metavar="N", help="images that are judged at a time, at most [as in the run]")
    add(
        "--wait",
        type=float,
        default=5.0,
        metavar="MILLISECONDS",
        help="how long the first image of a batch waits for others [5]",
    )
    add("--decoders", type=_whole(1, 256), default=2, metavar="N", help="threads that decode images [2]")
    add(
        "--patience",
        type=float,
        default=Limits.seconds,
        metavar="SECONDS",
        help="in which a request must have come [30]",
    )
    for name, about in LIMITS.items():
        default = getattr(Limits, name)
        add(f"--max-{name}", type=_whole(1), default=default, metavar="N", help=f"{about} [{default:,}]")
    add("--device", default="auto", help="where images are encoded: cpu, cuda, cuda:1 [cuda if there is a GPU, or cpu]")
    add_encoder_options(parser)
    return parser


def check(given: dict[str, object]) -> None:
    """Raises ConfigError for options that do not go together, and packages that are lacking."""
    accept, watch, delta = given["accept"], given["watch"], given["delta"]
    if accept is not None and not 0 < accept < 1:
        raise ConfigError(f"--accept: {accept:g} must lie between 0 and 1, as 0.95")
    if not 0 <= given["wait"] <= 60_000:
        raise ConfigError(f"--wait: {given['wait']:g} must be a number of milliseconds from 0 to 60,000, as 5")
    if not 0 < given["patience"] <= 3600:
        raise ConfigError(f"--patience: {given['patience']:g} must be a number of seconds above 0, up to 3,600, as 30")
    if delta is not None and watch is None:
        raise ConfigError("--delta goes with --watch FILE")
    check_delta(delta)
    if watch is not None:
        check_kept("--watch", watch)
    if given["max_waiting"] < given["max_images"]:
        raise ConfigError(
            "--max-waiting must be at least --max-images, or no request of that many images is ever taken"
        )
    if given["max_kept"] < given["max_bytes"]:
        raise ConfigError("--max-kept must be at least --max-bytes, or no request of that many bytes is ever taken")
    token_of(given["token"])
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(f"serve needs the package {missing[0].replace('_', '-')}: pip install 'clip-ood[serve]'")


def token_of(text: str | None) -> str | None:
    """Returns the token that callers must know, None if there is none. Raises: ConfigError for one that a header cannot hold."""
    option, text = ("--token", text) if text is not None else (TOKEN, os.environ.get(TOKEN))
    if text is None or (option == "--token" and text == "none"):
        return None
    if not text or not text.isascii() or not text.isprintable() or text != text.strip():
        raise ConfigError(f"{option}: a token has printable ASCII characters, one at least, and no space at its ends")
    return text


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def read(text: str) -> int:
        if text.isdecimal() and least <= int(text) <= (int(text) if most is None else most):
            return int(text)
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number from {least} on{'' if most is None else f' to {most}'}"
        )

    return read
