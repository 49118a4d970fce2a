"""Flagged images beside each other in a folder, to look at."""

from __future__ import annotations

import filecmp
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clip_ood.data.inputs import Source
from clip_ood.data.shards import Member
from clip_ood.naming import short
from clip_ood.process.locks import in_turn
from clip_ood.terminal.shown import say


@dataclass(frozen=True)
class Aside:
    """Puts flagged images into `folder`, as copies or as links; the images themselves stay where they are."""

    folder: Path
    link: bool = False

    def take(self, inside: str, file: str, member: list | None) -> None:
        """Copies an image (or links it, unless it lies in a shard) to `folder`/`inside`; another image of that name gets a number.

        Other calls may put theirs into the same folder. Raises: OSError where it cannot be read or written.
        """
        parts = [part for part in PurePosixPath(inside).parts if part not in ("/", "..", ".")]
        source = Source("", inside, Path(file), None if member is None else Member(*member))
        with in_turn(self.folder, lambda line: say(line, file=sys.stderr)):
            self._put(source, parts)

    def _put(self, source: Source, parts: list[str]) -> None:
        target, number = self.folder.joinpath(*parts), 1
        while target.is_symlink() or target.exists():
            if _is_it(target, source):
                return
            number += 1
            target = self.folder.joinpath(*parts[:-1], _numbered(parts[-1], number))
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.link and source.member is None:
            target.symlink_to(source.file.resolve())
            return
        partial = target.with_name(f".{short(target.name)}.part")
        try:
            if source.member is None:
                shutil.copyfile(source.file, partial)
            else:
                partial.write_bytes(source.content())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _numbered(name: str, number: int) -> str:
    path = Path(name)
    return f"{short(path.stem)}-{number}{path.suffix}"


def _is_it(target: Path, source: Source) -> bool:
    """Whether an earlier run has put the image there."""
    if target.is_symlink():
        return target.resolve() == source.file.resolve()
    if not target.is_file():  # a folder, a pipe
        return False
    if source.member is not None:
        return target.read_bytes() == source.content()
    return filecmp.cmp(target, source.file, shallow=False)
