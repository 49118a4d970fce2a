"""Writes a heat map of each flagged image into a folder, to look at."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from clip_ood.data.readers.parquet_rows import place_of
from clip_ood.detect.predictor import Predictor
from clip_ood.errors import UserError
from clip_ood.experiments.set_aside import free_place, parts_of
from clip_ood.files.writing import written_whole
from clip_ood.naming import short
from clip_ood.process.locks import in_turn
from clip_ood.terminal.shown import say


@dataclass(frozen=True)
class HeatMaps:
    """Puts maps of flagged images into `folder`, by the first of the predictor's detectors, which encodes these images once more."""

    folder: Path
    predictor: Predictor

    def take(self, inside: str, *place: str | int | None) -> None:
        """Writes the map of the image at a `Place` to `folder`/`inside`.png; another map of that name gets a number.

        Raises: OSError if the image cannot be read, or the map not be written.
        """
        try:
            found = self.predictor.heat_map(place_of(*place).read(), self.predictor.column)
        except UserError as error:  # the image has changed since it was judged
            raise OSError(str(error)) from error
        file = BytesIO()
        found.captioned().save(file, "PNG")
        *folders, name = parts_of(inside)
        with in_turn(self.folder, lambda line: say(line, file=sys.stderr)):
            target = free_place(
                self.folder,
                [*folders, f"{short(name)}.png"],
                lambda there: there.is_file() and there.read_bytes() == file.getvalue(),
            )
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(target) as written:
                    written.write(file.getvalue())
