"""Says which named image sets are there, which are missing, and how to get them.

clip-ood catalog [--root data]
clip-ood catalog get NINCO Textures [--root data]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from clip_ood.config.sets import entry
from clip_ood.data.catalog.get import get
from clip_ood.data.catalog.state import advice, states, table
from clip_ood.errors import ConfigError
from clip_ood.files.remote.address import is_address
from clip_ood.files.writing import check_writable
from clip_ood.process.streams import Parser
from clip_ood.runs.going_on import again, stoppable
from clip_ood.terminal.console import Terminal
from clip_ood.terminal.shown import say


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="clip-ood catalog", description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data", help="the folder data.root (default: data)")
    commands = parser.add_subparsers(dest="command", metavar="get NAME …")
    getting = commands.add_parser("get", help="download sets")
    getting.add_argument("names", nargs="+", metavar="NAME")
    getting.add_argument("--root", default=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    root = Path(arguments.root).expanduser()
    if is_address(arguments.root) or (root.exists() and not root.is_dir()):
        raise ConfigError(
            f"--root: {arguments.root} is no folder of this machine: name the one that holds the sets, or is to hold them"
        )
    if arguments.command == "get":
        chosen = [entry(name) for name in arguments.names]
        check_writable(root)
        with stoppable(lambda: f"What was downloaded is kept. Go on with: {again('catalog', argv)}"):
            for wanted in chosen:
                get(wanted, root)
        say(f"Next: name a set in a config, as --data.ood='{{mine: {{catalog: {wanted.name}}}}}' --data.root={root}")
        return
    console = Terminal()
    with console.status("Counting images"):
        found = states(root)
    for line in table(found, root):
        console.print(line, soft_wrap=True)
    if lines := advice(found, root):
        console.print("Incomplete or missing, and how to get it:")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    step = f"Next: clip-ood catalog get NAME --root {root} fetches what can be downloaded"
    console.print(step, markup=False, highlight=False, soft_wrap=True)
