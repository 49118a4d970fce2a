"""What people decided about images: a line a decision, and which of several lines about one image counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

KINDS = ("keep", "reject", "relabel", "skip")
UNDO = "undo"  # takes back the last decision about the image that was not taken back yet
DRAWN = "drawn"  # no decision: the image was drawn at random among those that nobody had decided about
WORDS = (*KINDS, UNDO, DRAWN)


@dataclass(frozen=True)
class Decision:
    """One line of decisions.csv.

    Attributes: image: the identity of the image's content in hex digits, or empty if only its path is known; time: ISO 8601, UTC;
    label: the new class, with `relabel`; by: free text; among: with `drawn`, the number of images that were drawn from.
    """

    decision: str
    image: str = ""
    path: str = ""
    label: str = ""
    time: str = ""
    by: str = ""
    among: str = ""


@dataclass(frozen=True)
class Decisions:
    """The lines of a file in their order; `cut` are the numbers of lines that hold only the beginning of a decision."""

    lines: tuple[Decision, ...] = ()
    cut: tuple[int, ...] = ()


@dataclass(frozen=True)
class Counting:
    """The decision that counts about each image that has one, with the place of its line: by the image's content where a line names
    it, and otherwise by its path."""

    by_image: Mapping[str, tuple[int, Decision]]
    by_path: Mapping[str, tuple[int, Decision]]

    def __len__(self) -> int:
        return len(self.by_image) + len(self.by_path)

    def about(self, image: str, path: str) -> Decision | None:
        """Returns the decision about an image with this content and path: the later one, where both have one."""
        found = [each for each in (self.by_image.get(image), self.by_path.get(path)) if each is not None]
        return max(found, key=lambda each: each[0])[1] if found else None


def counting(lines: Iterable[Decision]) -> Counting:
    """Returns what counts: of each image the last decision that no `undo` has taken back.

    A line without a content is about the image that other lines name at its path, if any does.

    >>> found = counting([Decision("reject", "0a", "x.png"), Decision("keep", "0a", "y.png"), Decision("undo", "", "x.png")])
    >>> found.about("0a", "x.png").decision
    'reject'
    """
    lines = list(lines)
    image_at = {line.path: line.image for line in lines if line.image and line.path}
    standing: dict[tuple[str, str], list[tuple[int, Decision]]] = {}
    for place, line in enumerate(lines):
        image = line.image or image_at.get(line.path, "")
        stack = standing.setdefault(("image", image) if image else ("path", line.path), [])
        if line.decision == UNDO:
            del stack[-1:]
        elif line.decision != DRAWN:
            stack.append((place, line))
    last = {key: stack[-1] for key, stack in standing.items() if stack}
    by_image, by_path = (
        {name: found for (each, name), found in last.items() if each == kind} for kind in ("image", "path")
    )
    return Counting(by_image, by_path)
