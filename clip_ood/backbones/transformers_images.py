"""How the images of a model of transformers are prepared: the figures of its image processor, as a transform of torchvision."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from clip_ood.backbones.backbone import Preprocessing
from clip_ood.backbones.checked_config import (
    NUMBER,
    NUMBERS,
    TRUTH,
    UNUSED,
    WHOLE,
    WHOLES,
    WORD,
    Kind,
    NotAllowed,
    checked,
)
from clip_ood.errors import UserError
from clip_ood.files.records import read_named

INTERPOLATION = (
    "nearest",
    "lanczos",
    "bilinear",
    "bicubic",
    "box",
    "hamming",
)  # by Pillow's numbers, as files have them
LEVELS = 2 / 255  # the largest difference from transformers' own pixels: it may resize tensors, which round otherwise
LEGACY = re.compile(r"^(.*?)(FeatureExtractor|ImageProcessorFast|ImageProcessorPil)$")

SIDES = Kind(
    "a whole number, or sides as whole numbers",
    lambda value: (
        WHOLES.fits(value)
        or (isinstance(value, dict) and all(each is None or WHOLE.fits(each) for each in value.values()))
    ),
)
KEYS = {
    **dict.fromkeys(("image_processor_type", "feature_extractor_type"), WORD),
    **dict.fromkeys(("size", "crop_size"), SIDES),
    **dict.fromkeys(("image_mean", "image_std"), NUMBERS),
    **dict.fromkeys(("resample", "crop_pct", "rescale_factor"), NUMBER),
    **dict.fromkeys(
        (
            *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "default_to_square"),
            *(
                "include_top",
                "rescale_offset",
                "do_flip_channel_order",
                "do_reduce_labels",
                "use_square_size",
                "do_pad",
            ),
        ),
        TRUTH,
    ),
}


@dataclass(frozen=True)
class Prepared:
    """The figures by which images are prepared: the shorter side to resize to, or (height, width); the size (height, width) that is
    cut out of the middle; interpolation; mean and std of each channel.
    """

    resize: int | list[int]
    size: list[int]
    interpolation: str
    mean: list[float]
    std: list[float]

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(tuple(self.size), tuple(self.mean), tuple(self.std), self.interpolation)

    def transform(self) -> Compose:
        """Returns the transform: a PIL image in RGB -> (3, H, W) float32.

        It is computed by Pillow and cut as torchvision cuts, so that the middle may lie one pixel beside that of transformers.
        """
        resize = Resize(self.resize, InterpolationMode(self.interpolation))
        return Compose([resize, CenterCrop(self.size), ToTensor(), Normalize(self.mean, self.std)])


def read_prepared(path: Path, kind: str) -> Prepared:
    """Reads the figures in a preprocessor_config.json (or in a processor_config.json) of a model of the type `kind`.

    Raises: NotAllowed for a file that would run code; UserError for a processor that does more than to resize, cut out the middle,
    and normalise.
    """
    content = read_named(path)
    content = content.get("image_processor", content) if isinstance(content, dict) else content
    if isinstance(content, dict):
        if content.get("auto_map"):
            raise NotAllowed(f"{path}: auto_map asks for code that lies beside the model, and no code of others is run")
        unused = dict.fromkeys(content.keys() - KEYS.keys(), UNUSED)
        content = checked(content, KEYS | unused, str(path))
    else:
        raise UserError(f"{path} says nothing of how images are prepared")
    try:
        processor = _processor(content, kind)
        prepared = _figures(processor)
        with torch.device("cpu"):  # where the encoder is made without memory, pictures have pixels
            _check_same(prepared, processor)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # what Pillow and transformers raise for such figures
        raise UserError(f"{path}: no image can be prepared by its figures ({type(error).__name__}: {error})") from error
    return prepared


def restored(content: Mapping[str, Any], place: str) -> Prepared:
    """Returns the figures that `asdict` wrote. Raises: UserError for others."""
    keys = {"resize": WHOLES, "size": WHOLES, "interpolation": WORD, "mean": NUMBERS, "std": NUMBERS}
    found = checked(dict(content), keys, place, "preprocessing")
    if found.keys() != keys.keys() or found["interpolation"] not in INTERPOLATION:
        raise UserError(f"{place}: preprocessing does not say how images are prepared")
    return Prepared(**found)


def as_json(prepared: Prepared) -> dict[str, Any]:
    """Returns the figures as a value that JSON can hold."""
    return asdict(prepared)


def _processor(content: dict[str, Any], kind: str) -> Any:
    """Makes transformers' image processor, whose class fills in what the file leaves out."""
    from transformers import AutoImageProcessor

    for key in ("image_processor_type", "feature_extractor_type"):
        if found := LEGACY.fullmatch(content.get(key) or ""):
            content = content | {key: f"{found[1]}ImageProcessor"}
    if "feature_extractor_type" in content:
        content = {"image_processor_type": content["feature_extractor_type"]} | content
        del content["feature_extractor_type"]
    with TemporaryDirectory(prefix="clip-ood-") as place:
        Path(place, "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
        Path(place, "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
        return AutoImageProcessor.from_pretrained(place, local_files_only=True, trust_remote_code=False)


def _figures(processor: Any) -> Prepared:
    said = {key: getattr(processor, key, None) for key in KEYS}
    for key in ("do_resize", "do_rescale", "size"):
        if not said[key]:
            raise UserError(
                f"its images are not prepared by {key.removeprefix('do_')}, so that they have no common size or range"
            )
    size, crop = _sides(said["size"]), _sides(said["crop_size"]) if said["do_center_crop"] else None
    normalised = said["do_normalize"]
    mean, std = (said["image_mean"], said["image_std"]) if normalised else ([0.0] * 3, [1.0] * 3)
    mean, std = (_of_channels(each) for each in (mean, std))
    if said["crop_pct"] and isinstance(size, int):  # ConvNeXt: from 384 pixels on, nothing is cut off
        resize, crop = ([size, size] if size >= 384 else int(size / said["crop_pct"])), [size, size]
    else:
        resize = size
    if crop is None and isinstance(resize, int):
        raise UserError("its images keep their shape, and the model would see them in several sizes")
    whole = [crop, crop] if isinstance(crop, int) else crop or resize
    resample = said["resample"]
    return Prepared(resize, list(whole), INTERPOLATION[2 if resample is None else int(resample)], mean, std)


def _of_channels(values: float | list[float]) -> list[float]:
    numbers = [float(values)] if isinstance(values, int | float) else list(map(float, values))
    return numbers * 3 if len(numbers) == 1 else numbers


def _sides(size: Any) -> int | list[int]:
    sides = {"": size} if isinstance(size, int) else {key: value for key, value in dict(size).items() if value}
    if sides.keys() == {"height", "width"}:
        return [int(sides["height"]), int(sides["width"])]
    if sides.keys() <= {"", "shortest_edge"} and sides:
        return int(next(iter(sides.values())))
    raise UserError(f"the size {sides} is none of shortest_edge, or height and width")


def _check_same(prepared: Prepared, processor: Any) -> None:
    """Raises UserError if transformers makes other pixels of a smooth picture: its processor then does more than the figures say."""
    ramp = torch.linspace(0, 1, 300)
    drawn = torch.stack(
        [ramp[:, None].expand(300, 300), ramp.expand(300, 300), (ramp[:, None] * 9).sin().abs().expand(300, 300)]
    )
    picture = Image.fromarray((drawn.permute(1, 2, 0) * 255).to(torch.uint8).numpy())
    ours = prepared.transform()(picture)
    theirs = torch.as_tensor(np.asarray(processor(images=picture, return_tensors="pt")["pixel_values"][0]))
    std = torch.tensor(prepared.std)[:, None, None]
    if ours.shape != theirs.shape or ((ours - theirs).abs() * std).max() > LEVELS:
        raise UserError(
            f"{type(processor).__name__} does more to images than to resize them, cut out the middle and normalise, so that clip-ood "
            "cannot prepare them. An encoder of your own can (library: own)"
        )
