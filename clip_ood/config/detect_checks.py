"""Checks the options of detect.py before anything is loaded."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from clip_ood.config.misnamed import is_unread, of_path
from clip_ood.config.new_files import LONGEST_NAME, beside, check_kept, check_new, check_suffix
from clip_ood.errors import ConfigError
from clip_ood.files.archive_names import ARCHIVES, archive_of, exists
from clip_ood.files.remote.address import Address, place_at
from clip_ood.files.writing import check_writable
from clip_ood.process.streams import is_closed
from clip_ood.stream.names import read_methods

FILES = (".csv", ".jsonl", ".parquet")
TABLES = (".csv", ".tsv", ".jsonl", ".json")
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

OF_IMAGES = (
    "--per-class",
    "--nearest",
    "--words",
    "--out",
    "--copy-ood",
    "--heat-maps",
    "--fail-on-ood",
    "--strict",
)


def check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for paths that are not there and options that do not go together."""
    if not (arguments.paths or arguments.export or arguments.with_encoder):
        raise ConfigError(
            "Judge what? Name images, folders, lists of paths, archives, or - for paths on standard input"
        )
    check_paths(arguments.paths)
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
    if not arguments.paths and (given := _given(arguments, OF_IMAGES)):
        raise ConfigError(f"{given[0]} is about images that are judged, and without paths none is: leave it out")
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


def check_paths(paths: Iterable[str]) -> None:
    """Raises UserError as `check_path` does, and ConfigError for a path that is named twice, whose images would count twice."""
    named = set()
    for path in paths:
        place = known = path
        if path != STDIN:
            check_path(path)
            place = place_at(path)
            known = place if isinstance(place, Address) else os.path.abspath(place)
        if known in named:
            raise ConfigError(f"{place} is named twice, and its images would count twice: name it once")
        named.add(known)


def check_path(path: str) -> None:
    """Raises UserError for a path or address of new images at which nothing that is read is, or whose server refuses or does not answer."""
    if not path:
        raise ConfigError("A path is empty, which names nothing: name an image or a folder, the current one as .")
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
    if path.lower().endswith(TABLES) and os.path.isfile(path):
        raise ConfigError(
            f"{path} is a table, and paths are read from text files: write them to one, a path a line, as list.txt"
        )
    if is_unread(path) and os.path.isfile(path):
        raise ConfigError(
            f"{path} is an archive of a kind that is not read: unpack it, and name the folder, or pack it as "
            f"{' or '.join(ARCHIVES[:2])}"
        )


def _given(arguments: argparse.Namespace, options: Iterable[str]) -> list[str]:
    return [option for option in options if getattr(arguments, option.strip("-").replace("-", "_"))]


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
    if given := _given(arguments, UNADAPTED):
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
    if (
        os.environ.get("RAY_ADDRESS")
        and (signed := next(filter(None, map(_signed, arguments.paths)), None)) is not None
    ):
        raise ConfigError(
            f"--engine ray: the cluster of RAY_ADDRESS writes down this command, and {signed} is signed on it: put such addresses into a list, "
            "and name that"
        )
    if find_spec("ray") is None:
        raise ConfigError("--engine ray needs the package ray: pip install 'clip-ood[ray]'")


def _signed(path: str) -> Address | None:
    """Returns the address that a path is, if it is a signed one."""
    place = place_at(path)
    return place if isinstance(place, Address) and place.is_signed else None


def check_delta(delta: float | None) -> None:
    """Raises ConfigError for a delta that is no probability of a false alarm."""
    if delta is not None and not 0 < delta < 1:
        raise ConfigError(f"--delta: {delta:g} must lie between 0 and 1, as 0.01")


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
