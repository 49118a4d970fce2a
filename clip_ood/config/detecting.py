"""Defines the options of detect.py, and checks them before anything heavy is imported."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from clip_ood.config.loading import override
from clip_ood.config.misnamed import is_unread, of_path
from clip_ood.config.shard import read_shard
from clip_ood.config.trainer_keys import check_judging
from clip_ood.config.yaml_text import as_yaml
from clip_ood.detectors.names import STREAM_METHODS
from clip_ood.errors import ConfigError
from clip_ood.files.archive_names import ARCHIVES, archive_of, exists
from clip_ood.files.remote.address import Address, place_at
from clip_ood.files.writing import check_writable, temporary_name
from clip_ood.process.locks import alone, sharing
from clip_ood.process.ranks import is_first
from clip_ood.process.streams import is_closed
from clip_ood.stream.names import read_methods

FILES = (".csv", ".jsonl", ".parquet")
GRAPHS = (".onnx", ".pt2")
STDIN = "-"

UNADAPTED = (  # options of detectors, which --adapt does not ask
    *(
        "--detector",
        "--accept",
        "--fdr",
        "--per-class",
        "--odd",
        "--nearest",
        "--words",
        "--copy-ood",
        "--heat-maps",
        "--fail-on-ood",
        "--watch",
    ),
    *("--export", "--with-encoder"),
)
LONGEST_NAME = 255  # bytes of a file's name, on most systems


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
    add(
        "--trust-classes",
        action="store_true",
        help="import detector classes and encoders that are not part of this project, and run their code",
    )
    add(
        "--allow-download",
        action="store_true",
        help="fetch the encoder's weights from where the run had them, if the local cache lacks them (default: contact no host)",
    )
    add("--encoder", metavar="PLACE", help="the encoder's folder or checkpoint file, if it is not where the run had it")
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


def check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for paths that are not there and options that do not go together."""
    if not (arguments.paths or arguments.export or arguments.with_encoder):
        raise ConfigError(
            "Judge what? Name images, folders, lists of paths, archives, or - for paths on standard input"
        )
    for path in arguments.paths:
        if path != STDIN:
            check_path(path)
        if is_unread(path) and os.path.isfile(path):
            raise ConfigError(
                f"{path} is an archive of a kind that is not read: unpack it, and name the folder, or pack it as "
                f"{' or '.join(ARCHIVES[:2])}"
            )
    if STDIN in arguments.paths and sys.stdin is None:
        raise ConfigError("Standard input is closed, so no paths can be read from it (-)")
    if arguments.paths and arguments.out is None and is_closed(sys.stdout):
        raise ConfigError(
            "Standard output is closed, so no predictions can be printed: write them to a file, --out FILE"
        )
    if arguments.accept is not None and not 0 < arguments.accept < 1:
        raise ConfigError(f"--accept: {arguments.accept:g} must lie between 0 and 1, as 0.95")
    _check_fdr(arguments)
    _check_adapt(arguments)
    _check_watch(arguments)
    _check_shard(arguments)
    _check_ray(arguments)
    if arguments.odd and (arguments.fdr is not None or not arguments.paths):
        raise ConfigError(
            "--odd says how many of the named images a threshold flags: name images that are known to be odd, and leave --fdr out"
        )
    if arguments.workers is not None and not 0 <= arguments.workers <= 1024:
        raise ConfigError(f"--workers: {arguments.workers} must be a number from 0 to 1024")
    if not 0 < arguments.timeout <= 10**7:
        raise ConfigError(f"--timeout: {arguments.timeout:g} must be a number of seconds above 0, as 1800")
    if not 0 <= arguments.max_unreadable <= 1:
        raise ConfigError(f"--max-unreadable: {arguments.max_unreadable:g} must lie between 0 and 1, as 0.01")
    _check_out(arguments)
    for place in (arguments.out, arguments.export):
        if place is not None:
            check_writable(place.parent)
    for place in (arguments.copy_ood, arguments.heat_maps):
        if place is not None:
            check_writable(place)
    if arguments.link and arguments.copy_ood is None:
        raise ConfigError("--link goes with --copy-ood DIR")
    if arguments.export is not None:
        check_suffix("--export", arguments.export, GRAPHS)
        check_new("--export", arguments.export, arguments.overwrite)
        if arguments.paths or arguments.with_encoder:
            raise ConfigError("--export writes a graph and judges nothing: leave paths and --with-encoder out")
    if arguments.with_encoder and arguments.paths:
        raise ConfigError(
            "--with-encoder adds weights to the run and judges nothing: leave the paths out, and judge then"
        )
    for folder in filter(os.path.isdir, arguments.paths):
        for option, place in (
            ("--copy-ood", arguments.copy_ood),
            ("--heat-maps", arguments.heat_maps),
            ("--out", arguments.out),
        ):
            if place is not None and place.resolve().is_relative_to(Path(folder).resolve()):
                raise ConfigError(
                    f"{option}: {place} lies in {folder}, and would be judged the next time: take another place"
                )


