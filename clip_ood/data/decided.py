"""Carries out what people decided about ID images: rejected ones leave the ID sets, relabelled ones get another class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from clip_ood.data.class_names import Classes
from clip_ood.data.image_list import ImageList
from clip_ood.errors import ConfigError, nearest
from clip_ood.features.identity import hexadecimal
from clip_ood.naming import matches
from clip_ood.review.decisions import Counting, Decision

if TYPE_CHECKING:
    from clip_ood.data.benchmark import Part

CHANGES = ("reject", "relabel")  # the decisions that change a run


class KnownContents(Protocol):
    """Says which content files were found to have, as `clip_ood.features.known_files.KnownFiles` does."""

    def contents(self, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Decided:
    """The decisions that a run carries out.

    Attributes: of: by the key of an ID set, the decision about each of its rows that has one; gone: the names of the images, first
    the first one, about which there are decisions and which no ID set holds.
    """

    of: Mapping[str, Mapping[int, Decision]]
    gone: tuple[str, ...] = ()

    def rows(self, key: str, decision: str) -> list[int]:
        """Returns the rows of a set about which this was decided."""
        return [row for row, each in self.of.get(key, {}).items() if each.decision == decision]

    def count(self, decision: str) -> int:
        """Returns the number of images, copies too, about which this was decided."""
        return sum(len(self.rows(key, decision)) for key in self.of)

    def about(self) -> dict[str, int]:
        """Returns what results.json says."""
        return {"rejected": self.count("reject"), "relabelled": self.count("relabel"), "gone": len(self.gone)}

    def told(self) -> list[str]:
        """Returns the lines for the terminal."""
        out = self.count("reject")
        lines = [
            f"data.decisions: {out:,} {'image is' if out == 1 else 'images are'} rejected, {self.count('relabel'):,} relabelled"
        ]
        if self.gone:
            lines.append(
                f"data.decisions: decisions about images that are not among the ID images any more change nothing: {len(self.gone):,} (the "
                f"first: {self.gone[0]})"
            )
        return lines


def find_decided(decisions: Counting, images: Mapping[str, ImageList], known: KnownContents) -> Decided:
    """Finds the images of ID sets that decisions are about: by content, wherever their files lie now, or by path where a decision
    names no content. A decision about a content is about all of its copies.

    Files whose content is not `known` are read.
    """
    changes = {
        kind: {name: line for name, (_, line) in of.items() if line.decision in CHANGES}
        for kind, of in (("image", decisions.by_image), ("path", decisions.by_path))
    }
    found, there = {}, set()
    for key, listed in images.items() if any(changes.values()) else ():
        contents = contents_of(listed, known) if decisions.by_image else [""] * len(listed)
        rows = {}
        for row, (content, name) in enumerate(zip(contents, listed.names, strict=True)):
            there |= {pair for pair in (("image", content), ("path", name)) if pair[1] in changes[pair[0]]}
            line = decisions.about(content, name)
            if line is not None and line.decision in CHANGES:
                rows[row] = line
        found[key] = rows
    lost = [line.path or name for kind, of in changes.items() for name, line in of.items() if (kind, name) not in there]
    return Decided(found, tuple(lost))


def contents_of(images: ImageList, known: KnownContents) -> list[str]:
    """Returns the identity of each image's content in hex digits, or "" for an image that cannot be read."""
    if (identities := images.identities()) is None:
        identities, there = known.contents(images.stamps().values)
    else:
        there = np.ones(len(images), bool)
    found = [hexadecimal(each) if is_there else "" for each, is_there in zip(identities, there, strict=True)]
    for row in np.flatnonzero(~there).tolist():
        try:
            found[row] = images.content(row).hex()
        except OSError:  # the run tells it with all others that cannot be read
            continue
    return found


def relabelled(decided: Decided, images: Mapping[str, ImageList], classes: Classes | None) -> dict[str, ImageList]:
    """Returns the image sets with the labels that were decided on. Raises: ConfigError for a label that is none of the classes."""
    changed = dict(images)
    for key in decided.of:
        rows = decided.rows(key, "relabel")
        if rows:
            labels = list(_labels(images[key], decided.of[key][rows[0]]))
            for row in rows:
                labels[row] = _number(decided.of[key][row], images[key], classes)
            changed[key] = replace(images[key], labels=tuple(labels))
    return changed


def _labels(images: ImageList, line: Decision) -> tuple[int, ...]:
    if images.labels is None:
        raise ConfigError(
            f"data.decisions: {line.path or line.image} is to be a {line.label!r}, and the images of {images.root} have no classes: "
            "undo this decision, or move the images into a folder a class"
        )
    return images.labels


def _number(line: Decision, images: ImageList, classes: Classes | None) -> int:
    """Returns the label of the class that a line names."""
    if classes is None:
        numbers = {str(label): label for label in sorted({*images.labels} - {-1})}
    else:
        numbers = {name: place for of in (classes.keys, classes.names) for place, name in enumerate(of)}
    found = matches([line.label], list(numbers)).get(line.label)
    if found is None:
        raise ConfigError(
            f"data.decisions: {line.path or line.image} is to be a {line.label!r}, which is no class of the ID images."
            f"{nearest(line.label, numbers)} It must be one of those that there are"
        )
    return numbers[found]


def kept(decided: Decided, part: Part, was: ImageList, now: ImageList) -> list[int]:
    """Returns the rows of an ID part that were not rejected; `was` and `now` are its image set before and after relabelling.

    Raises: ConfigError if none is left, and for a class of the training images of which none is left.
    """
    out = set(decided.rows(part.images, "reject"))
    left = [row for row in part.rows if row not in out]
    if part.rows and not left:
        raise ConfigError(
            f"data.decisions: all {len(part.rows):,} images of {part.name} are rejected, and a run needs some: keep some, or leave "
            "data.decisions out"
        )
    if part.name == "train" and was.labels is not None:
        lost = {was.labels[row] for row in part.rows} - {now.labels[row] for row in left} - {-1}
        if lost:
            called = now.class_names[min(lost)] if now.class_names else min(lost)
            raise ConfigError(
                f"data.decisions: of the class {called!r} every training image is rejected or relabelled: keep some, or take the class "
                "out of the ID images"
            )
    return left
