"""What labels stand for: one numbering of the classes for every ID set, and the names that prompts are made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_ood.config.data_schema import Data
from clip_ood.data.class_order import is_number
from clip_ood.data.image_list import ImageList
from clip_ood.errors import ConfigError
from clip_ood.files.regular_file import no_file
from clip_ood.files.remote.fetched import local
from clip_ood.files.text_files import read_lines
from clip_ood.naming import fault, matches, one_text, twins
from clip_ood.process.ranks import say_once
from clip_ood.texts.wordnet import find_synsets, lemmas


@dataclass(frozen=True)
class Classes:
    """K classes in label order: `keys`, what folders and label files call them, `names`, all distinct, for prompts, and `numbers`,
    the labels of sets that give numbers alone."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    numbers: tuple[int, ...]

    def subset(self, keep: Sequence[int]) -> Classes:
        """The classes at the positions `keep`."""
        return Classes(*(tuple(each[i] for i in keep) for each in (self.keys, self.names, self.numbers)))


def _classes(own: tuple[str, ...] | None, names: Sequence[str]) -> Classes:
    """Classes of these names; folders that are numbers are the labels themselves, others count from 0 in their order."""
    keys = own or tuple(names)
    numbers = [int(key) for key in own or () if is_number(key)]
    by_number = len(set(numbers)) == len(keys)
    return Classes(keys, tuple(names), tuple(numbers if by_number else range(len(keys))))


def imagenet_names() -> tuple[str, ...]:
    """open_clip's 1000 ImageNet names, in the order of the wnids, with the two that stand there twice told apart."""
    from open_clip import IMAGENET_CLASSNAMES

    names = list(IMAGENET_CLASSNAMES)
    names[744], names[836] = "projectile", "sunglass"  # n04008634 and n04355933: WordNet's own first words
    return tuple(names)


