"""What train.py and eval.py share: options, --help, and errors without a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from configs.loading import ConfigError


def parse(argv: list[str] | None, about: str, options: Callable[[argparse.ArgumentParser], None]):
    """Known options, and the `--key=value` overrides that are left."""
    parser = argparse.ArgumentParser(description=about, add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--config", metavar="NAME.yaml", help="a config: a path, or a name that is looked up in configs/"
    )
    parser.add_argument("--print_config", action="store_true", help="print the complete config and stop")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    parser.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    parser.add_argument("--help", "-h", action="store_true", help="explain every option and key")
    options(parser)
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.help:
        from configs.help import explain

        parser.print_help()
        print("\nKeys of a config; each can be set on the command line:\n" + "\n".join(explain()))
        sys.exit(0)
    return arguments, overrides


def guarded(main: Callable[[], None]) -> None:
    """Runs a script: what the user can mend is one message and exit status 2, not a traceback."""
    try:
        main()
    except (ConfigError, ConnectionError) as error:
        sys.exit(_failed(error))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(_failed(error))


def _failed(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
