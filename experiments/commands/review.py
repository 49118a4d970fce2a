"""Shows the images of a run in a browser, most suspect first, and writes what a person decides about them.

clip-ood review --run runs/own_images           opens at an address of this machine alone, which the terminal shows
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from clip_ood.errors import ConfigError
from clip_ood.process.called import called
from clip_ood.process.streams import Parser
from clip_ood.review.decisions_file import FILE
from clip_ood.runs.run_folder import CONFIG, SUSPECTS

NEEDED = ("fastapi", "uvicorn")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog=called("review"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--run", metavar="DIR", type=Path, required=True, help="the finished run whose images are reviewed"
    )
    parser.add_argument(
        "--decisions",
        metavar="FILE",
        type=Path,
        help=f"where decisions are written [data.decisions of the run, or {FILE} in it]",
    )
    parser.add_argument(
        "--by", metavar="NAME", default="", help="who decides; it is written beside each decision [nobody]"
    )
    parser.add_argument("--port", type=_port, help="the port to listen at [8710, or a free one]")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at; 0.0.0.0 lets other machines in [127.0.0.1]"
    )
    given = parser.parse_args(argv)
    check(given.run, given.decisions)
    from clip_ood.experiments.reviewing import review  # imports FastAPI and the readers of images

    review(given.run, given.decisions, given.host, given.port, given.by)


def check(run: Path, decisions: Path | None) -> None:
    """Raises ConfigError for a folder without suspects, a file that cannot be written, and packages that are lacking."""
    if not (run / CONFIG).is_file():
        raise ConfigError(f"--run: {run} is no run: it holds no {CONFIG}")
    if not (run / SUSPECTS).is_file():
        seeds = sorted(each.parent.name for each in run.glob(f"*/{SUSPECTS}"))
        way_out = (
            f"name one of its seeds, {run / seeds[0]}"
            if seeds
            else "train it with --evaluation.cross_fit=5, or own_images.yaml"
        )
        raise ConfigError(f"--run: {run} has no {SUSPECTS}, which ranks its images: {way_out}")
    if decisions is not None and (decisions.is_dir() or not decisions.absolute().parent.is_dir()):
        raise ConfigError(f"--decisions: {decisions} is no file in a folder that there is")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(f"review needs the package {missing[0]}: pip install 'clip-ood[serve]'")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: expected 1 … 65535")
    return int(text)
