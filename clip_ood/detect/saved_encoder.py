"""The encoder of a saved detector: what it was, and how it is found again on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.checked_config import NotAllowed
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.downloads import WouldDownload, require_here
from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.backbones.names import check_model
from clip_ood.backbones.spec import EncoderSpec, ImageSpec
from clip_ood.detect.manifest import DetectorFolderError
from clip_ood.files.cache import cache
from clip_ood.model import encode
from clip_ood.outputs import NOTHING, Inside, Outputs
from clip_ood.process.called import called


@dataclass(frozen=True)
class Encoder:
    """The encoder whose features the detectors see, or that of texts: its model, its fingerprint, the dtype to which features are rounded
    ("float16", "float32"), the precision of autocast, if any (None, "bfloat16", "float16"), and whether its weights lie in the
    folder.
    """

    spec: EncoderSpec
    fingerprint: dict[str, Any]
    features: str
    autocast: str | None = None
    in_folder: bool = False

    def encode(self, backbone: Backbone, pixels: Tensor, wanted: Inside = NOTHING) -> Outputs:
        """Returns g and h of images (B, 3, H, W), and the layers and patch tokens that are wanted, rounded as the feature store keeps them."""
        autocast = None if self.autocast is None else getattr(torch, self.autocast)
        with torch.autocast(pixels.device.type, dtype=autocast, enabled=autocast is not None):
            return encode(backbone, pixels, wanted).map(lambda value: value.to(getattr(torch, self.features)))


def find_encoder(encoder: Encoder, folder: Path, place: str | None, allow_download: bool) -> Backbone:
    """Loads the encoder of the detector in `folder` from where its run had it or, a local-dir: folder or a checkpoint file, from `place`.

    Raises: DetectorFolderError for an encoder that is not there any more, or that is another one, and for a configuration that is not
    allowed.
    """
    spec = _at(encoder.spec, place)
    name = f"The encoder of {folder}, {spec.model},"
    inside = f"have its weights lie in the detector's folder: {called('detect')} --run RUN --with-encoder, where it is"
    if not isinstance(spec, ImageSpec):
        name = f"The text encoder of {folder}, {spec.model},"
        inside = "name a detector that reads no new texts (--detector)"
    try:
        check_model(spec)
        if not allow_download:
            require_here(spec)
        found = fingerprint(spec, cache() / "hashes.json")
    except NotAllowed as error:
        raise DetectorFolderError(f"{name} is not loaded: {error}") from error
    except WouldDownload as error:
        allow = "Allow it with --allow-download (in Python allow_download=True)"
        raise DetectorFolderError(f"{name} is not on this machine: {error}. {allow}, or {inside}") from error
    except (OSError, ValueError) as error:
        raise DetectorFolderError(
            f"{name} cannot be had here ({error}). Say where it is with --encoder, or {inside}"
        ) from error
    _check_same(encoder.fingerprint, found, spec.model, folder)
    return create_backbone(spec, allow_download)


def _check_same(expected: dict[str, Any], found: dict[str, Any], model: str, folder: Path) -> None:
    expected, found = json.loads(json.dumps([expected, found], default=str))
    if differ := sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)):
        raise DetectorFolderError(
            f"{model} is not the encoder of {folder}: it differs in {', '.join(differ)} "
            f"({expected.get(differ[0])} → {found.get(differ[0])}), and thresholds would mean nothing"
        )


def _at(spec: EncoderSpec, place: str | None) -> EncoderSpec:
    """Returns the same encoder at another place."""
    if place is None:
        return spec
    if spec.model.startswith("local-dir:"):
        return replace(spec, model=f"local-dir:{place.removeprefix('local-dir:')}")
    return replace(spec, pretrained=place)