def imagenet_wnids() -> tuple[str, ...]:
    """The wnids of ImageNet-1k's classes, in label order, which is alphabetical."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def find_classes(data: Data, train: ImageList, reads_text: bool) -> Classes | None:
    """All classes that labels may count through, as data.id.class_names and the training folders tell; None without any.

    Raises: ConfigError for names of the wrong number, not distinct, empty, or lacking for a class folder, for names that belong to
    other folders than their place says, and where a text encoder would read numbers of WordNet or one text for two classes.
    """
    given, own = data.id.class_names, train.class_names
    if given is None:
        classes = None if own is None else _classes(own, own)
    elif given == "imagenet":
        classes = _classes(imagenet_wnids(), imagenet_names())
        if other := sorted(set(own or ()) - set(classes.keys)):
            raise ConfigError(
                f"data.id.class_names: imagenet names the classes of wnids (n01440764, …), and {train.root} holds "
                f"{other[0]!r}. Leave class_names out to take the folders' names"
            )
    elif isinstance(given, Path):
        classes = _from_file(local(data.root / given), train)
    else:
        classes = _from_names(given, train)
    if classes is not None:
        _check_names(classes)
        if reads_text:
            _check_texts(data, classes, train)
    return classes


def _from_file(path: Path, train: ImageList) -> Classes:
    if not path.is_file():
        raise ConfigError(f"data.id.class_names: there is no file {path}{no_file(path)}")
    lines = [line.rstrip() for line in read_lines(path) if line.strip()]
    own, tabs = train.class_names, ["\t" in line for line in lines]
    if own is None or not any(tabs):
        return _from_names([line.strip() for line in lines], train)
    if not all(tabs):
        raise ConfigError(
            f"data.id.class_names: {path} has lines 'folder<tab>name' and one without a tab: {lines[tabs.index(False)]!r}"
        )
    named: dict[str, str] = {}
    for key, names in (line.split("\t", 1) for line in lines):
        name = names.split(",")[0].strip()
        if named.setdefault(key.replace("_", " "), name) != name:
            raise ConfigError(f"data.id.class_names: {path} names the class folder {key!r} twice, and differently")
    found = matches(own, list(named))
    if unnamed := [key for key in own if key not in found]:
        raise ConfigError(f"data.id.class_names: {path} has no line for the class folder {unnamed[0]!r}")
    return _classes(own, [named[found[key]] for key in own])


def _from_names(names: Sequence[str], train: ImageList) -> Classes:
    """A list of names: those of the folders stand for their folders, in whatever order; others for the folders in their order."""
    own = train.class_names
    if own is None or len(own) != len(names):
        return _classes(None, names)
    found = matches(own, [name.replace("_", " ") for name in names])
    given = {name.replace("_", " "): name for name in names}
    if len(found) == len(own):
        return _classes(own, [given[found[key]] for key in own])
    for key, name in zip(own, names, strict=True):
        if found.get(key, name.replace("_", " ")) != name.replace("_", " "):
            raise ConfigError(
                f"data.id.class_names: {given[found[key]]!r} is the name of a class folder of {train.root}, and stands where "
                f"{key!r} is called {name!r}, since some names are no folder's: give a file with a line 'folder<tab>name' for each"
            )
    _say(f"Classes are called in the order of their folders: {_listed(own, names)} (data.id.class_names)")
    return _classes(own, names)


def _listed(own: Sequence[str], names: Sequence[str], most: int = 5) -> str:
    pairs = [f"{key} → {name}" for key, name in zip(own, names, strict=True)]
    return ", ".join(pairs[:most]) + (", …" if len(pairs) > most else "")


def _check_names(classes: Classes) -> None:
    if wrong := [
        (key, why) for key, name in zip(classes.keys, classes.names, strict=True) if (why := fault(name.strip(), 10**6))
    ]:
        raise ConfigError(
            f"The name of the class {wrong[0][0]!r} {wrong[0][1]}: call it otherwise (data.id.class_names)"
        )
    if twice := sorted({name for name in classes.names if classes.names.count(name) > 1}):
        raise ConfigError(
            f"Class names must be distinct; {twice[0]!r} stands for {classes.names.count(twice[0])} classes"
        )


def _check_texts(data: Data, classes: Classes, train: ImageList) -> None:
    """What names are to a text encoder: two that are one, numbers that say nothing to it."""
    if same := twins(classes.names):
        raise ConfigError(
            f"The classes {same[0]!r} and {same[1]!r} of {train.root} are one text to a text encoder: call them otherwise "
            "(data.id.class_names)"
        )
    if data.id.class_names is not None or data.lemmas != "given":
        return
    if all(re.fullmatch(r"n\d{8}", name) for name in classes.names):
        of_imagenet = set(classes.names) <= set(imagenet_wnids())
        raise ConfigError(
            f"The class folders of {train.root} are WordNet's numbers ({classes.names[0]}, …), which say nothing to a text encoder: set "
            f"{'data.id.class_names to imagenet, or ' if of_imagenet else 'data.id.class_names '}to a file with a line 'folder<tab>name' for "
            "each, or data.lemmas to first"
        )
    if all(map(is_number, classes.names)):
        _say(
            f"Classes are called by numbers ({', '.join(classes.names[:3])}, …), in prompts too; data.id.class_names names them"
        )


def _say(text: str) -> None:
    say_once(text)


def called(lemma: str, classes: Classes | None) -> tuple[tuple[str, ...], ...] | None:
    """What prompts call each class: its `given` name, its `first` lemma or `all` of them; says which classes WordNet does not know.

    Raises: ConfigError without WordNet.
    """
    if classes is None:
        return None
    given = tuple((name,) for name in classes.names)
    if lemma == "given":
        return given
    try:
        found = lemmas(find_synsets(), classes.keys, classes.names)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"data.lemmas: {error}") from None
    if unknown := [name for name, each in zip(classes.names, found, strict=True) if each is None]:
        _say(f"WordNet does not know {', '.join(unknown)}: prompts call them so (data.lemmas)")
    found = [each or name for each, name in zip(found, given, strict=True)]
    if lemma == "first":
        found = [each[:1] for each in found]
    times = Counter(tuple(sorted(map(one_text, each))) for each in found)
    if shared := [place for place, each in enumerate(found) if times[tuple(sorted(map(one_text, each)))] > 1]:
        names = ", ".join(classes.names[place] for place in shared)
        _say(f"WordNet calls several classes alike: prompts call them by their own names, {names} (data.lemmas)")
    return tuple(given[place] if place in shared else each for place, each in enumerate(found))
