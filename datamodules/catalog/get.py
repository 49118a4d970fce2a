"""A set of the catalogue, downloaded, unpacked and counted."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from clip_ood.shown import say
from configs.errors import ConfigError
from datamodules.catalog.download import download
from datamodules.catalog.entries import Entry, File
from datamodules.catalog.state import look
from datamodules.catalog.unpack import UnsafeArchive, unpack


def get(entry: Entry, root: Path) -> None:
    """Brings a set under `root`; files that are there are left as they are.

    Raises: ConfigError for a set that is not downloaded from here, with what to do instead, and for one whose number of
    images is not the published one; DownloadError, UnsafeArchive.
    """
    if not entry.files:
        raise ConfigError(f"{entry.name} is not downloaded from here ({entry.licence}; {entry.source}). {entry.how}")
    say(f"{entry.name}: {entry.about}. Licence: {entry.licence}. {entry.source}")
    root.mkdir(parents=True, exist_ok=True)
    for file in entry.files:
        with FileLock(root / f"{file.name}.lock"):  # two calls would write the same file
            _get_file(file, root)
        (root / f"{file.name}.lock").unlink(missing_ok=True)
    found = [look(entry, split, root) for split in entry.splits]
    if wrong := next((state for state in found if state.found is not None and not state.whole), None):
        raise ConfigError(
            f"{entry.name}: {wrong.problem or f'{wrong.split} has {wrong.found:,} images, published are {wrong.published:,}'}"
        )
    for state in found:
        there = f"{state.found:,} images" if state.found is not None else f"not in these files. {entry.how}"
        say(f"{entry.name} {state.split}: {there}")


def _get_file(file: File, root: Path) -> None:
    target = root / file.gives
    if target.exists():
        say(f"{target} is there already")
        return
    archive = root / file.name
    if not archive.is_file():
        _download(file, archive)
    try:
        unpack(archive, target)
    except UnsafeArchive as error:
        raise UnsafeArchive(f"{archive}: {error}") from None
    archive.unlink(missing_ok=True)


def _download(file: File, archive: Path) -> None:
    bars = Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    task = bars.add_task(file.name)

    def announce(total: int | None) -> None:
        say(
            f"{file.name}: {decimal(total) if total else file.size or 'unknown size'} from {file.url} to {archive.parent}"
        )
        bars.start()

    try:
        download(
            file.url, archive, file.md5, announce, lambda done, total: bars.update(task, completed=done, total=total)
        )
    finally:
        bars.stop()
