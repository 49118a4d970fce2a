"""Tip-Adapter: a few labelled images vote beside the class names; nothing is trained."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from clip_ood.config.method_schema import TipAdapter as Settings
from clip_ood.data.labelled import FeatureTable
from clip_ood.errors import UserError
from clip_ood.lightning_modules.linear_probe import few_shot, labels_a_class
from clip_ood.lightning_modules.zero_shot import ZeroShot
from clip_ood.outputs import Outputs

ROWS = 1024  # of which affinities to the cache are held at once


class TipAdapter(ZeroShot):
    """Logits z = s h tᵀ + α exp(−β (1 − h Fᵀ)) L of a cache of training images.

    h (N, E), the unit-norm embeddings; t (C, E), those of the class names; F (n, E), those of the images of `table` that a seeded draw
    takes; L (n, C), their one-hot labels; s, the model's logit scale. A class without images has the logit of its name.
    Source: Zhang et al. 2022, arXiv 2111.03930; images are not augmented here. Raises: UserError if no image has a label.
    """

    def __init__(self, settings: Settings, table: FeatureTable, seed: int, **classes) -> None:
        super().__init__(**classes)
        self.settings = settings
        targets = few_shot(table.labels, settings.per_class, seed)
        kept = (targets >= 0).nonzero().squeeze(1)
        if not len(kept):
            raise UserError(
                "Tip-Adapter needs labelled training images, and none of those that can be read has a label. Look at the labels of data.id, "
                "or take --method={zero_shot: {}}"
            )
        self.trained_on = labels_a_class(targets)
        self.register_buffer("cache", table.stored.embeddings.take(table.rows[kept]).float(), persistent=False)
        self.register_buffer("cache_labels", targets[kept], persistent=False)

    def outputs(self, batch: Outputs) -> Outputs:
        own = self.settings
        given = (self.text_embeddings, self.logit_scale, self.cache, self.cache_labels)
        tensors = [each.to(batch.embeddings.device) if isinstance(each, Tensor) else each for each in given]
        return replace(batch, logits=tip_logits(batch.embeddings, *tensors, own.alpha, own.beta))


def tip_logits(
    embeddings: Tensor, text: Tensor, scale: float, cache: Tensor, labels: Tensor, alpha: float, beta: float
) -> Tensor:
    """Returns s h tᵀ + α exp(−β (1 − h Fᵀ)) L: (N, C) float32.

    Shapes: embeddings h (N, E), text t (C, E), cache F (n, E), all unit norm; labels (n,) of the cache; scale: s.
    """
    shown = one_hot(labels, len(text)).float()  # (n, C)
    votes = [torch.exp(-beta * (1 - some @ cache.T)) @ shown for some in embeddings.float().split(ROWS)]
    return scale * embeddings.float() @ text.float().T + alpha * torch.cat(votes)
