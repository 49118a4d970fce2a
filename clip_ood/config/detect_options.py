"""The options of detect.py."""

from __future__ import annotations

import argparse
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from clip_ood.config.encoder_options import add_encoder_options
from clip_ood.config.loading import override
from clip_ood.config.shard import read_shard
from clip_ood.config.trainer_keys import check_judging
from clip_ood.config.yaml_text import as_yaml
from clip_ood.detectors.names import STREAM_METHODS
from clip_ood.errors import ConfigError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds all options of detect.py."""
    add = parser.add_argument
    add(
        "paths",
        nargs="*",
        metavar="PATH",
        help="images, folders (with everything below), archives (.zip, .tar, .tar.gz), parquet files, text files of paths, addresses of these "
        "(s3://…, https://…), or - for paths on standard input",
    )
    add("--run", type=Path, required=True, metavar="DIR", help="a finished run, or a copy of its folder detector/")
    add(
        "--detector",
        metavar="NAME",
        help="which of the run's detectors (default: its first); several, as knn,vim, or all judge the images in one pass, a "
        "prediction each: the first of them says what --copy-ood and --fail-on-ood go by",
    )
    add("--accept", type=float, metavar="SHARE", help="share of new ID images to accept (default: the run's, 0.95)")
    add(
        "--fdr",
        type=float,
        metavar="SHARE",
        help="decide over all images together, when the last one was judged: of those flagged, at most this share is expected to "
        "be ID (false discovery rate, as 0.1); instead of --accept",
    )
    add(
        "--per-class",
        action="store_true",
        help="decide by a threshold for each predicted class; classes with too few calibration images share that of all",
    )
    add(
        "--odd",
        action="store_true",
        help="the images are known to be odd: give the share that each detector flags with its interval; of several detectors, also "
        "that of the best one, by leave-one-out",
    )
    add(
        "--nearest",
        type=_positive,
        default=0,
        metavar="N",
        help="name the N ID images that are nearest to each image, with their cosines (a further column; default: none)",
    )
    add(
        "--words",
        type=_positive,
        default=0,
        metavar="N",
        help="name the N words of the run's vocabulary that are nearest to each image, with their cosines (a further column; default: none)",
    )
    add(
        "--adapt",
        metavar="NAME",
        help="score the images as a stream, in their order, by a test-time method that learns from them: "
        f"{', '.join(STREAM_METHODS)} (docs/stream.md); scores only, since no threshold holds for them; goes with --memory",
    )
    add(
        "--memory",
        type=Path,
        metavar="FILE",
        help="with --adapt: what the method has learnt, FILE.safetensors; it is made, or gone on from and updated",
    )
    add(
        "--watch",
        type=Path,
        metavar="FILE",
        help="also watch whether the images are still drawn as those that calibrated the first detector (docs/watching.md): the scores of the "
        "stream so far, FILE.safetensors, which is made, or gone on from and updated",
    )
    add(
        "--delta",
        type=float,
        metavar="SHARE",
        help="with --watch: the probability of a false alarm over the whole stream (default: 0.01, or as FILE has it)",
    )
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="write predictions to FILE.csv, .jsonl or .parquet; a killed call can be continued (default: print them)",
    )
    add(
        "--shard",
        type=read_shard,
        metavar="I/N",
        help="judge shard I (0 to N - 1) of N of the images, for N processes that know nothing of each other; then the same command without "
        "--shard writes the file of --out",
    )
    add(
        "--engine",
        choices=("lightning", "ray"),
        default="lightning",
        help="who judges: this process with Lightning's devices, or the workers of Ray Data (pip install 'clip-ood[ray]'), of the cluster "
        "of RAY_ADDRESS or else of this machine (docs/ray.md)",
    )
    add(
        "--actors",
        type=read_actors,
        metavar="N|MIN-MAX",
        help="with --engine ray: how many workers have the predictor, as 4, or 1-16 that follow the load (default: 1 to as many as there are "
        "CPUs, or GPUs, for)",
    )
    add(
        "--gpus",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --engine ray: GPUs of each worker, as 1 or 0.5 (default: none, but one CPU)",
    )
    add("--format", choices=("csv", "jsonl"), default="csv", help="format of printed predictions (default: csv)")
    add("--overwrite", action="store_true", help="replace the file of --out or --export")
    add(
        "--copy-ood",
        "--move-ood",
        type=Path,
        metavar="DIR",
        help="copy flagged images into DIR; nothing is moved (--move-ood is its older name)",
    )
    add("--link", action="store_true", help="with --copy-ood: link the images instead")
    add(
        "--heat-maps",
        type=Path,
        metavar="DIR",
        help="write a picture of each flagged image into DIR that shows where it is unlike the ID images, by the first detector, which "
        "must look at patches (local_knn, gl_mcm); flagged images are encoded once more",
    )
    add("--fail-on-ood", action="store_true", help="exit status 3 when an image is OOD")
    add("--fail-on-alarm", action="store_true", help="exit status 4 once --watch has alarmed")
    add("--strict", action="store_true", help="exit status 1 when an image cannot be judged")
    add(
        "--max-unreadable",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="stop as soon as a larger share of the images cannot be read (default: 0.01; 5 may be in any case, and standard input "
        "is judged to its end)",
    )
    add_encoder_options(parser)
    add("--with-encoder", action="store_true", help="put the encoder's weights into the detector's folder")
    add(
        "--export",
        type=Path,
        metavar="FILE",
        help="write encoder, head and detectors as one graph, FILE.onnx or FILE.pt2, and end",
    )
    add("--batch-size", type=_positive, metavar="N", help="images encoded at a time (default: as in the run)")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode images (default: up to 8 beside a GPU, none beside a CPU)",
    )
    add(
        "--timeout",
        type=float,
        default=1800,
        metavar="SECONDS",
        help="wait this long for an image that is being read, and for other processes, then end (default: 1800)",
    )
    parser.epilog = (
        "Lightning's Trainer takes its keys as --trainer.KEY=VALUE: --trainer.accelerator=gpu --trainer.devices=4"
    )


def trainer_of(overrides: list[str]) -> dict[str, Any]:
    """Returns the keys of Lightning's Trainer among arguments `--trainer.KEY=VALUE`.

    Raises: ConfigError for any other argument, and for a key or value that judging cannot have.
    """
    for argument in overrides:
        if not argument.startswith("--trainer."):
            raise ConfigError(f"detect.py has no option {argument.partition('=')[0]}; see --help")
    found = as_yaml(override({}, overrides).get("trainer", {}))
    check_judging(found)
    return found


def read_actors(text: str) -> tuple[int, int]:
    """Returns the least and the largest number of workers. Raises: ArgumentTypeError.

    >>> read_actors("4"), read_actors("1-16")
    ((4, 4), (1, 16))
    """
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text, re.ASCII)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number of workers, as 4, or the least and the most, as 1-16"
        )
    return least, most


def _positive(text: str) -> int:
    with suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
