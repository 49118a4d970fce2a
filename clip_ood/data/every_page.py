"""Makes an image of every page of a set's TIFF files."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from clip_ood.data.image_list import ImageList
from clip_ood.data.readers.pages import Pages
from clip_ood.files.pictures import UnreadableImage, page_count

SCANS = (".tif", ".tiff")


def every_page(images: ImageList) -> ImageList:
    """Returns the images with every page of files called .tif or .tiff, which are read for it: scan.tif#1, scan.tif#2, …

    A file of one page, or one that cannot be read, stays one image.
    """
    counts = [_count(images, index) for index in range(len(images))]
    pages, names, of = [], [], []
    for index, (row, name, count) in enumerate(zip(images.rows, images.names, counts, strict=True)):
        pages += [(row, None)] if count == 1 else [(row, page) for page in range(count)]
        names += [name] if count == 1 else [f"{name}#{page + 1}" for page in range(count)]
        of += [index] * count
    labels = None if images.labels is None else tuple(images.labels[index] for index in of)
    reader = Pages(images.reader, pages, tuple(names))
    return replace(images, reader=reader, rows=range(len(names)), labels=labels)


def _count(images: ImageList, index: int) -> int:
    if Path(images.names[index]).suffix.lower() not in SCANS:
        return 1
    try:
        return page_count(io.BytesIO(images.reader.open(images.rows[index])))
    except (OSError, UnreadableImage):  # is reported when it is read, with all others
        return 1
