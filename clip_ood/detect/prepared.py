"""Prepares images one by one for an encoder, and judges those of a batch for which it gives numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from clip_ood.data.readers.reader import NoImage
from clip_ood.features.identity import pairs
from clip_ood.files.pictures import UnreadableImage
from clip_ood.files.unreadable import NO_MEMORY, OF_THE_FILE, Passing, check_of_file, is_no_memory

if TYPE_CHECKING:
    from clip_ood.detect.prediction import Prediction
    from clip_ood.detect.predictor import Predictor


def prepare(
    read: Callable[[], tuple[Image.Image, bytes]], transform: Callable[[Image.Image], Tensor]
) -> tuple[Tensor, bytes] | str:
    """Reads a picture and fits it to an encoder: pixels (3, H, W) and the identity of its file, or the reason why it cannot be judged, which
    is `Passing` where it is one of a server or the machine.

    Raises: OSError of the machine rather than of the file, as for too many open files; what is a fault of ours.
    """
    try:
        picture, content = read()
        return transform(picture), content
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        check_of_file(error)
        told = error.strerror or str(error)
        return told if isinstance(error, NoImage) or error.errno in OF_THE_FILE else Passing(told)
    except ValueError as error:  # from the transform
        return f"{type(error).__name__}: {error}"
    except (MemoryError, RuntimeError) as error:
        if not is_no_memory(error):
            raise
        return NO_MEMORY


@torch.inference_mode()
def judge_prepared(
    predictor: Predictor, pixels: Sequence[Tensor], contents: Sequence[bytes], names: Sequence[str | None]
) -> list[list[Prediction] | None]:
    """Returns the predictions on each image of a batch, one a detector, or None where the encoder gives NaN or infinite numbers."""
    outputs = predictor.outputs(torch.stack(list(pixels)).to(predictor.device))
    finite = outputs.features.isfinite().all(dim=1)
    rows = finite.nonzero().flatten().tolist()
    found: list[list[Prediction] | None] = [None] * len(pixels)
    if not rows:
        return found
    if len(rows) < len(pixels):
        outputs = outputs.map(lambda value: value[finite])
    judged = predictor.predict(outputs, pairs(contents[row] for row in rows))
    predictions, several = predictor.predictions(judged, [names[row] for row in rows]), len(predictor.columns)
    for place, row in enumerate(rows):
        found[row] = predictions[several * place : several * (place + 1)]
    return found
