"""Divides images into train, val and test: seeded, stratified by class, and independent of the place and order of files."""

from __future__ import annotations

from collections import defaultdict

from clip_ood.data.image_list import ImageList, lot


def split(images: ImageList, shares: dict[str, float], rest: str, seed: int) -> dict[str, list[int]]:
    """Returns the positions of each part.

    Every class gives round(share · n) of its n images to each named part and the others to `rest`, which keeps at least one
    image of each class.

    >>> from pathlib import Path
    >>> from clip_ood.data.readers.files import Files
    >>> images = ImageList.of("id", Path(), Files(Path(), tuple("abcdefghij"), (0,) * 10))
    >>> {part: len(rows) for part, rows in split(images, {"test": 0.3, "val": 0.2}, "train", 42).items()}
    {'test': 3, 'val': 2, 'train': 5}
    """
    by_class = defaultdict(list)
    for index in sorted(range(len(images)), key=lambda i: lot(seed, images.names[i])):
        by_class[images.labels[index] if images.labels is not None else 0].append(index)
    parts = {part: [] for part in (*shares, rest)}
    for members in by_class.values():
        count, start = len(members), 0
        for part, share in shares.items():
            stop = min(start + int(share * count + 0.5), count - 1)  # halves are rounded up
            parts[part] += members[start:stop]
            start = stop
        parts[rest] += members[start:]
    return {part: sorted(rows) for part, rows in parts.items()}
