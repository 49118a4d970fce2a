"""The options, --help and error reports that all scripts share."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from clip_ood.errors import UserError, raised_in
from clip_ood.process.called import called
from clip_ood.process.launchers import started_by
from clip_ood.process.shortages import lack
from clip_ood.process.stopping import Stopped, ending
from clip_ood.process.streams import Parser, usable_streams
from clip_ood.process.watch import leave, watched
from clip_ood.runs.going_on import ended_early
from clip_ood.terminal.shown import say

OURS = "This is a fault of clip-ood's own: please report it, with the lines above."
THEIRS = "This was raised in {}, which is no part of clip-ood: mend it there."
INTERRUPTED = 130  # the exit status of a command that SIGINT ends

_A = {"study": "a study", "attack": "an attack"}


def parse(
    command: str,
    argv: list[str] | None,
    about: str,
    options: Callable[[argparse.ArgumentParser], None],
    of: Literal["study", "attack"] | None = None,
):
    """Returns known options, and the remaining `--key=value` overrides; --help also explains the keys of what it is `of`."""
    parser = Parser(prog=called(command), description=about, add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--config", metavar="NAME.yaml", help="a config: a path, or a name that is looked up in configs/"
    )
    parser.add_argument("--print_config", action="store_true", help="print the complete config and stop")
    parser.add_argument(
        "--seeds", metavar="SEED", nargs="+", help="make a run for each seed, and show their mean ± std"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an unfinished run, with the settings that it was begun with"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    parser.add_argument("--help", "-h", action="store_true", help="explain every option and key")
    options(parser)
    known, overrides = _divided(sys.argv[1:] if argv is None else argv, parser)
    arguments, unknown = parser.parse_known_args(known)
    overrides += unknown
    if arguments.help:
        from clip_ood.config.help import VALUES, explain

        parser.print_help()
        if of is not None:
            from clip_ood.config.attack_schema import AttackConfig
            from clip_ood.config.study_schema import Study

            section = {"study": Study, "attack": AttackConfig}[of]
            say(f"\nKeys of {_A[of]}:\n" + "\n".join(explain(section)) + "\n\nand of its runs:")
        say("\nKeys of a config; each can be set on the command line:\n" + "\n".join(explain()))
        say(f"\nWhat a value is:\n{VALUES}")
        sys.exit(0)
    if arguments.seeds:
        several = len(arguments.seeds) > 1
        overrides.append("--seeds=" + (f"[{', '.join(arguments.seeds)}]" if several else arguments.seeds[0]))
    return arguments, overrides


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Adds the option --plan, for commands that can look ahead at their runs."""
    parser.add_argument(
        "--plan",
        action="store_true",
        help="begin nothing, but say which images, weights and room there are and what is missing; status 1 if the run would stop",
    )


def _divided(given: list[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Divides arguments into those for the parser's own options, and all keys as `--key=value` in their order.

    argparse itself takes arguments with spaces for values.
    """
    known, overrides, rest = [], [], list(given)
    while rest:
        argument = rest.pop(0)
        key, equals, _ = argument.partition("=")
        if not key.startswith("--") or key in parser._option_string_actions:
            known.append(argument)
        elif equals or key == "--" or not rest or rest[0].startswith("--"):
            overrides.append(argument)
        else:
            overrides.append(f"{argument}={rest.pop(0)}")
    return known, overrides


def before_and_after_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments before the first `--`, and those after it, where nothing is an option."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


def guarded(main: Callable[[], None]) -> None:
    """Runs a command, and reports how it ends.

    What asks for its end (`clip_ood.process.stopping`) gives one line and the exit status; what a user can mend (`UserError`), or
    the file system objects to, gives one message and exit status 2; any other error keeps its traceback, and is told whose code it was raised in.
    """
    threading.excepthook = _of_thread
    try:
        with usable_streams():
            _run(main)
    except Stopped as stopped:
        ending.tell()  # if the end was asked for before the watch had begun
        leave(stopped.code)


def _run(main: Callable[[], None]) -> None:
    try:
        with watched(started_by()), ended_early():
            main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        raise
    except Exception as error:
        if (told := answer(error)) is None:
            with suppress(AttributeError):  # Python 3.10 has no notes
                error.add_note(OURS if (place := raised_in(error)) is None else THEIRS.format(place))
            raise
        try:
            say(f"error: {told}", file=sys.stderr)
        except BrokenPipeError:
            raise
        except OSError:  # standard error goes to a file on a full disk
            pass
        sys.exit(2)


def answer(error: Exception) -> str | None:
    """Returns what a user is told of an error, or None for a fault of this project, whose traceback tells more."""
    told = lack(error)
    if told is None and (isinstance(error, UserError | OSError) or _of_a_name(error)):
        told = str(error)
    return f"{told}{_about_names(told)}" if told else None


def _of_thread(ended: threading.ExceptHookArgs) -> None:
    """Ignores a shortage of the machine in a thread: TensorBoard's writer raises it again in the main thread, which reports it."""
    if ended.exc_value is None or lack(ended.exc_value) is None:
        threading.__excepthook__(ended)


def _of_a_name(error: Exception) -> bool:
    """Says whether a file name cannot be written in the encoding of this environment's file names."""
    return isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8"


def _about_names(message: str) -> str:
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8" or (message.isascii() and "can't encode" not in message):
        return ""
    return f"\nThis environment takes file names for {encoding}; where they are UTF-8, set PYTHONUTF8=1"
