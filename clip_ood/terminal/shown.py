"""Cleans text that a person is shown: names of files and messages of libraries may steer a terminal or reorder a line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO
from unicodedata import category

OTHER = re.compile(r"[^ -~]")  # than printable ASCII
PASSWORD = re.compile(  # of which secrets of AWS may hold a slash; behind http:// that would be host:port/…@…
    r"(?<=://)(?:[^\s/@'\"]*:[^\s/@'\"]*|(?<!http://)(?<!https://)(?!arn:)[^\s/@'\"]*:[^\s@'\"]*)@", re.IGNORECASE
)
QUERY = re.compile(  # all of it, as signatures have many names
    r"(https?://[^\s?'\"<>]*)\?[^\s'\"<>]*[^\s'\"<>.,:;)\]]", re.IGNORECASE
)
LAID_OUT = "\n\t"  # are kept in a text of several lines
TURNED = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # marks of direction


def without_secrets(text: str) -> str:
    """Returns a text in which addresses have no passwords, and those of the web no queries, which may be signatures.

    >>> without_secrets("https://example.org/a.zip?X-Amz-Signature=1f: it is not there")
    'https://example.org/a.zip?…: it is not there'
    >>> without_secrets("s3://me:1f@photos/cats, https://example.org/a.zip?hdnts=exp=1~hmac=1f, is that it?")
    's3://…@photos/cats, https://example.org/a.zip?…, is that it?'
    """
    if "://" not in text:
        return text
    return QUERY.sub(r"\1?…", PASSWORD.sub("…@", text))


def without_token(command: Iterable[str]) -> list[str]:
    """Returns the words of a command line in which a dot-dot-dot stands for the value of `--token`.

    >>> without_token(["serve", "--token", "1f", "--token=1f"])
    ['serve', '--token', '…', '--token=…']
    """
    found, last = [], ""
    for word in command:
        found.append("…" if last == "--token" else "--token=…" if word.startswith("--token=") else word)
        last = word
    return found


def shown(text: str, keep: str = LAID_OUT) -> str:
    """Returns the text with its lines and tabs (`keep`), without secrets, and with escapes for what may not be shown.

    These are other control characters (C0, DEL, C1), marks of direction, ends of lines, and bytes that are not UTF-8 (as Python
    keeps them).

    >>> print(shown("a\\x1b[2Jb\\x9bc \\u202egpj.exe\\ntwo"))
    a\\x1b[2Jb\\x9bc \\u202egpj.exe
    two
    """
    text = without_secrets(text)
    if text.isprintable():  # most texts are, and this takes no time
        return text
    return OTHER.sub(lambda found: found[0] if found[0] in keep else _told(found[0]), text)


def one_line(text: str) -> str:
    """Returns a single name as `shown` does, but with escapes for ends of lines and tabs, too.

    >>> print(one_line("a\\nb\\udce9.png"))
    a\\nb\\udce9.png
    """
    return text if text.isprintable() else "".join(map(_told, text))


def say(*values: Any, sep: str = " ", end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Prints as `print` does, but only what may be shown."""
    print(shown(sep.join(map(str, values))), end=end, file=sys.stdout if file is None else file, flush=flush)


def _told(character: str) -> str:
    if character in TURNED or category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character
