"""Judges the images of requests by a loaded detector: first each by itself, as pixels, then a batch of them together."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from PIL import Image
from torch import Tensor

from clip_ood.detect.batches import NOT_FINITE
from clip_ood.detect.prediction_files import COLUMNS, FURTHER
from clip_ood.detect.predictor import Predictor
from clip_ood.detect.prepared import judge_prepared, prepare
from clip_ood.features.identity import identity_of
from clip_ood.files.pictures import decode

Line = dict[str, Any]  # of an image and a detector: what detect.py writes of it; or its path and an error


@dataclass(frozen=True)
class Prepared:
    """An image as the encoder takes it: pixels (3, H, W), and the identity of its file's content."""

    name: str | None
    pixels: Tensor
    content: bytes


class Judge:
    """A predictor that is loaded; `digest` is that of its folder's manifest, `since` the time at which it was loaded."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.digest = predictor, predictor.saved.manifest["digest"]
        self.since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        further = [name for name in FURTHER if getattr(predictor, name)]
        self.columns = (*COLUMNS, *further)

    def prepare(self, name: str | None, content: bytes, most_pixels: int) -> Prepared | str:
        """Decodes a file and fits it to the encoder, or returns the reason why it cannot be judged."""

        def read() -> tuple[Image.Image, bytes]:
            return decode(io.BytesIO(content), most_pixels=most_pixels), identity_of(content)

        found = prepare(read, self.predictor.backbone.transform)
        return found if isinstance(found, str) else Prepared(name, *found)

    def judge(self, images: Sequence[Prepared]) -> list[list[Line]]:
        """Returns for each image its lines, one for each detector, or one with an error."""
        names = [each.name for each in images]
        found = judge_prepared(
            self.predictor, [each.pixels for each in images], [each.content for each in images], names
        )
        return [
            [failed(name, NOT_FINITE)] if predictions is None else [self._line(each) for each in predictions]
            for name, predictions in zip(names, found, strict=True)
        ]

    def _line(self, prediction: Any) -> Line:
        told = asdict(prediction)
        return {name: told[name] for name in self.columns}


def failed(name: str | None, reason: str) -> Line:
    """Returns the line of an image that cannot be judged."""
    return {"path": name, "error": reason}
