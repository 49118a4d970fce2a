"""Finds images that are in two sets of a run, however lists, folders and links lead to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import combinations

from clip_ood.config.set_keys import may_share, option_of
from clip_ood.data.image_list import ImageList
from clip_ood.errors import ConfigError

Folder = tuple[int, int]  # device and inode


def check_apart(images: dict[str, ImageList]) -> None:
    """Raises ConfigError if a file is an image of two sets that must have none in common; it names their number and the first."""
    listed = {key: paths for key, each in images.items() if len(each) and (paths := each.paths()) is not None}
    folders = {key: _folders(paths) for key, paths in listed.items()}
    for one, other in combinations(listed, 2):
        common = set(folders[one].values()) & set(folders[other].values())
        if not common or may_share(one, other):
            continue
        theirs = {file for file, _ in _files(listed[one], folders[one], common)}
        of_both = [place for file, place in _files(listed[other], folders[other], common) if file in theirs]
        if of_both:
            first = images[other].names[of_both[0]]
            raise ConfigError(
                f"{len(of_both)} of {len(images[other])} images of {option_of(other)} are images of {option_of(one)} as well ({first}): an "
                "image that is scored as one must not be taken for the other. Take them out of one of both"
            )


def _folders(paths: list[str]) -> dict[str, Folder]:
    """Returns the device and inode of every folder that images lie in, which are the same by any link or spelling."""
    found = {}
    for spelled in {os.path.dirname(path) for path in paths}:
        state = os.stat(spelled or ".")
        found[spelled] = (state.st_dev, state.st_ino)
    return found


def _files(
    paths: list[str], folders: dict[str, Folder], common: set[Folder]
) -> Iterator[tuple[tuple[Folder, str], int]]:
    """Yields the images in some of the folders: folder and file name, and the place in the set."""
    for place, path in enumerate(paths):
        spelled, file = os.path.split(path)
        if (folder := folders[spelled]) in common:
            yield (folder, file), place
