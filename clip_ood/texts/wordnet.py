"""Reads English nouns and adjectives from WordNet's own files, or from a user's list.

WordNet (Fellbaum 1998; Princeton's licence) keeps the words of a part of speech in a text file, index.noun or index.adj (manual
page wndb(5)); the lemmas of each noun's senses, synsets, are in data.noun. Such a file begins with a licence, whose lines begin
with spaces. Each further line starts with a word, in lower case and with underscores for spaces. Debian's `wordnet-base`, NLTK's
`corpora/wordnet` and Princeton's archives hold the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clip_ood.errors import UserError
from clip_ood.files.regular_file import no_file, special
from clip_ood.files.text_files import read_lines, read_text

PLACES = (Path("data/wordnet"), Path("/usr/share/wordnet"))  # from clip_ood.demo.wordnet, from Debian's package
NOUNS, ADJECTIVES, SYNSETS = "index.noun", "index.adj", "data.noun"


@dataclass(frozen=True)
class Words:
    """Words with spaces between their parts, each once and either a noun or an adjective."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.nouns) + len(self.adjectives)

    def draw(self, count: int | None) -> Words:
        """Returns a seeded draw of `count` words, nouns and adjectives in proportion to their numbers, or all words for None."""
        if count is None or count >= len(self):
            return self
        chosen = sorted(random.Random(0).sample(range(len(self)), count))
        nouns = len(self.nouns)
        return Words(
            tuple(self.nouns[i] for i in chosen if i < nouns),
            tuple(self.adjectives[i - nouns] for i in chosen if i >= nouns),
        )


def find_words(source: str | Path) -> Path:
    """Returns what `source` stands for: `wordnet`, a folder with WordNet's files or with `lexicographer_files`, or a text file with
    one noun on each line.

    Raises: FileNotFoundError, which says how to get WordNet.
    """
    folders = PLACES if str(source) == "wordnet" else (Path(source),)
    if found := next((path for path in folders if all((path / name).is_file() for name in (NOUNS, ADJECTIVES))), None):
        return found
    if str(source) != "wordnet" and (Path(source).is_file() or lexicographer_files(Path(source))):
        return Path(source)
    if special(source) is not None:
        raise FileNotFoundError(f"{source} is no text file{no_file(source)}")
    looked = " or ".join(map(str, folders))
    raise FileNotFoundError(
        f"There is no WordNet ({NOUNS} and {ADJECTIVES}) in {looked}. Get it: clip-ood demo wordnet (Debian or Ubuntu, "
        "a 6 MB download, no root), or apt-get install wordnet-base; or name a folder that holds these files, as NLTK's "
        "nltk_data/corpora/wordnet, or noun.*.txt and adj.*.txt; or a text file with one noun a line"
    )


def lexicographer_files(folder: Path) -> dict[str, Path]:
    """Returns the text files noun.*.txt and adj.*.txt of a folder by their names without .txt, in the order of these names.

    NegLabel's and CSP's authors publish their candidates in such files, one word on each line, named as the files of WordNet's
    lexicographers.
    """
    found = sorted([*folder.glob("noun.*.txt"), *folder.glob("adj.*.txt")])
    return {path.stem: path for path in found}


def read_words(source: str | Path, without: Collection[str] = ()) -> Words:
    """Returns the words of `source` (see `find_words`), in its order; a word that is also a noun is no adjective here.

    `without` names lexicographer files whose words are left out, unless they are in another file as well.
    Raises: FileNotFoundError if it is not there, ValueError for a file without words.
    """
    path = find_words(source)
    if path.is_file():
        words = Words(_distinct(read_lines(path)))
    elif (path / NOUNS).is_file():
        words = _apart(_entries(path / NOUNS), _entries(path / ADJECTIVES))
    else:
        files = {name: file for name, file in lexicographer_files(path).items() if name not in without}
        nouns, adjectives = (
            [word for name, file in files.items() if name.startswith(kind) for word in read_lines(file)]
            for kind in ("noun.", "adj.")
        )
        words = _apart(nouns, adjectives)
    if not len(words):
        raise UserError(f"{path} holds no words")
    return words


def find_synsets(places: Sequence[Path] = PLACES) -> Path:
    """Returns the first folder that holds WordNet's nouns and their synsets.

    Raises: FileNotFoundError, which says how to get WordNet.
    """
    if found := next((path for path in places if all((path / name).is_file() for name in (NOUNS, SYNSETS))), None):
        return found
    raise FileNotFoundError(
        f"There is no WordNet ({NOUNS} and {SYNSETS}) in {' or '.join(map(str, places))}. Get it: clip-ood demo wordnet "
        "(Debian or Ubuntu, a 6 MB download, no root), or apt-get install wordnet-base"
    )


def lemmas(folder: Path, keys: Sequence[str], names: Sequence[str]) -> list[tuple[str, ...] | None]:
    """Returns the lemmas of the synset of each class: of its key where that is a wnid (n01440764 is the noun at byte 1440764 of
    WordNet 3.0's data.noun), else of its name's first, most frequent, sense. None for a class that WordNet does not know.

    Raises: ValueError for a wnid that is no place of a synset, as in another version of WordNet.
    """
    senses = _first_senses(folder / NOUNS, {_entry(name) for name in names})
    with (folder / SYNSETS).open("rb") as file:
        return [
            _synset(file, int(key[1:]))
            if re.fullmatch(r"n\d{8}", key)
            else _synset(file, senses[_entry(name)])
            if _entry(name) in senses
            else None
            for key, name in zip(keys, names, strict=True)
        ]


def _first_senses(index: Path, wanted: set[str]) -> dict[str, int]:
    """Returns the byte in data.noun of each word's first sense: a line ends with the offsets of all `count` senses."""
    found = {}
    for line in read_text(index).splitlines():
        entry, _, rest = line.partition(" ")
        if entry in wanted:
            fields = rest.split()
            found[entry] = int(fields[-int(fields[1])])
    return found


def _synset(file: BinaryIO, offset: int) -> tuple[str, ...]:
    """Reads a synset's line: offset, file number, n, number of lemmas in base 16, then each lemma with its number."""
    file.seek(offset)
    fields = file.readline().decode().split(" ")
    if fields[0] != f"{offset:08d}":
        raise UserError(f"{file.name} has no synset n{offset:08d}: wnids are those of WordNet 3.0")
    return tuple(plain(lemma) for lemma in fields[4 : 4 + 2 * int(fields[3], 16) : 2])


def _entry(name: str) -> str:
    return name.lower().replace(" ", "_")


def plain(word: str) -> str:
    """Returns the word with spaces for underscores, and none at its ends.

    >>> plain("sea_urchin ")
    'sea urchin'
    """
    return word.replace("_", " ").strip()


def _entries(path: Path) -> Iterator[str]:
    for line in read_text(path).splitlines():
        if line and not line.startswith("  "):
            yield line.split(" ", 1)[0]


def _apart(nouns: Iterator[str] | list[str], adjectives: Iterator[str] | list[str]) -> Words:
    nouns = _distinct(nouns)
    known = set(nouns)
    return Words(nouns, tuple(word for word in _distinct(adjectives) if word not in known))


def _distinct(words: Iterator[str] | list[str]) -> tuple[str, ...]:
    return tuple(filter(None, dict.fromkeys(map(plain, words))))
