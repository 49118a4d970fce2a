"""Makes the encoder that a backbone's spec names."""

from __future__ import annotations

import pickle
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.downloads import offline, require_here
from clip_ood.backbones.library import library
from clip_ood.backbones.names import check_model
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.backbones.weights import announce
from clip_ood.errors import UserError, raised_in


def create_backbone(spec: BackboneSpec, download: bool = True) -> Backbone:
    """Makes the encoder that `spec` names, with its weights loaded and frozen.

    It is on the CPU (on the current default device under `with torch.device(...)`). Checkpoints are read as tensors only: pickled
    code in them is never run, nor is code that a configuration names. Without `download` no host is contacted.

    Raises: ValueError for unknown names, for configurations that are not allowed, and for weights that cannot be read or are not
    this architecture's; ConnectionError for what would have to be downloaded and may not or cannot be.
    """
    check_model(spec)
    if download:
        announce(spec)
    else:
        require_here(spec)
    with nullcontext() if download else offline(), _naming(spec):
        images = library(spec.library).create(spec, download)
    if spec.text_spec is None:
        return images
    from clip_ood.backbones.other_text import OtherText

    return OtherText(images, create_backbone(spec.text_spec, download))


@contextmanager
def _naming(spec: BackboneSpec) -> Iterator[None]:
    """Adds to the errors of a library's loading which encoder and weights it was about."""
    try:
        yield
    except Exception as error:  # readers may raise anything for damaged or foreign files
        weights = f" with the weights {spec.pretrained}" if spec.pretrained else ""
        reason = textwrap.shorten(str(error), 400)
        if not isinstance(error, UserError) and (place := raised_in(error)) is not None:  # an encoder of the user's own
            reason = f"{type(error).__name__} in {place}: {reason}"
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in reason:  # which is never switched off
            reason = (
                "the file is damaged or holds pickled objects beside tensors, which are never run. Save the model's "
                "state dict by itself, best as .safetensors"
            )
        raise UserError(f"The encoder {spec.model}{weights} cannot be loaded: {reason}") from error
