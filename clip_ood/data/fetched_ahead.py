"""Reads new images at addresses before they are asked for, several at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from clip_ood.data.inputs import Source
from clip_ood.data.readers.objects import Object
from clip_ood.files.remote.ahead import ahead


@dataclass(frozen=True)
class _Outcome:
    """What came of reading a place: its content, or an error."""

    content: bytes | None
    error: Exception | None = None

    def read(self) -> bytes:
        if self.error is not None:
            raise self.error
        return self.content


def fetched_ahead(sources: Iterable[Source]) -> Iterable[Source]:
    """Returns the same sources, of which objects are read by threads, several at the same time and before they are asked for."""
    sources = list(sources)
    return ahead(_fetched, sources) if any(isinstance(each.place, Object) for each in sources) else sources


def _fetched(source: Source) -> Source:
    if not isinstance(source.place, Object):
        return source
    try:
        return replace(source, place=_Outcome(source.place.read()))
    except Exception as error:  # is raised where the source is read
        return replace(source, place=_Outcome(None, error))
