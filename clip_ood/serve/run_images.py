"""The images of a run as pictures for a page, as long as they are still the images that the run has scored."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence

from clip_ood.data.image_list import ImageList, Loaded
from clip_ood.errors import UserError
from clip_ood.serve.run_suspects import Suspects

SIDES = {"small": 160, "large": 1200}  # pixels of a picture's longer side
AT_ONCE = threading.BoundedSemaphore(max(2, (os.cpu_count() or 2) // 2))  # pictures that are decoded; each may be large


class Gone(UserError):
    """An image is not there any more, or is another one by now."""


class RunImages:
    """The images of a run by their row in suspects.csv; no other file can be asked for."""

    def __init__(self, suspects: Suspects, lists: Sequence[ImageList]) -> None:
        self.suspects = suspects
        self.places = {name: (each, row) for each in reversed(lists) for row, name in enumerate(each.names)}

    def load(self, row: int) -> Loaded:
        """Reads an image without decoding it. Raises: Gone if it is not the image that was scored."""
        about = self.suspects.images[row]
        if about.path not in self.places:
            raise Gone("The folder of the run does not list this image any more.")
        images, place = self.places[about.path]
        try:
            loaded = images.load(place)
        except OSError as error:
            raise Gone(f"This image cannot be read any more ({error.strerror or error}).") from error
        if about.image is not None and loaded.identity.hex() != about.image:
            raise Gone("The file holds another image than the one that was scored: run the training again to score it.")
        return loaded

    def picture(self, row: int, size: str) -> bytes:
        """Returns an image as JPEG in one of the `SIDES`, unless it is smaller. Raises: Gone, UnreadableImage."""
        loaded = self.load(row)
        with AT_ONCE:
            picture = loaded.picture()
            picture.thumbnail((SIDES[size], SIDES[size]))
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=85)
        return file.getvalue()
