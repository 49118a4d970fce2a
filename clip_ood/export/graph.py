"""Computes scores from pixels by one function of tensors, which an exported file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clip_ood.backbones.backbone import Backbone
from clip_ood.class_predictions import class_logits
from clip_ood.model import classify_by, encode
from clip_ood.outputs import NOTHING, Inside, Outputs, Reference


class ScoringGraph(nn.Module):
    """Computes from pixels (B, 3, H, W) float32 in [0, 1] the results for each image, by name.

    features (B, D); predicted (B,) int64 and confidence (B,) if there are classes: those of the head's softmax z or,
    without a head, of softmax(s · cos(h, t_c)); score_<detector> (B,), higher = more in-distribution. All but predicted are
    float32. Pixels are resized and cropped as the encoder's transform does; they are normalised here.
    """

    def __init__(
        self,
        backbone: Backbone,
        reference: Reference,
        scores: Mapping[str, Callable[[Outputs], Tensor]],
        inside: Inside = NOTHING,
    ) -> None:
        super().__init__()
        # functions, not modules: they take along what they use of the encoder and detectors, and no text tower
        self.encode_image, self.project, self.scores = backbone.encode_image, backbone.project, dict(scores)
        self.encode_inside, self.inside = backbone.encode_inside, inside
        self.preprocessing, self.reference = backbone.preprocessing, reference
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(backbone.preprocessing, name))[:, None, None])

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        rows = self.rows(pixels)
        said = {"features": rows.features}
        if (logits := class_logits(rows, self.reference)) is not None:
            said["predicted"] = logits.argmax(dim=1)
            said["confidence"] = logits.softmax(dim=1).amax(dim=1)
        return said | {f"score_{name}": score(rows).float() for name, score in self.scores.items()}

    def rows(self, pixels: Tensor) -> Outputs:
        """Returns the outputs of encoder and head for pixels (B, 3, H, W)."""
        return classify_by(self.reference, encode(self, (pixels - self.mean) / self.std, self.inside))


class StandIn(nn.Module):
    """A cheap encoder whose rows are as wide as those of another, to try detectors with."""

    def __init__(self, backbone: Backbone, rows: Outputs) -> None:
        super().__init__()
        self.preprocessing, self.transform, self.dtype = backbone.preprocessing, backbone.transform, backbone.dtype
        self.given = rows

    def encode_image(self, images: Tensor) -> Tensor:
        return self.given.features[:1] + images.mean(dim=(1, 2, 3))[:, None]  # (B, D)

    def encode_inside(self, images: Tensor, wanted: Inside) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        mean = images.mean(dim=(1, 2, 3))
        layers = {name: self.given.layers[name][:1] + mean[:, None] for name in wanted.layers}
        tokens = {kind: normalize(self.given.tokens[kind][:1] + mean[:, None, None], dim=2) for kind in wanted.tokens}
        return self.encode_image(images), layers, tokens

    def project(self, features: Tensor) -> Tensor | None:
        if self.given.embeddings is None:
            return None
        return normalize(self.given.embeddings[:1] + features[:, :1], dim=1)  # (B, E)