def check_path(path: str) -> None:
    """Raises UserError for a path or address of new images at which nothing is, or whose server refuses or does not answer."""
    place = place_at(path)
    if isinstance(place, Address):
        archive = archive_of(place)
        try:
            is_there = exists(place if archive is None else archive[0])
        except OSError as error:
            raise ConfigError(f"{place}: {error.strerror}") from None
        if not is_there:
            raise ConfigError(f"Nothing is at {place}")
    elif not os.path.lexists(place) and archive_of(place) is None:
        raise ConfigError(f"There is no file or folder {path}{of_path(path)}")


def _check_fdr(arguments: argparse.Namespace) -> None:
    if arguments.fdr is None:
        return
    if not 0 < arguments.fdr < 1:
        raise ConfigError(f"--fdr: {arguments.fdr:g} must lie between 0 and 1, as 0.1")
    if arguments.per_class:
        raise ConfigError("--per-class sets a threshold for each class, and --fdr has none: give one of them")
    if arguments.accept is not None:
        raise ConfigError(
            "--accept sets a threshold for each image, and --fdr decides over all together: give one of them"
        )
    if not arguments.paths:
        raise ConfigError("--fdr decides over the images that are judged: name images, or leave it out")


def _check_adapt(arguments: argparse.Namespace) -> None:
    name, memory = arguments.adapt, arguments.memory
    if (name is None) != (memory is None):
        raise ConfigError("--adapt NAME and --memory FILE go together: the method's memory is kept in the file")
    if name is None:
        return
    read_methods([name], "--adapt")
    given = [option for option in UNADAPTED if getattr(arguments, option.strip("-").replace("-", "_"))]
    if given:
        raise ConfigError(
            f"--adapt gives scores that depend on the images before, for which no threshold is calibrated: leave {given[0]} out"
        )
    if not arguments.paths:
        raise ConfigError("--adapt scores images in their order: name some")
    check_kept("--memory", memory)


def _check_watch(arguments: argparse.Namespace) -> None:
    if arguments.watch is None:
        for option, given in (("--delta", arguments.delta is not None), ("--fail-on-alarm", arguments.fail_on_alarm)):
            if given:
                raise ConfigError(f"{option} goes with --watch FILE")
        return
    check_delta(arguments.delta)
    if arguments.odd:
        raise ConfigError(
            "--watch asks whether images have become odd, and those of --odd are known to be: leave one out"
        )
    if not arguments.paths:
        raise ConfigError("--watch watches the images that are judged: name some")
    check_kept("--watch", arguments.watch)


def _check_shard(arguments: argparse.Namespace) -> None:
    if arguments.shard is None:
        return
    for option, given in (
        ("--adapt scores a stream in one order", arguments.adapt),
        ("--export judges nothing", arguments.export),
        ("--with-encoder judges nothing", arguments.with_encoder),
    ):
        if given:
            raise ConfigError(f"{option}, of which there are no shards: leave --shard out")
    if arguments.out is None or STDIN in arguments.paths:
        raise ConfigError(
            "--shard judges a part of inputs that other processes read, too, for a file that all of them write: give --out FILE, the same "
            "for all shards, and a list in a file instead of standard input"
        )


