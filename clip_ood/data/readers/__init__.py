"""Readers: where the images of a set come from, one class a kind of source."""

from clip_ood.data.readers.reader import Reader, Stamp

__all__ = ["Reader", "Stamp"]
