"""Readers give the images of a set; there is one class for each kind of source."""

from clip_ood.data.readers.reader import Reader, Stamp

__all__ = ["Reader", "Stamp"]
