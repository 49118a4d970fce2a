"""NegPrompt learns negative prompts of the classes, which take part in the softmax that judges an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from clip_ood.backbones.backbone import Backbone
from clip_ood.config.method_schema import NegPrompt as Settings
from clip_ood.lightning_modules.coop import CoOp
from clip_ood.outputs import NegativeLabels, Reference

NOISE = 1e-5  # the largest difference of a negative context from what it starts as


class NegPrompt(CoOp):
    """Learns the contexts of M negative prompts of each class by `negative_prompt_loss`; the embeddings of the classes stay as they are.

    positives (C, E): these embeddings, unit norm (None: those of the config's prompts). Each negative context starts as `start_context`
    (1 or C, context, W), or as the settings say, with noise by which they differ. `learnt_negatives` (C, M, E) holds the negatives as of
    the last epoch. Source: Li et al. 2024, arXiv 2404.03248, the second stage of its code (mala-lab/NegPrompt).
    """

    Settings = Settings
    start_context: Tensor | None = None

    def __init__(
        self,
        settings: Settings | dict[str, Any],
        seed: int,
        names: Sequence[Sequence[str]] | None = None,
        positives: Tensor | None = None,
        **classes,
    ) -> None:
        super().__init__(settings, seed, names, **classes)
        if positives is not None:
            self.learnt.copy_(positives)
        self.register_buffer("learnt_negatives", self.learnt[:, None].repeat(1, self.settings.negatives, 1))

    def reference(self) -> Reference:
        return replace(super().reference(), negprompt=NegativeLabels(self.learnt, self.learnt_negatives.flatten(0, 1)))

    def make_prompts(self, tower: Backbone) -> nn.ModuleList:
        made, generator = [], torch.Generator().manual_seed(self.seed)
        for _ in range(self.settings.negatives):
            made.append(super().make_prompts(tower))
            context = made[-1].context.detach()
            begun = context if self.start_context is None else self.start_context
            context.copy_(begun + NOISE * (2 * torch.rand(begun.shape, generator=generator) - 1))
        return nn.ModuleList(made)

    def loss(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        own, rows = self.settings, rows.float()
        loss = negative_prompt_loss(
            rows, labels, self.learnt, self.negatives_now(), self.logit_scale, own.distance_weight, own.diversity_weight
        )
        return loss, rows @ self.learnt.T

    def negatives_now(self) -> Tensor:
        """Returns the embeddings (C, M, E) of the negative prompts."""
        return torch.stack([self.embed(each) for each in self.prompts], dim=1)

    def trained_parameters(self) -> list[Tensor]:
        return [each.context for each in self.prompts]

    def keep(self) -> None:
        self.learnt_negatives.copy_(self.negatives_now())


def negative_prompt_loss(
    rows: Tensor, labels: Tensor, positives: Tensor, negatives: Tensor, scale: float, distance: float, diversity: float
) -> Tensor:
    """Returns L_image + distance · L_positive + diversity · L_negative of n images, as NegPrompt's code has them.

    L_image is the binary cross-entropy of s ⟨h, t⟩ over all prompts, positive and negative, whose targets are 1 for those of the image's
    class; L_positive the mean of cos(p_c, n_cm) − 1; L_negative the mean over classes of ‖mean_m n_cm‖ − 1.
    rows h (n, E), labels (n,), positives p (C, E), negatives n (C, M, E), all unit norm; s: `scale`.
    """
    texts = torch.cat([positives[:, None], negatives], dim=1)  # (C, 1 + M, E)
    logits = scale * torch.einsum("ne,cme->ncm", rows, texts)
    targets = torch.zeros_like(logits)
    targets[torch.arange(len(labels), device=labels.device), labels] = 1
    image = binary_cross_entropy_with_logits(logits, targets)
    positive = torch.einsum("ce,cme->cm", positives, negatives).mean() - 1
    negative = negatives.mean(dim=1).norm(dim=1).mean() - 1
    return image + distance * positive + diversity * negative
