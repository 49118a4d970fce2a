"""Makes an image model of transformers an image tower: images to g, and what lies on the way to it.

It names its parts as timm's models do (`forward_features`, `forward_head`, `feature_info`, …), by which `inside.py` finds them.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

WITHOUT_CLASS_TOKEN = ("ijepa", "siglip", "siglip_vision_model")
STAGED = ("bit", "convnext", "convnextv2", "dinov3_convnext", "regnet", "resnet")  # each stage gives a map (B, D, H, W)
BEFORE_PATCHES = ("class_embedding", "cls_token", "distillation_token", "register_tokens")
NORMS = ("post_layernorm", "layernorm", "norm")


class Tower(nn.Module):
    """Turns images (B, 3, H, W) into g (B, D) by a model of transformers.

    feature_info: where its layers lie, the blocks of a transformer or the stages of a convolutional network; empty if it has neither.
    num_features: the width D of a transformer's tokens; num_prefix_tokens: how many tokens stand before those of the patches;
    global_pool: what g is made of, `token` (the class token), `avg` (the mean over patches) or `map` (attention over them).
    """

    def __init__(self, vision: nn.Module, kind: str) -> None:
        super().__init__()
        self.vision, self.from_patches, self.staged = vision, kind in WITHOUT_CLASS_TOKEN, kind in STAGED
        self.grad_checkpointing = False
        places = _stages(vision) if self.staged else _blocks(vision)
        self.feature_info = [{"module": f"vision.{place}"} for place in places]
        self.num_features = getattr(vision.config, "hidden_size", None)
        mean_first = kind == "dinov3_convnext"  # in its last hidden state
        self.num_prefix_tokens = 1 if mean_first else self._tokens_before_patches()

    @property
    def global_pool(self) -> str:
        if hasattr(self.vision, "head"):
            return "map"
        beit = getattr(self._pooler, "layernorm", None) is not None
        return "avg" if beit or self.from_patches or self.staged else "token"

    @property
    def _pooler(self) -> nn.Module | None:
        return getattr(self.vision, "head", None) or getattr(self.vision, "pooler", None)

    def _tokens_before_patches(self) -> int:
        parts = (getattr(getattr(self.vision, "embeddings", None), name, None) for name in BEFORE_PATCHES)
        return sum(each.numel() // self.num_features for each in parts if each is not None)

    def forward(self, images: Tensor) -> Tensor:
        found = self.vision(images)
        pooled = getattr(found, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)  # (B, D) or (B, D, 1, 1) -> (B, D)
        return self._without_pooler(found.last_hidden_state)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns what g is pooled from: tokens (B, T, D) after the last norm, or a map (B, D, H, W)."""
        last = self.vision(images).last_hidden_state
        clip = hasattr(self.vision, "pre_layrnorm")  # whose norm belongs to the pooling
        return self.norm(last) if clip else last

    def forward_head(self, final: Tensor) -> Tensor:
        """Returns g (B, D) of what `forward_features` gives."""
        if self._pooler is not None:
            return self._pooler(final).flatten(1)
        if final.ndim == 4 and hasattr(self.vision, "layernorm"):
            return self.vision.layernorm(final.mean(dim=(2, 3)))
        return self._without_pooler(final)

    def norm(self, tokens: Tensor) -> Tensor:
        """Returns tokens (B, T, D) of any block after the last norm."""
        return next(getattr(self.vision, name) for name in NORMS if hasattr(self.vision, name))(tokens)

    def _without_pooler(self, last: Tensor) -> Tensor:
        """Returns g (B, D) of a last hidden state (B, T, D) or (B, D, H, W) by a model that does not pool."""
        if last.ndim == 4:
            return last.mean(dim=(2, 3))
        return last.mean(dim=1) if self.from_patches else last[:, 0]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Has the tower compute activations again in the backward pass. Raises: AttributeError if it cannot."""
        parts = [each for each in self.vision.modules() if hasattr(each, "gradient_checkpointing")]
        if not parts:
            raise AttributeError("gradient_checkpointing")
        root = next(each for each in self.vision.modules() if isinstance(each, PreTrainedModel))
        root.gradient_checkpointing_enable({"use_reentrant": False})
        self.grad_checkpointing = enable


def _blocks(vision: nn.Module) -> list[str]:
    """Returns where the blocks of a transformer lie, or nothing if those with attention are not all in one list."""
    found = [
        [f"{name}.{number}" for number in range(len(part))]
        for name, part in vision.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) and all(map(_has_attention, part))
    ]
    return found[0] if len(found) == 1 else []


def _has_attention(block: nn.Module) -> bool:
    return hasattr(block, "attention") or hasattr(block, "self_attn")


def _stages(vision: nn.Module) -> list[str]:
    name, stages = next((name, part) for name, part in vision.named_modules() if name.endswith("stages"))
    return [f"{name}.{number}" for number in range(len(stages))]
