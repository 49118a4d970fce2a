"""English nouns and adjectives: WordNet's own files, or somebody's list.

WordNet (Fellbaum 1998; Princeton's licence) keeps the words of a part of speech in a text file, index.noun and
index.adj (manual page wndb(5)): a licence whose lines begin with spaces, then a line a word that starts with it, lower
case, underscores for spaces. Debian's `wordnet-base`, NLTK's `corpora/wordnet` and Princeton's archives hold the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PLACES = (Path("data/wordnet"), Path("/usr/share/wordnet"))  # of demo.wordnet, of Debian's package
NOUNS, ADJECTIVES = "index.noun", "index.adj"


@dataclass(frozen=True)
class Words:
    """Words with spaces between their parts, each once and either a noun or an adjective."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.nouns) + len(self.adjectives)

    def draw(self, count: int | None) -> Words:
        """A seeded draw of `count` words, nouns and adjectives in proportion to their numbers; all words for None."""
        if count is None or count >= len(self):
            return self
        chosen = sorted(random.Random(0).sample(range(len(self)), count))
        nouns = len(self.nouns)
        return Words(
            tuple(self.nouns[i] for i in chosen if i < nouns),
            tuple(self.adjectives[i - nouns] for i in chosen if i >= nouns),
        )


def find_words(source: str | Path) -> Path:
    """What `source` stands for: `wordnet`, a folder with WordNet's files, or a text file with one noun a line.

    Raises: FileNotFoundError, telling how to get WordNet.
    """
    folders = PLACES if str(source) == "wordnet" else (Path(source),)
    if found := next((path for path in folders if all((path / name).is_file() for name in (NOUNS, ADJECTIVES))), None):
        return found
    if str(source) != "wordnet" and Path(source).is_file():
        return Path(source)
    looked = " or ".join(map(str, folders))
    raise FileNotFoundError(
        f"There is no WordNet ({NOUNS} and {ADJECTIVES}) in {looked}. Get it: python -m demo.wordnet (Debian or Ubuntu, "
        "a 6 MB download, no root), or apt-get install wordnet-base; or name a folder that holds these files, as NLTK's "
        "nltk_data/corpora/wordnet, or a text file with one noun a line"
    )


def read_words(source: str | Path) -> Words:
    """The words of `source` (see `find_words`), in its order; one that is a noun as well is no adjective here.

    Raises: FileNotFoundError for what is not there, ValueError for a file without words.
    """
    path = find_words(source)
    if path.is_file():
        words = Words(_distinct(path.read_text(encoding="utf-8-sig").splitlines()))
    else:
        nouns = _distinct(_entries(path / NOUNS))
        known = set(nouns)
        words = Words(nouns, tuple(word for word in _distinct(_entries(path / ADJECTIVES)) if word not in known))
    if not len(words):
        raise ValueError(f"{path} holds no words")
    return words


def plain(word: str) -> str:
    """The word with spaces for underscores, none at its ends.

    >>> plain("sea_urchin ")
    'sea urchin'
    """
    return word.replace("_", " ").strip()


def _entries(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("  "):
            yield line.split(" ", 1)[0]


def _distinct(words: Iterator[str] | list[str]) -> tuple[str, ...]:
    return tuple(filter(None, dict.fromkeys(map(plain, words))))
