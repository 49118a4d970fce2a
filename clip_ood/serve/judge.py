"""Judges the images of requests by a loaded detector: first each by itself, as pixels, then a batch of them together."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from clip_ood.detect.batches import NOT_FINITE
from clip_ood.detect.prediction_files import COLUMNS, FURTHER
from clip_ood.detect.predictor import Predictor
from clip_ood.features.identity import identity_of, pairs
from clip_ood.files.pictures import UnreadableImage, decode
from clip_ood.files.unreadable import NO_MEMORY, is_no_memory

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
        try:
            picture = decode(io.BytesIO(content), most_pixels=most_pixels)
            return Prepared(name, self.predictor.backbone.transform(picture), identity_of(content))
        except UnreadableImage as error:
            return str(error)
        except (ValueError, OSError) as error:  # from the transform, or a decoder's
            return f"{type(error).__name__}: {error}"
        except (MemoryError, RuntimeError) as error:
            if not is_no_memory(error):
                raise
            return NO_MEMORY

    @torch.inference_mode()
    def judge(self, images: Sequence[Prepared]) -> list[list[Line]]:
        """Returns for each image its lines, one for each detector, or one with an error."""
        pixels = torch.stack([each.pixels for each in images]).to(self.predictor.device)
        outputs = self.predictor.outputs(pixels)
        finite = outputs.features.isfinite().all(dim=1)
        rows = finite.nonzero().flatten().tolist()
        found = [[failed(each.name, NOT_FINITE)] for each in images]
        if not rows:
            return found
        if len(rows) < len(images):
            outputs = outputs.map(lambda value: value[finite])
        kept = [images[row] for row in rows]
        judged = self.predictor.predict(outputs, pairs(each.content for each in kept))
        lines = [self._line(each) for each in self.predictor.predictions(judged, [each.name for each in kept])]
        several = len(self.predictor.columns)
        for place, row in enumerate(rows):
            found[row] = lines[place * several : (place + 1) * several]
        return found

    def _line(self, prediction: Any) -> Line:
        told = asdict(prediction)
        return {name: told[name] for name in self.columns}


def failed(name: str | None, reason: str) -> Line:
    """Returns the line of an image that cannot be judged."""
    return {"path": name, "error": reason}
