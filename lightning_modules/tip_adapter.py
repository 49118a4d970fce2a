"""Tip-Adapter: a few labelled images vote beside the class names; nothing is trained."""

from __future__ import annotations

from dataclasses import replace

from clip_ood.config.method_schema import TipAdapter as Settings
from clip_ood.data.labelled import FeatureTable
from clip_ood.errors import UserError
from clip_ood.lightning_modules.linear_probe import few_shot, labels_a_class
from clip_ood.lightning_modules.zero_shot import ZeroShot
from clip_ood.model import classify_by
from clip_ood.outputs import Cache, Outputs, Reference


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

    def reference(self) -> Reference:
        cache = Cache(self.cache, self.cache_labels, self.settings.alpha, self.settings.beta)
        return replace(super().reference(), cache=cache)

    def outputs(self, batch: Outputs) -> Outputs:
        return classify_by(self.reference(), batch)
