"""Makes the standard streams of a command usable: they are open, take any text, and end quietly when their reader has gone.

Reports of errors, warnings and logs send nothing to them that steers a terminal.
"""

from __future__ import annotations

import argparse
import codecs
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TextIO

from clip_ood.terminal.shown import say, shown

READER_GONE = 141  # the status of a program that SIGPIPE ends
SPELT_OUT = "spelt_out"
PLAIN = {
    "→": "->",
    "−": "-",
    "–": "-",
    "…": "...",
    "×": "x",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "•": "*",
    "·": "*",
    "²": "^2",
}
PLAIN |= {"“": '"', "”": '"', "’": "'", "√": "sqrt ", "‖": "||", "α": "alpha", "λ": "lambda", "μ": "mu", "∞": "inf"}
PLAIN |= dict.fromkeys("─━╸╺", "-") | dict.fromkeys("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", ".")  # rich's progress bars and spinner


class Parser(argparse.ArgumentParser):
    """An argument parser whose messages may repeat any argument."""

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        super()._print_message(message and shown(message), file)


@contextmanager
def usable_streams() -> Iterator[None]:
    """Runs a command with standard streams that are open, and whose encoding takes any text (see `spelt_out`).

    A closed stdout or stderr discards what is written; a closed stdin stays None. Exits with status 141 when the reader of
    stdout has gone (as `head -1` does), and with 2 when stdout cannot take all output.
    """
    _open_what_is_closed()
    _show_what_is_reported()
    codecs.register_error(SPELT_OUT, spelt_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELT_OUT)
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()  # the interpreter would flush it too late to answer a failure
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        sys.exit(READER_GONE)
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):  # rich turns that into status 1
            raise
        _discard_output()
        sys.exit(READER_GONE)
    except OSError as error:
        _discard_output()
        if isinstance(error.__context__, SystemExit) and error.__context__.code:
            raise error.__context__ from None
        say(f"error: not all output could be written to standard output: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def is_closed(stream: io.TextIOBase | None) -> bool:
    """Says whether a standard stream was closed when the command started."""
    return stream is None or getattr(stream, "name", None) == os.devnull


def spelt_out(error: UnicodeError) -> tuple[str, int]:
    """Returns a substitute for characters that the encoding of a stream lacks: ASCII for signs, and escapes for all others.

    >>> spelt_out(UnicodeEncodeError("ascii", "−5 → ü", 0, 6, "not in ASCII"))
    ('-5 -> \\\\xfc', 6)
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelt, error.object[error.start : error.end])), error.end


def _spelt(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()


def _show_what_is_reported() -> None:
    """Makes the interpreter, `warnings` and `logging` print only text that may be shown, since they report names of files."""
    sys.excepthook = _show_traceback
    warnings.showwarning = _show_warning
    logging.setLogRecordFactory(_Shown)


def _show_traceback(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    say("".join(traceback.format_exception(kind, error, place)), end="", file=sys.stderr)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    with suppress(OSError):  # as Python's own hook does
        say(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)


class _Shown(logging.LogRecord):
    def getMessage(self) -> str:
        return shown(super().getMessage())


def _open_what_is_closed() -> None:
    """Opens the null device in place of closed streams.

    Otherwise files that are opened later would take their descriptors, and what libraries write to stderr would end up in them.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free descriptor, which is this one
    sys.stdout, sys.stderr = (
        stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr)
    )


def _discard_output() -> None:
    """Lets the interpreter end without complaining about what it still holds for stdout."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(null, stream.fileno())
