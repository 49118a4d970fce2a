"""Reads new images at addresses before they are asked for, several at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from clip_ood.data.inputs import Source
from clip_ood.data.readers.objects import LEFT_OUT, Object
from clip_ood.errors import UserError
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


def with_versions(sources: Sequence[Source]) -> Sequence[Source]:
    """Returns the same sources; objects that were not listed have the size and version of now, unless their server does not tell."""
    unknown = any(isinstance(each.place, Object) and each.place.size is None for each in sources)
    return list(ahead(_with_version, sources)) if unknown else sources


def _with_version(source: Source) -> Source:
    place = source.place
    if not isinstance(place, Object) or place.address.query == LEFT_OUT:
        return source
    try:
        return replace(source, place=place.detailed(tries=3))
    except (OSError, UserError):  # is raised where the source is read
        return source


def _fetched(source: Source) -> Source:
    if not isinstance(source.place, Object):
        return source
    try:
        return replace(source, place=_Outcome(source.place.read()))
    except Exception as error:  # is raised where the source is read
        return replace(source, place=_Outcome(None, error))
