"""Reads text files in UTF-8 or UTF-16, with or without a byte order mark, with the line ends of any system."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from clip_ood.errors import UserError
from clip_ood.files.regular_file import check_regular, no_file, special

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # is tried first, because it begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
OTHER_BYTES = (
    "{} holds bytes that are not UTF-8, which the libraries that write and read there cannot take: rename it (images may have "
    "any names)"
)
START = 8192  # bytes that tell the encoding
LONGEST = 1 << 28  # bytes of a text that is read as a whole
LONGEST_LIST = 1 << 31  # bytes of a list that is kept: twenty million names
LONGEST_NAME = 1 << 15  # characters of a path on any system
TOO_LONG = f"a name in it has over {LONGEST_NAME:,} characters: it is no list of file names"


class NotText(UserError):
    """A file is no text in UTF-8 or UTF-16, or is too large; the message names file, line and encoding."""


def check_size(path: Path, most: int = LONGEST) -> int:
    """Returns the size of a file in bytes without reading it.

    Raises: NotText for a pipe or a device, and for a file of more than `most` bytes; OSError without a file.
    """
    if special(path) is not None:
        raise NotText(f"{path} is no text file{no_file(path)}")
    if (size := check_regular(path)) > most:
        raise NotText(f"{path} has {size:,} bytes, more than any text that is read here ({most:,}): name another file")
    return size


def read_text(path: Path, most: int = LONGEST) -> str:
    """Returns the text of a file, with "\\n" at the ends of lines.

    Raises: NotText as `check_size` does, for a file that is neither UTF-8 nor UTF-16, and for NUL characters; OSError for a file
    that cannot be read.
    """
    size = check_size(path, most)
    with path.open("rb") as file:
        content = file.read(size).removeprefix(codecs.BOM_UTF8)  # leaves out what is appended meanwhile
    encoding = encoding_of(content[:START])
    if b"\0" in content and encoding == "utf-8":  # asked first, so that a picture is not called Latin-1
        raise _holds_nul(path, content[: content.index(0)].decode(encoding, "replace"))
    try:
        text = _unix(content.decode(encoding))
    except UnicodeDecodeError as error:
        raise NotText(_reason(path, content, encoding, error)) from None
    if "\0" in text:
        raise _holds_nul(path, text[: text.index("\0")])
    return text


def read_lines(path: Path) -> list[str]:
    """Returns the lines of `read_text`, the first of which is line 1; a form feed or other separator does not end a line."""
    return read_text(path).removesuffix("\n").split("\n")


def read_names(path: Path) -> Iterator[str]:
    """Yields `names_in` of a file. Raises: NotText, as `check_size` does, already when it is called."""
    check_size(path, LONGEST_LIST)
    return _names_of(path)


def _names_of(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        try:
            yield from names_in(file)
        except NotText as error:
            raise NotText(f"{path}: {error}") from None


def names_as_bytes(names: Iterable[str]) -> bytes:
    """Writes a list of file names that `read_names` gives back: one on each line or, if one holds a line end, ended by NULs."""
    names = list(names)
    lines = not any({"\n", "\r"} & set(name) for name in names) and not "".join(names[:1]).startswith("\ufeff")
    return "".join(name + ("\n" if lines else "\0") for name in names).encode("utf-8", "surrogateescape")


def names_in(file: io.BufferedReader) -> Iterator[str]:
    """Yields the lines of a list of file names as they come, even from an endless stream.

    If its beginning holds NUL bytes, as the output of `find -print0` does, it yields what lies between these instead.
    Bytes that are not UTF-8 stay in the names (as `os.fsdecode` keeps them), since file names may hold any bytes.
    Raises: NotText for UTF-16 that cannot be decoded, and for a name that is longer than any may be.
    """
    start = file.peek(START)[:START]
    encoding = encoding_of(start)
    if encoding == "utf-8" and b"\0" in start:
        yield from _between_nuls(file)
        return
    kept = ("utf-8-sig", "surrogateescape") if encoding == "utf-8" else (encoding, "strict")
    lines = io.TextIOWrapper(file, *kept)
    try:
        while line := lines.readline(LONGEST_NAME + 1):
            if len(line) > LONGEST_NAME:
                raise NotText(TOO_LONG)
            yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise NotText(f"its first bytes are {encoding.upper()}, and others are not ({error.reason})") from None
    finally:
        lines.detach()  # the caller closes the file


def encoding_of(start: bytes) -> str:
    """Returns the encoding of a text that begins with these bytes: the one of its byte order mark, if it has one.

    Without a mark, it is UTF-16 if every second byte is mostly NUL, as in English text, and otherwise UTF-8.
    """
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return encoding
    for encoding, high in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
        if 2 * high.count(0) > len(high):
            return encoding
    return "utf-8"


def not_utf8(name: str) -> bool:
    """Says whether a file name holds bytes that are not UTF-8."""
    return any("\udc80" <= character <= "\udcff" for character in name)


def _between_nuls(file: io.BufferedReader) -> Iterator[str]:
    rest = b""
    while block := file.read1():
        *names, rest = (rest + block).split(b"\0")
        if len(rest) > LONGEST_NAME:
            raise NotText(TOO_LONG)
        if len(block) > 1 and not any(names):  # as in a file with holes; find gives no empty name
            raise NotText("nothing but NUL bytes stands where names were expected")
        yield from map(_decoded, names)
    if rest:
        yield _decoded(rest)


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line(before: str) -> int:
    return _unix(before).count("\n") + 1


def _holds_nul(path: Path, before: str) -> NotText:
    return NotText(f"{path}, line {_line(before)}: a NUL character stands there, so this is no text file")


def _reason(path: Path, content: bytes, encoding: str, error: UnicodeDecodeError) -> str:
    where = f"{path}, line {_line(content[: error.start].decode(encoding, 'replace'))}"
    if encoding != "utf-8":
        return f"{where}: the file's first bytes are {encoding.upper()}, and these are not ({error.reason})"
    start = max(content.rfind(end, 0, error.start) for end in (b"\n", b"\r")) + 1
    line = content[start : start + 60].splitlines()[0].decode("utf-8", "backslashreplace")
    return (
        f"{where}: '{line}' is not UTF-8 (byte 0x{content[error.start]:02x}); the file seems to be in Latin-1 or Windows-1252. "
        "Save it as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8)"
    )
