"""Runs the command `clip-ood`, and the scripts of a clone, which call the same functions.

clip-ood train --config plp_vitg.yaml            as python train.py --config plp_vitg.yaml in a clone
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from clip_ood.process.streams import usable_streams

COMMANDS = {  # name -> its module, and what it does
    "train": ("train", "train a head or the encoder, and score the result"),
    "eval": ("evaluate", "score an encoder or a run's head, or show several runs side by side"),
    "detect": ("detect", "judge new images by a finished run"),
    "recalibrate": ("recalibrate", "set a run's thresholds anew by images that a person confirmed, without fitting"),
    "watch": ("watch", "show on a page whether a stream of predictions has changed"),
    "review": ("review", "look at a run's images in a browser, most suspect first, and decide about them"),
    "serve": ("serve", "judge images over HTTP"),
    "attack": ("attack", "move OOD images until the detectors take them for ID images"),
    "study": ("study", "make a table or a figure over many runs"),
    "catalog": ("catalog", "list the image sets, and fetch those that can be downloaded"),
    "features": ("features", "list, check and clear the feature store, or export the features of a run"),
    "demo": ("demo", "build what the demo needs"),
}


def main() -> None:
    """Runs `clip-ood COMMAND OPTIONS`."""
    given = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if given in COMMANDS:
        run(given, sys.argv[2:])
        return
    with usable_streams():
        if given not in ("--help", "-h"):
            sys.exit(f"error: there is no command {given!r}\n\n{usage()}")
        print(usage())


def usage() -> str:
    """Returns the commands, one on each line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(["usage: clip-ood COMMAND OPTIONS   (clip-ood COMMAND --help explains the options)", "", *lines])


def run(name: str, argv: list[str] | None = None) -> None:
    """Runs a command in a terminal, and reports errors in one line.

    Modules of the current folder can be imported, unless an installed one has their name.
    """
    here, beside = os.getcwd(), str(Path(__file__).parents[1])
    if here not in sys.path:
        sys.path.append(here)
    if (
        sys.path[0] == beside != here
    ):  # a clone's script was called from elsewhere, so its folders are not what these names mean
        sys.path.append(sys.path.pop(0))
    main = command(name)
    from clip_ood.command_line import guarded

    guarded(lambda: main(argv))


def command(name: str) -> Callable[[list[str] | None], None]:
    """Returns the function that carries out a command."""
    try:
        return import_module(f"clip_ood.experiments.commands.{COMMANDS[name][0]}").main
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] == "clip_ood":
            raise
        project = Path(__file__).parents[1]
        install = f"-e {project}" if (project / "pyproject.toml").is_file() else "clip-ood"
        sys.exit(f"error: the package {missing.name} is not installed, which clip-ood needs: pip install {install}")
