"""LoCoOp learns prompts as CoOp does, and that parts of an image which do not show its class should look like no class."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_ood.config.method_schema import LoCoOp as Settings
from clip_ood.data.labelled import FeatureTable
from clip_ood.errors import UserError
from clip_ood.lightning_modules.coop import CoOp

EPSILON = 1e-5  # in the logarithm, as in LoCoOp's code


class LoCoOp(CoOp):
    """CoOp's loss + λ · `local_regularisation` over the patches of the image, λ = `weight`.

    Learns from the patch tokens "value" (n, P, E), unit norm in the joint space, beside the embeddings of images.
    Source: Miyai et al. 2023, arXiv 2306.01293. Raises: UserError if as many classes as there are are kept (`rank`).
    """

    Settings = Settings

    def training_rows(self, table: FeatureTable, kept: Tensor, device: torch.device) -> Tensor:
        """Returns h and the patches of each image: (n, 1 + P, E) on the device."""
        whole = super().training_rows(table, kept, device)
        patches = table.stored.tokens[self.settings.patches].take(table.rows[kept], device).to(whole.dtype)
        return torch.cat([whole[:, None], patches], dim=1)

    def _check(self, targets: Tensor) -> None:
        super()._check(targets)
        check_rank(self.settings, len(self.class_names))

    def loss(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        text, rows = self.embed(self.prompts), rows.float()
        loss, logits = self.classification(rows[:, 0], labels, text)
        local = local_regularisation(rows[:, 1:], text, labels, self.logit_scale, self.settings.rank)
        return loss + self.settings.weight * local, logits


def check_rank(settings: Settings, classes: int) -> None:
    """Raises UserError for a `rank` of as many classes as there are, or more."""
    if settings.rank >= classes:
        raise UserError(
            f"method.locoop.rank = {settings.rank}: a part of an image is left to no class if its own is not among so many of the "
            f"most probable ones, and prompts are learnt for {classes} classes: take fewer (a fifth of the classes in the paper)"
        )


def local_regularisation(local: Tensor, text: Tensor, labels: Tensor, scale: float, rank: int) -> Tensor:
    """Returns the mean of Σ_c p_c ln(p_c + 1e-5) over the patches whose own class is not among the `rank` most probable; 0 without any.

    p = softmax of s ⟨l, t_c⟩ of a patch, s: `scale`; it is the negative entropy, so that training makes p uniform there. Shapes: patches
    l (B, P, E), text t (C, E), both unit norm; labels (B,) of the images.
    """
    logits = scale * local @ text.T  # (B, P, E) @ (E, C) -> (B, P, C)
    own = logits.detach().gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1))
    foreign = (logits.detach() > own).sum(dim=2) >= rank  # (B, P)
    shares = logits[foreign].softmax(dim=1)  # (n, C)
    return (shares * (shares + EPSILON).log()).sum() / max(len(shares), 1)
