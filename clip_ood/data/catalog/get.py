"""Downloads, unpacks and counts a set of the catalogue."""

from __future__ import annotations

from pathlib import Path

from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from clip_ood.config.sets import Entry, File
from clip_ood.data.catalog.state import look
from clip_ood.data.catalog.unpack import Damaged, UnsafeArchive, unpack
from clip_ood.errors import ConfigError, UserError
from clip_ood.files.checksum import Checksum, record, recorded
from clip_ood.files.download import download
from clip_ood.files.file_types import WrongType, check_type
from clip_ood.process.locks import in_turn
from clip_ood.terminal.shown import say


def get(entry: Entry, root: Path) -> None:
    """Downloads a set to `root`; files that are there already are left as they are.

    Raises: ConfigError for a set that cannot be downloaded from here, with what to do instead, and for one whose number of
    images is not the published one; DownloadError, UnsafeArchive, Damaged.
    """
    if not entry.files:
        raise ConfigError(f"{entry.name} is not downloaded from here ({entry.licence}; {entry.source}). {entry.how}")
    say(f"{entry.name}: {entry.about}. Licence: {entry.licence}. {entry.source}")
    if entry.overlap:
        say(f"{entry.overlap}.")
    root.mkdir(parents=True, exist_ok=True)
    with in_turn(root / entry.name):
        for file in entry.files:
            _get_file(file, root)
    found = [look(entry, split, root) for split in entry.splits]
    if wrong := next((state for state in found if state.trouble), None):
        raise ConfigError(f"{entry.name} {wrong.split}: {wrong.trouble}")
    for state in found:
        there = f"{state.found:,} images" if state.found is not None else f"not in these files. {entry.how}"
        say(f"{entry.name} {state.split}: {there}")


def _get_file(file: File, root: Path) -> None:
    target, archive = root / file.gives, root / file.name
    if target.exists():
        _check_there(target)
        say(f"{target} is there already")
        return
    published = None if file.md5 is None else Checksum("md5", file.md5)
    known = published or recorded(archive)
    own = archive.is_file()  # the user's, or left by a call that was killed
    if own:
        _check_archive(archive, known)
    else:
        _download(file, archive, known)
    try:
        passed_over = unpack(archive, target)
    except Damaged as error:
        if not own:
            archive.unlink()
        raise Damaged(f"{error}. {'Remove it, and get it' if own else 'It was removed: get it'} again") from error
    except UnsafeArchive as error:
        raise UnsafeArchive(f"{archive}: {error}") from None
    if passed_over:
        say(f"{archive.name}: {_listed(passed_over)}")
    if known is None:
        say(f"No checksum of {file.name} was published. That of this first download is kept in {record(archive)}")
    archive.unlink(missing_ok=True)


def _check_there(target: Path) -> None:
    """Raises ConfigError for a file that holds another answer of a server, which was once kept in its place."""
    try:
        if target.is_file():
            check_type(target)
    except WrongType as error:
        raise ConfigError(f"{target} is not what it should be: {error}. Remove it, and get it again") from None


def _check_archive(archive: Path, known: Checksum | None) -> None:
    try:
        check_type(archive)
        if known is not None:
            known.check(archive)
    except UserError as error:
        raise ConfigError(f"{archive}: {error}. Remove it, and get it again") from None


def _listed(passed_over: list[str], most: int = 3) -> str:
    more = f" and {len(passed_over) - most:,} more" if len(passed_over) > most else ""
    count = "1 member is" if len(passed_over) == 1 else f"{len(passed_over):,} members are"
    return f"{count} passed over, being no files: {', '.join(passed_over[:most])}{more}"


def _download(file: File, archive: Path, known: Checksum | None) -> None:
    bars = Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    task = bars.add_task(file.name)

    def announce(total: int | None) -> None:
        say(
            f"{file.name}: {decimal(total) if total else file.size or 'unknown size'} from {file.url} to {archive.parent}"
        )
        bars.start()

    try:
        download(file.url, archive, known, announce, lambda done, total: bars.update(task, completed=done, total=total))
    finally:
        bars.stop()
