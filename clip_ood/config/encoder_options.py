"""The options of every command that loads the encoder of a finished run."""

from __future__ import annotations

import argparse


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Adds --encoder, --trust-classes and --allow-download."""
    add = parser.add_argument
    add("--encoder", metavar="PLACE", help="the encoder's folder or checkpoint file, if it is not where the run had it")
    add(
        "--trust-classes",
        action="store_true",
        help="import detector classes and encoders that are not part of this project, and run their code",
    )
    add(
        "--allow-download",
        action="store_true",
        help="fetch the encoder's weights from where the run had them, if the local cache lacks them (default: contact no host)",
    )
