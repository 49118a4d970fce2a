"""Checks that the encoder which a config names exists, without importing its library if its models are known."""

from __future__ import annotations

from clip_ood.backbones.library import library
from clip_ood.backbones.spec import BackboneSpec


def check_model(spec: BackboneSpec) -> None:
    """Raises UserError for a model, tag, folder or file that does not exist, and names the nearest valid ones."""
    of = library(spec.library)
    if spec.text_spec is not None:
        of.check_text(spec, spec.text_spec)
    of.check(spec)
