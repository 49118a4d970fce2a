"""From a backbone's spec to the encoder."""

from __future__ import annotations

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.names import BackboneSpec


def create_backbone(spec: BackboneSpec) -> Backbone:
    """The encoder that `spec` names, weights loaded, frozen, on the CPU (on the current default device under
    `with torch.device(...)`)."""
    if spec.library == "timm":
        from clip_ood.backbones.timm_backbone import TimmBackbone

        return TimmBackbone(spec)
    from clip_ood.backbones.open_clip_backbone import OpenClipBackbone

    return OpenClipBackbone(spec)
