"""Downloads WordNet's nouns and adjectives from the Debian package `wordnet-base`, for `data.negative_words: wordnet` and `data.lemmas`.

clip-ood demo wordnet [OUT]          (default data/wordnet; Debian or Ubuntu, 6 MB download, then seconds)

OUT/index.noun, OUT/index.adj   WordNet 3.0: 117,798 nouns, and 18,341 adjectives that are no nouns
OUT/data.noun                   the lemmas of each noun's senses
OUT/LICENSE                     Princeton's licence and Debian's notes
"""

import shutil
from pathlib import Path

from clip_ood.demo.debian import unpacked
from clip_ood.demo.folders import written_whole
from clip_ood.process.locks import in_turn
from clip_ood.process.streams import Parser
from clip_ood.terminal.shown import say
from clip_ood.texts.wordnet import ADJECTIVES, NOUNS, PLACES, SYNSETS, read_words

PACKAGE = "wordnet-base"
ELSEWHERE = (
    "Elsewhere unpack WordNet 3 (wordnet.princeton.edu) or NLTK's wordnet, and set data.negative_words to its folder"
)


def build(out: Path) -> None:
    """Writes the folder, or nothing."""
    with unpacked(PACKAGE, "6 MB", ELSEWHERE) as root, written_whole(out) as folder:
        for name in (NOUNS, ADJECTIVES, SYNSETS):
            shutil.copyfile(root / "usr/share/wordnet" / name, folder / name)
        shutil.copyfile(root / f"usr/share/doc/{PACKAGE}/copyright", folder / "LICENSE")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="clip-ood demo wordnet", description="Fetch WordNet's nouns and adjectives.")
    parser.add_argument("out", nargs="?", type=Path, default=PLACES[0], help="default: %(default)s")
    out = parser.parse_args(argv).out
    with in_turn(out):
        if (out / NOUNS).is_file() and not (out / SYNSETS).is_file():  # of an earlier version
            shutil.rmtree(out)
        if not out.exists():
            build(out)
    words = read_words(out)
    say(f"{out}: {len(words.nouns):,} nouns and {len(words.adjectives):,} adjectives")
    say("Next: --data.negative_words=wordnet lets NegLabel and CSP choose among them")
