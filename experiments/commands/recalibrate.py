"""Sets the thresholds of a finished run anew, by recent images that a person confirmed as ID. Nothing is fitted again.

clip-ood recalibrate --run runs/x confirmed/ --gathered all --out runs/x-recalibrated
clip-ood recalibrate --run runs/x looked_at/ --decisions decisions.csv --gathered sample --out runs/x-recalibrated
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from clip_ood.command_line import before_and_after_dashes
from clip_ood.config.detect_checks import check_paths
from clip_ood.config.encoder_options import add_encoder_options
from clip_ood.config.misnamed import of_path
from clip_ood.errors import ConfigError
from clip_ood.files.writing import check_writable
from clip_ood.process.called import called
from clip_ood.process.launchers import settle
from clip_ood.process.loading import loading
from clip_ood.process.locks import alone
from clip_ood.process.streams import Parser
from clip_ood.review.decisions_file import read_decisions
from clip_ood.runs.going_on import stoppable

GATHERED = {  # how images were gathered -> why these cannot set a threshold, None where they can
    "all": None,
    "sample": None,
    "accepted": "their scores lie above the old threshold, so that the new one would be too high and would flag more ID images than stated",
    "flagged": "their scores lie below the old threshold, so that the new one would be too low and would let odd images pass",
}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog=called("recalibrate"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_options(parser)
    options, paths = before_and_after_dashes(sys.argv[1:] if argv is None else argv)
    given = parser.parse_intermixed_args(options)
    given.paths += paths
    check(given)
    settle({"devices": 1})
    with loading():  # torch and Lightning
        from clip_ood.experiments.recalibrate import Request, recalibrate

    nothing = f"Nothing was written: {given.out} is made when all images were judged"
    with alone(given.out, "wait until it ends, or name another folder with --out"), stoppable(lambda: nothing):
        recalibrate(Request(**vars(given)))


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="images, folders, text files of paths, or archives, as for detect")
    add("--run", type=Path, required=True, metavar="DIR", help="a finished run, or a copy of its folder detector/")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the new detector's folder; that of the run stays as it is",
    )
    add(
        "--gathered",
        choices=tuple(GATHERED),
        required=True,
        help="how the images came together. all: a person looked at every image of some time, whether it had been flagged or not; sample: "
        "at images drawn at random among them. What was accepted, or flagged, alone is refused: accepted, flagged",
    )
    add(
        "--decisions",
        type=Path,
        metavar="FILE",
        help="says of each PATH whether it is ID (keep, relabel) or not (reject); without it, all are ID",
    )
    add_encoder_options(parser)
    add("--workers", type=int, metavar="N", help="processes that decode images (default: as for detect)")


def check(given: argparse.Namespace) -> None:
    """Raises UserError for images that cannot set a threshold, paths that are not there, and a file that holds no decisions."""
    if reason := GATHERED[given.gathered]:
        raise ConfigError(
            f"--gathered: images that were {given.gathered} are a truncated sample: {reason}. Name ID images whether they had been "
            "flagged or not (all), or those of a random sample that a person has looked at (sample)"
        )
    check_paths(given.paths)
    if given.decisions is not None:
        if not given.decisions.is_file():
            raise ConfigError(f"--decisions: there is no file {given.decisions}{of_path(str(given.decisions))}")
        read_decisions(given.decisions)
    if os.path.lexists(given.out):
        raise ConfigError(f"--out: {given.out} is there already, and is kept: name another folder")
    check_writable(given.out.parent)
