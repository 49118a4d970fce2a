"""Shows on a page whether a stream of predictions has changed since the detector was calibrated. Nothing is judged.

clip-ood watch --run runs/x monday.csv tuesday.csv --out watch.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from clip_ood.config.detect_checks import check_delta
from clip_ood.config.misnamed import of_path
from clip_ood.config.new_files import check_new, check_suffix
from clip_ood.errors import ConfigError
from clip_ood.files.writing import check_writable
from clip_ood.process.called import called
from clip_ood.process.streams import Parser
from clip_ood.terminal.shown import one_line, say


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog=called("watch"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="predictions (.csv, .jsonl, .parquet), in the order of the stream",
    )
    add("--run", type=Path, required=True, metavar="DIR", help="the run that judged, or a copy of its folder detector/")
    add("--out", type=Path, required=True, metavar="FILE", help="the page, FILE.html")
    add("--overwrite", action="store_true", help="replace the file of --out")
    add("--detector", metavar="NAME", help="whose scores (default: the run's first detector)")
    add(
        "--delta",
        type=float,
        metavar="SHARE",
        help="the probability of a false alarm over the whole stream (default: 0.01)",
    )
    given = parser.parse_args(argv)
    check(given)
    from clip_ood.detect.predicted_scores import predicted_scores  # torch
    from clip_ood.detect.saved import SavedDetector
    from clip_ood.detect.watch_file import check_serves
    from clip_ood.report.watch_page import write_watch_page
    from clip_ood.stream.martingale import DELTA

    saved = SavedDetector(given.run)
    column = given.detector or saved.columns[0]
    calibration = saved.calibration(column)
    check_serves(calibration, saved, column)
    classes = saved.manifest["class_names"] or ()
    files = [(str(path), predicted_scores(path, column, calibration, classes)) for path in given.files]
    delta = DELTA if given.delta is None else given.delta
    found = write_watch_page(given.out, files, calibration, column, delta)
    alarm = "no alarm" if found.alarm is None else f"ALARM after image {found.alarm:,}"
    say(one_line(f"{found.seen:,} images by {column}: {alarm} (delta = {found.delta:g})"))
    say(one_line(f"Page: {given.out}"))


def check(given: argparse.Namespace) -> None:
    """Raises ConfigError for files that are not there, are named twice, or cannot be written, and for a delta that is no probability."""
    for path in given.files:
        if not path.is_file():
            raise ConfigError(f"There is no file {path}{of_path(str(path))}")
        if given.files.count(path) > 1:
            raise ConfigError(f"{path} is named twice: its images would stand in the stream twice, which is a change")
    check_delta(given.delta)
    check_suffix("--out", given.out, (".html",))
    if not given.out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {given.out.parent}")
    check_new("--out", given.out, given.overwrite)
    check_writable(given.out.parent)
