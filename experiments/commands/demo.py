"""Makes the parts of the demo: its encoder, its images, a folder of new images, and WordNet's words."""

from __future__ import annotations

import sys
from importlib import import_module

from clip_ood.process.streams import Parser

PARTS = {
    "encoder": "build the demo encoder, which is not CLIP (half a minute on 2 CPU cores)",
    "images": "build the demo's image folders (Debian or Ubuntu)",
    "mixed": "choose photographs for a run to judge",
    "planted": "hide odd images among photographs, for own_images.yaml to find",
    "wordnet": "fetch WordNet's nouns and adjectives (Debian or Ubuntu)",
}


def main(argv: list[str] | None = None) -> None:
    given = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="clip-ood demo", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, about in PARTS.items():
        parts.add_parser(name, help=about, add_help=False)
    part = parser.parse_known_args(given[:1])[0].part
    import_module(f"clip_ood.demo.{part}").main(given[1:])
