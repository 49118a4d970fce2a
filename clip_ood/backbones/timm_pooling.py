"""What timm's models make g of, and the size of the images that they take, where these are not their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clip_ood.errors import UserError


class Pooled(nn.Module):
    """An encoder of timm whose g is pooled otherwise than it was trained: with x_1, …, x_P the tokens of the patches and c the class token,
    after the last norm,

    - cls: c
    - mean: (1 / P) Σ x_p
    - cls+mean: both, one after the other, so that g is twice as wide
    - map: the model's own attention pooling

    Registers are no patches. A norm that the model has behind its pooling is applied to each part.

    Raises: UserError for a model without what is asked for.
    """

    def __init__(self, model: nn.Module, pooling: str, name: str) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling
        self.prefix = getattr(model, "num_prefix_tokens", None)
        if self.prefix is None:
            raise UserError(
                f"backbone.pooling: {pooling}: {name} gives no token for each patch, so its own pooling is the only one"
            )
        if "cls" in pooling and getattr(model, "cls_token", None) is None:
            raise UserError(f"backbone.pooling: {pooling}: {name} has no class token; take mean, or leave pooling out")
        if pooling == "map" and getattr(model, "attn_pool", None) is None:
            raise UserError(
                f"backbone.pooling: map: {name} has no attention pooling; take cls or mean, or leave pooling out"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Returns g (B, D) of images (B, 3, H, W); (B, 2 D) for cls+mean."""
        return self.pool_tokens(self.model.forward_features(images))

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """Returns g of the tokens (B, prefix + P, D) after the last norm."""
        parts = {
            "cls": lambda: tokens[:, 0],
            "mean": lambda: tokens[:, self.prefix :].mean(dim=1),
            "map": lambda: self.model.attn_pool(tokens),
        }
        norm = getattr(self.model, "fc_norm", None) or nn.Identity()
        return torch.cat([norm(parts[part]()) for part in self.pooling.split("+")], dim=1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Passes on to the model."""
        self.model.set_grad_checkpointing(enable)


def set_input_size(model: nn.Module, size: int, name: str) -> None:
    """Makes a model of timm take images of size × size pixels. One whose weights depend on the size has them interpolated, and any other
    takes every size.

    Raises: UserError for a size that the model cannot take.
    """
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is not None and any(size % side for side in patch):
        raise UserError(f"backbone.image_size: {size} is no multiple of the {patch[0]} pixels of a patch of {name}")
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(size, size))
    elif getattr(model, "pos_embed", None) is not None:
        raise UserError(f"backbone.image_size: timm cannot change the size of {name}; leave it out")
