"""Recognises the hidden files and copies that file managers, network drives and notebooks put beside images."""

from __future__ import annotations

LEFT_OUT = frozenset(
    {
        "@eadir",  # thumbnails: Synology
        "__macosx",  # AppleDouble files: zips made on a Mac
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "#recycle",  # what was deleted: Synology, QNAP, Windows
        "@recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)


def is_hidden(path: str) -> bool:
    """Says whether a relative path, or a folder in it, is hidden or holds no images of its own.

    >>> [is_hidden(path) for path in ("cat/1.png", "./1.png", "cat/.thumbnails/1.png", "@eaDir/1.png", "._1.png")]
    [False, False, True, True, True]
    """
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return any(part.startswith(".") or part.lower() in LEFT_OUT for part in parts)