def _check_ray(arguments: argparse.Namespace) -> None:
    if arguments.engine != "ray":
        for option, given in (("--actors", arguments.actors), ("--gpus", arguments.gpus)):
            if given:
                raise ConfigError(f"{option} goes with --engine ray")
        return
    for option in ("adapt", "export", "with_encoder", "shard"):
        if getattr(arguments, option):
            raise ConfigError(f"--{option.replace('_', '-')} does not go with --engine ray: leave one of them out")
    if arguments.out is None or STDIN in arguments.paths:
        raise ConfigError(
            "--engine ray judges on workers, and this process writes a file: give --out FILE, and a list in a file instead of standard input"
        )
    if arguments.workers is not None:
        raise ConfigError("--engine ray reads images in its own workers (--actors): leave --workers out")
    if not 0 <= arguments.gpus <= 64 or (arguments.gpus > 1 and arguments.gpus % 1):
        raise ConfigError(f"--gpus: {arguments.gpus:g} must be a number of GPUs, as 1 or 2, or a share of one, as 0.5")
    if find_spec("ray") is None:
        raise ConfigError("--engine ray needs the package ray: pip install 'clip-ood[ray]'")


def check_delta(delta: float | None) -> None:
    """Raises ConfigError for a delta that is no probability of a false alarm."""
    if delta is not None and not 0 < delta < 1:
        raise ConfigError(f"--delta: {delta:g} must lie between 0 and 1, as 0.01")


def check_kept(option: str, path: Path) -> None:
    """Raises ConfigError for a file that cannot be gone on from and written anew."""
    check_suffix(option, path, (".safetensors",))
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {path.parent}")
    if (size := len(os.fsencode(temporary_name(path)))) > LONGEST_NAME:
        raise ConfigError(
            f"{option}: the name of {path.name} is too long by {size - LONGEST_NAME} bytes for the file that is written beside it: take "
            "a shorter one"
        )
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{option}: {path} is a link to a file that is not there: name that file, and it is made")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{option}: {path} is no file")
    check_writable(path.resolve().parent)


@contextmanager
def alone_at_file(arguments: argparse.Namespace) -> Iterator[None]:
    """Keeps other calls from the file of --out or --export; shards of one file let each other work.

    Raises: InUse; ConfigError if another call has made it meanwhile.
    """
    option, path = ("--out", arguments.out) if arguments.export is None else ("--export", arguments.export)
    if path is None or not is_first():
        yield
        return
    if (shard := arguments.shard) is not None:
        own = path.with_name(f"{path.name}.shard-{shard.number}-of-{shard.of}")
        with alone(own, "this shard is being judged: wait until that ends"), sharing(path):
            check_new(option, path, arguments.overwrite)
            yield
        return
    with alone(path, f"wait until it ends, or name another file, as {option} {_free(path)}"):
        check_new(option, path, arguments.overwrite)
        yield


def beside(out: Path) -> Path:
    """Returns the list of images that could not be judged, which lies beside the file of predictions."""
    return out.with_name(f"{out.name}.unreadable.csv")


def _check_out(arguments: argparse.Namespace) -> None:
    out = arguments.out
    if out is None:
        return
    check_suffix("--out", out, FILES)
    if not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}")
    if (size := len(os.fsencode(f"{beside(out).name}.tmp"))) > LONGEST_NAME:
        raise ConfigError(
            f"--out: the name of {out.name} is too long by {size - LONGEST_NAME} bytes for the files that are written beside it "
            f"({beside(out).name}): take a shorter one"
        )
    check_new("--out", out, arguments.overwrite)


def check_new(option: str, path: Path, overwrite: bool) -> None:
    """Raises ConfigError for a file that is there already, unless it is to be overwritten."""
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{option}: {path} is there already, and is kept. Add --overwrite to make it anew, or name another file, as "
            f"{option} {_free(path)}"
        )


def _free(path: Path) -> Path:
    """Returns the name of a file with the first number that is free."""
    return next(each for number in count(2) if not (each := path.with_stem(f"{path.stem}-{number}")).exists())


def check_suffix(option: str, path: Path, known: tuple[str, ...]) -> None:
    """Raises ConfigError for a file whose name has none of the `known` endings."""
    if path.suffix.lower() not in known:
        raise ConfigError(f"{option}: {path} must end with {' or '.join(known)}")


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
