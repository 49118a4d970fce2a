"""Values that are none of what a key takes, put at every place of what a file holds, and what a command answers."""

from __future__ import annotations

import contextlib
import io
import re
import signal
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from clip_ood.command_line import guarded
from faults.trial import Trial

PARTS = 400  # trials of so many wrong values each as that makes: which there are, only a run tells
SAMPLE = 100  # one trial of so many is in the sample
SECONDS = 20  # that an answer may take
WRONG = {
    "null": None,
    "an empty list": [],
    "a list": ["a", 1],
    "a list of a list": [[[]]],
    "no keys": {},
    "keys": {"a": 1, "b": {"c": None}},
    "true": True,
    "0": 0,
    "-1": -1,
    "3": 3,
    "0.5": 0.5,
    "a huge whole number": 10**40,
    "a huge number": 1e308,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "no text": "",
    "a blank": " ",
    "a word": "other",
    "a NUL character": "a\0b",
    "a slash": "a/b",
    "a folder above": "../x",
    "a device": "/dev/null",
    "a long text": "x" * 5000,
    "bytes that are no UTF-8": "a\udc80b",
    "another Unicode form": "cafe\u0301",
    "two lines": "a\nb",
    "a terminal's escape": "a\x1b[31mb",
}


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """The place of every value in nested mappings and lists, as keys and numbers from the top; of a list only its first, of several
    plain values of one type under names of their own only two."""
    if path:
        yield path
    inside = (
        list(content.items())
        if isinstance(content, dict)
        else list(enumerate(content[:1]) if isinstance(content, list) else ())
    )
    alike = (
        len(inside) > 4 and len({type(value) for _, value in inside}) == 1 and not isinstance(inside[0][1], dict | list)
    )
    for key, value in inside[:2] if alike else inside:
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple, value: Any) -> Any:
    """A copy with `value` at a place."""
    copy = deepcopy(content)
    above = copy
    for key in path[:-1]:
        above = above[key]
    above[path[-1]] = value
    return copy


def without(content: Any, path: tuple) -> Any:
    """A copy without what stands at a place."""
    copy = deepcopy(content)
    above = copy
    for key in path[:-1]:
        above = above[key]
    del above[path[-1]]
    return copy


def mutations(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key left out or given each wrong value; another value at the top: what was done, and the content."""
    for path in places(content):
        shown = ".".join(map(str, path))
        yield f"{shown} left out", without(content, path)
        for name, value in WRONG.items():
            yield f"{shown} is {name}", changed(content, path, value)
        if isinstance(path[-1], str):
            above = reduce(getitem, path[:-1], content)
            for name, key in WRONG.items():
                if isinstance(key, str):
                    renamed = {key if each == path[-1] else each: value for each, value in above.items()}
                    yield f"the key {shown} is {name}", changed(content, path[:-1], renamed) if path[:-1] else renamed
    for name, value in WRONG.items():
        yield f"{name} in place of all", value


def bytes_of(content: bytes, numbers: Any) -> Iterator[tuple[str, bytes]]:
    """A file's bytes cut off, changed and replaced; `numbers` is a random.Random."""
    yield "empty", b""
    for part in (0.3, 0.9):
        yield f"cut off at {part:.0%}", content[: int(len(content) * part)]
    yield "its last byte cut off", content[:-1]
    for _ in range(8):
        place = numbers.randrange(len(content))
        yield (
            f"byte {place} flipped",
            content[:place] + bytes([content[place] ^ 1 << numbers.randrange(8)]) + content[place + 1 :],
        )
    yield "zeros", bytes(len(content))
    yield "noise", numbers.randbytes(max(len(content), 100))


def answered(work: Callable[[], Any], told: str = "") -> int:
    """The exit status of a command in this process: 0, or 2 with a message, which holds `told`.

    Raises: AssertionError for a traceback, another status, an answer without words, and one that does not come.
    """

    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"no answer in {SECONDS} seconds")

    said = io.StringIO()
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            guarded(work)
    except SystemExit as ended:
        message = re.sub("^error: ", "", said.getvalue()).strip()
        assert ended.code in (None, 0, 2), f"exit status {ended.code}"
        assert ended.code != 2 or (message and told in message), f"{message!r} does not say {told!r}"
        return ended.code or 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return 0


def in_parts(of: str, found: Callable[[], list[tuple[str, Callable[[Path], Any]]]]) -> list[Trial]:
    """The wrong values that `found()` gives, each with its name and what tries it in an empty folder, as `PARTS` trials."""
    return [
        Trial(
            f"wrong values in {of}, every {PARTS}th from {first} on", partial(_part, found, first), first % SAMPLE == 0
        )
        for first in range(PARTS)
    ]


def _part(found: Callable[[], list[tuple[str, Callable[[Path], Any]]]], first: int, folder: Path) -> None:
    for number, (what, run) in enumerate(found()[first::PARTS]):
        (place := folder / str(number)).mkdir()
        try:
            run(place)
        except Exception as error:
            raise AssertionError(f"{what}: {error}") from error
