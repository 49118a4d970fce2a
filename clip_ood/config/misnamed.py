"""Guesses what a user meant by a place that is not there: a place of another kind, a pattern, a stream, an archive."""

from __future__ import annotations

import os
import re
from pathlib import Path

from clip_ood.files.archive_names import ARCHIVES, archive_of
from clip_ood.files.regular_file import special
from clip_ood.files.remote.address import EXTRAS as PROTOCOLS

UNREAD = (".tar.zst", ".tzst", ".tar.lz4", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
LISTS = (".txt", ".lst", ".list", ".csv")
STREAM = re.compile(r"pipe:|[a-z][a-z0-9]+:/")  # pipe:curl …, ftp://…; a drive of Windows has one letter
ELSEWHERE = f"Images are read from this machine and from addresses of {', '.join(f'{each}://' for each in PROTOCOLS)}: download others first"
PATTERN = re.compile(r"[*?]|\{.*\}")
RANGES = "Tar files are named one by one or as a range of numbers, name-{000..009}.tar, which tells when one is missing"


def advice(option: str, kind: str, place: Path) -> str:
    """Says how to name the set under `option` if its `kind` (folder, list or shards) is not at `place`; "" without an idea."""
    if STREAM.match(str(place)):
        return f"{ELSEWHERE}."
    if (other := special(place)) is not None:
        return f"This is {other}: images are read more than once, so save what it gives in a file, and name that."
    if place.is_dir():
        return f"This is a folder: name it as --{option}='{{folder: {place}}}'.{tars_in(place)}"
    if place.is_file():
        if archive_of(place) is not None:
            return f"This is an archive: name it as --{option}='{{folder: {place}}}', or as shards."
        if is_unread(place.name):
            return (
                f"This is an archive of a kind that is not read: unpack it, or pack it as {' or '.join(ARCHIVES[:2])}."
            )
        if place.name.lower().endswith(".parquet"):
            return f"This is a parquet file: name it as --{option}='{{parquet: {place}}}'."
        if place.name.lower().endswith(LISTS):
            return f"This is a file: a list of images is named as --{option}='{{list: {place}}}'."
        return "This is a file: name the folder that it lies in."
    if not PATTERN.search(
        re.sub(r"\{\d+\.\.\d+\}(?=[^/]*$)", "", str(place), count=1) if kind == "shards" else str(place)
    ):
        return ""
    return "Patterns are not filled in here." + (f" {RANGES}." if kind == "shards" else "")


def tars_in(folder: Path) -> str:
    """Says how to name the tar files in a folder; it is empty without any."""
    try:
        found = sorted(
            name for name in os.listdir(folder) if name.lower().endswith(".tar") and not name.startswith(".")
        )
    except OSError:
        return ""
    return f" It holds {len(found)} tar files, as {found[0]}. {RANGES}, under the key shards." if found else ""


def is_unread(name: str) -> bool:
    """Says whether a file is an archive, or compressed, in a way that is not read, by its name."""
    return name.lower().endswith(UNREAD) and not name.lower().endswith(ARCHIVES)


def of_path(path: str) -> str:
    """Says what is wrong with a path on the command line of detect.py that is not there; it is empty without an idea."""
    if STREAM.match(path):
        return f". {ELSEWHERE}"
    if PATTERN.search(path):
        return ". Patterns such as * and {000..009} are filled in by the shell: leave out the quotes (and {…} wants bash or zsh)"
    return ""
