"""Sets the thresholds of a finished run anew, by images that a person confirmed as ID."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from clip_ood.calibration import Calibration
from clip_ood.callbacks.prediction_writer import Line, PredictionPrinter
from clip_ood.detect.confirmed import Confirmed, JudgedImage, check_enough, check_not_truncated, confirmed
from clip_ood.detect.decisions import decisions_of
from clip_ood.detect.predictor import Predictor
from clip_ood.detect.recalibrated import calibrations_of, save_recalibrated
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError
from clip_ood.experiments import detect
from clip_ood.files.written_names import in_utf8
from clip_ood.metrics.intervals import share_told
from clip_ood.process.called import called
from clip_ood.review.decisions import counting
from clip_ood.review.decisions_file import read_decisions
from clip_ood.runs.going_on import next_step
from clip_ood.terminal.shown import one_line, say, without_secrets


@dataclass(frozen=True)
class Request:
    """The request to `clip-ood recalibrate`: the run, the images, how they were gathered, and the new folder."""

    run: Path
    paths: list[str]
    gathered: str
    out: Path
    decisions: Path | None = None
    encoder: str | None = None
    allow_download: bool = False
    trust_classes: bool = False
    workers: int | None = None


def recalibrate(request: Request) -> None:
    """Judges the images by the run's detectors, makes their scores the calibration of a new folder, and says what changed.

    Raises: UserError for images that cannot set a threshold, as `clip_ood.detect.confirmed` says.
    """
    decided = None if request.decisions is None else counting(read_decisions(request.decisions).lines)
    saved = SavedDetector(request.run, request.trust_classes)
    old = {each.column: each.calibration for each in decisions_of(saved, saved.columns)}
    lines = _judged(request, saved)
    unreadable = [each for each in lines if "error" in each and each["is_image"]]
    images = judged_images(line for line in lines if "error" not in line)
    found = confirmed(images, decided, request.decisions)
    check_enough(found, saved.accept)
    check_not_truncated(images, old, saved.accept)
    new = calibrations_of(found.images, saved.columns, saved.reference.class_names)
    about = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "images": len(found.images),
        "gathered": request.gathered,
        "paths": [one_line(without_secrets(in_utf8(path))) for path in request.paths],
        "left_out": found.left_out | ({"unreadable": len(unreadable)} if unreadable else {}),
    }
    save_recalibrated(request.out, saved, new, found.images, about)
    for line in [f"not judged: {each['path']}: {each['error']}" for each in unreadable[:10]]:
        say(one_line(line))
    for line in told(found, old, new, saved.accept):
        say(one_line(line))
    say(f"Detector: {request.out}; that of {request.run} is as it was")
    say(next_step([*called("detect").split(), "--run", str(request.out), "photos/"], "judge new images"))


def _judged(request: Request, saved: SavedDetector) -> list[Line]:
    """Returns the lines of all images, by all detectors. Raises: TooManyUnreadable."""
    asked = detect.Request(request.run, request.paths, workers=request.workers)
    trainer, tolerated, lines = detect.judging_trainer(asked), asked.tolerated(), []

    def take(line: Line) -> None:
        tolerated.take(line)
        lines.append(line)

    with redirect_stdout(sys.stderr):
        backbone = saved.backbone(request.encoder, request.allow_download)
        detect.judge(asked, Predictor(saved, backbone, saved.columns), trainer, PredictionPrinter(take))
    if not any("error" not in line for line in lines):
        raise UserError(
            f"{', '.join(request.paths[:3])} holds no image that can be read: name images that a person has confirmed"
        )
    return lines


def judged_images(lines: Iterable[Line]) -> list[JudgedImage]:
    """Returns the images of lines that stand detector by detector for each image."""
    images: list[JudgedImage] = []
    for line in lines:
        if not images or line["detector"] in images[-1].scores:
            known = line["copy_of"] is not None
            images.append(JudgedImage(line["path"], line["content"], {}, {}, line["predicted_class"], known))
        images[-1].scores[line["detector"]] = line["score"]
        images[-1].is_ood[line["detector"]] = line["is_ood"]
    return images


LEFT_OUT = {
    "learnt from": "that the detector has learnt from, or copies of such images",
    "copies": "that are copies of others",
    "rejected": "that are odd by your decisions",
}


def told(found: Confirmed, old: dict[str, Calibration], new: dict[str, Calibration], accept: float) -> list[str]:
    """Says how the threshold of the first detector has moved, how many confirmed images its old one flags, and what was left out."""
    n, name = len(found.images), next(iter(new))
    flagged = sum(each.is_ood[name] for each in found.images)
    lines = [
        f"{name}: the threshold was {old[name].threshold(accept):.6g} and is {new[name].threshold(accept):.6g}, calibrated on {n:,} "
        f"confirmed images: it accepts {100 * new[name].expected(accept):.1f} % of new ID images that are drawn as these were",
        f"{name}: of them, the old threshold flags {share_told(flagged, n)}",
    ]
    if others := len(new) - 1:
        lines.append(f"The thresholds of {others} other detectors are set by the same images")
    reasons = [f"{number:,} {LEFT_OUT[why]}" for why, number in found.left_out.items()]
    return lines + ([f"Left out: {'; '.join(reasons)}"] if reasons else [])
