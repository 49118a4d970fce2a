"""Says what a name may be, and when two names are the same to their readers: people, text encoders, file systems."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from unicodedata import category, normalize

LONGEST = 200  # bytes; a file's name has 255 at most, of which the project adds some
DEVICES = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE
)  # of Windows, whatever stands behind a dot


def one_text(name: str) -> str:
    """Returns the name without what cannot be heard: case, Unicode's form, superfluous blanks, and invisible characters.

    >>> one_text(" Cafe\\u0301  Noir") == one_text("café noir")
    True
    """
    folded = normalize("NFC", normalize("NFC", name).casefold())
    return " ".join("".join(each for each in folded if category(each) != "Cf").split())


def twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Returns the first two names that are one text, or None if each is a text of its own."""
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(one_text(name), name)) != name:
            return other, name
    return None


def matches(keys: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Returns for each key the name that is one text with it: the same name, or the only one that differs in case or form."""
    texts = Counter(map(one_text, names))
    by_text = {one_text(name): name for name in names if texts[one_text(name)] == 1}
    by_text |= {name: name for name in names}
    return {key: found for key in keys if (found := by_text.get(key, by_text.get(one_text(key)))) is not None}


def forms(name: str) -> tuple[str, ...]:
    """Returns a name as it is written and in both of Unicode's forms: Macs write é as two characters, other systems as one."""
    return (name,) if name.isascii() else (name, normalize("NFC", name), normalize("NFD", name))


def as_there(path: str) -> str:
    """Returns a path in the Unicode form that its file has, or as it is written if there is no file."""
    written = forms(path)
    return path if len(written) == 1 else next(filter(os.path.lexists, written), path)


def text_fault(text: str | Path) -> str | None:
    """Returns in words why no file can hold this text, or no system this path, or None if one can.

    A path may hold any bytes but NUL.
    """
    if "\0" in str(text):
        return "holds a NUL character"
    if isinstance(text, Path):
        return None
    if any(category(each) == "Cs" for each in text):
        return "holds bytes that are no UTF-8"
    if any(category(each) == "Cc" and each not in "\n\t" for each in text):
        return "holds a control character"
    return None


def fault(name: str, longest: int = LONGEST) -> str | None:
    """Returns in words why a table cannot show this name or a file cannot hold it, or None if both can."""
    if not one_text(name):
        return "is empty or blank"
    if any(category(each) == "Cs" for each in name):
        return "holds bytes that are no UTF-8"
    if any(category(each) in ("Cc", "Zl", "Zp") for each in name):
        return "holds the end of a line or another control character"
    if name != name.strip():
        return "begins or ends with a blank"
    if (size := len(name.encode())) > longest:
        return f"is {size} bytes long, more than {longest}"
    return None


def folder_fault(name: str) -> str | None:
    """Returns why a folder cannot have this name on some system that a run may be copied to, or None if it can.

    >>> folder_fault("con"), folder_fault("a."), folder_fault("v1.5")
    ('is a device on Windows', 'ends with a dot, which Windows drops', None)
    """
    if found := fault(name):
        return found
    if "/" in name or "\\" in name:
        return "holds a slash, which divides folders"
    if not name.strip("."):
        return "stands for another folder"
    if name.endswith("."):
        return "ends with a dot, which Windows drops"
    if DEVICES.fullmatch(name.partition(".")[0].strip()):
        return "is a device on Windows"
    return None


def short(name: str) -> str:
    """Returns the name or, if it is too long for a file, its beginning and a hash of it."""
    content = name.encode("utf-8", "surrogateescape")
    if len(content) <= LONGEST:
        return name
    beginning = content[: LONGEST // 2].decode(errors="ignore")
    return f"{beginning}-{blake2b(content, digest_size=4).hexdigest()}"
