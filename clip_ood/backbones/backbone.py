"""One interface to all encoders: g before the joint-space projection, h after it, texts, and preprocessing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from clip_ood.backbones.inside import run_inside
from clip_ood.errors import UserError
from clip_ood.outputs import Inside

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Preprocessing:
    """The last steps of an encoder's transform: size (H, W) in pixels, mean and std of each channel, and how it resizes."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


class Backbone(nn.Module):
    """An encoder with frozen weights in the requested precision.

    Attributes: transform turns a PIL image in RGB into a (3, H, W) float32 tensor, and preprocessing describes it;
    image_tower computes g; has_text says whether class names can be encoded; logit_scale is the model's own s in softmax(s ·
    cos(h, t)).
    """

    transform: Callable[[Image], Tensor]
    preprocessing: Preprocessing
    has_text: bool = False
    _scale: float | None = None
    _bias: float | None = None

    def __init__(self, precision: str = "fp32") -> None:
        super().__init__()
        self.dtype = DTYPES[precision]

    @property
    def logit_scale(self) -> float | None:
        """The model's s; None without a text encoder."""
        return self._scale

    @property
    def logit_bias(self) -> float | None:
        """The model's b in σ(s · cos(h, t) + b); None for a model that was not trained with a sigmoid loss, or has no text encoder."""
        return self._bias

    @property
    @abstractmethod
    def image_tower(self) -> nn.Module:
        """The module that turns images into g."""

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """Returns features g of images (B, 3, H, W): (B, D) float32, not normalised."""

    def project(self, features: Tensor) -> Tensor | None:
        """Returns unit-norm embeddings h of features g: (B, D) -> (B, E) float32; None without a joint space."""
        return None

    def affine_projection(self) -> Tensor | None:
        """Returns A (D + 1, E) float32 if h is g A on the unit sphere, where g has a 1 at its end; None for any other projection, or none."""
        module = getattr(self, "projection", None)
        if isinstance(module, nn.Identity) and self.has_text:
            matrix, bias = torch.eye(self.encode_text(["a"]).shape[1]), None
        elif isinstance(module, nn.Linear):
            matrix, bias = module.weight.T, module.bias
        else:
            matrix, bias = getattr(module, "matrix", None), None
        if matrix is None:
            return None
        last = matrix.new_zeros(matrix.shape[1]) if bias is None else bias
        return torch.cat([matrix, last[None]]).detach().float().cpu()

    def encode_inside(self, images: Tensor, wanted: Inside) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Returns g (B, D) of images (B, 3, H, W), features (B, D_l) of layers, and tokens (B, P, E), by name, in float32.

        Tokens have unit norm and are in the joint space, where there is one. Raises: UserError for what the encoder does not have.
        """
        features, layers, tokens = run_inside(self.image_tower, images.to(self.dtype), wanted)
        tokens = {kind: self._projected(each) for kind, each in tokens.items()}
        return features.float(), {name: each.float() for name, each in layers.items()}, tokens

    def _projected(self, tokens: Tensor) -> Tensor:
        embeddings = self.project(tokens.flatten(0, 1))
        return (unit(tokens.flatten(0, 1)) if embeddings is None else embeddings).unflatten(0, tokens.shape[:2])

    def encode_text(self, texts: list[str]) -> Tensor:
        """Returns unit-norm embeddings of K texts: (K, E) float32.

        Raises: TypeError for an encoder without text tower.
        """
        if not self.has_text:
            raise TypeError(f"{type(self).__name__} has no text encoder")
        return unit(self.text_vectors(texts))

    def text_vectors(self, texts: list[str]) -> Tensor:
        """Returns the outputs of the text tower for K texts, before they are put on the unit sphere: (K, E).

        Raises: UserError for an encoder that has unit-norm embeddings only.
        """
        raise UserError(
            f"data.negative_averages: raw needs the outputs of the text tower, and {type(self).__name__} has unit-norm embeddings "
            "of texts only: take unit"
        )

    def tokenize(self, texts: list[str]) -> Tensor:
        """Returns the tokens of K texts: (K, L) int64. Raises: UserError for an encoder that takes no token embeddings."""
        raise self._takes_no_tokens()

    def token_embeddings(self, tokens: Tensor) -> Tensor:
        """Returns what the text tower looks up for tokens (K, L): (K, L, W). Raises as `tokenize` does."""
        raise self._takes_no_tokens()

    def encode_tokens(self, tokens: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns unit-norm embeddings (K, E) float32 of texts, differentiable in what `change` puts among their token embeddings.

        The text tower takes what `change` returns, of the same shape, for the embeddings (K, L, W) of tokens (K, L). It may be called
        with the first positions alone if what follows has no influence. Raises as `tokenize` does.
        """
        raise self._takes_no_tokens()

    def text_side(self) -> Backbone:
        """Drops the image tower where it can, and returns the encoder, which from now on encodes texts only.

        Raises: UserError for an encoder without text tower.
        """
        if self.has_text:
            return self
        raise self._takes_no_tokens()

    def _takes_no_tokens(self) -> UserError:
        return UserError(
            f"Learnt prompts and inverted images need a text tower that takes embeddings of tokens, and {type(self).__name__} has none: "
            "use an encoder of open_clip"
        )

    def freeze(self) -> Backbone:
        """Puts the encoder into evaluation mode, without gradients, in its precision."""
        return self.eval().requires_grad_(False).to(self.dtype)

    def train_images(self, gradient_checkpointing: bool = False, compile: bool = False) -> Backbone:
        """Prepares the encoder for fine-tuning.

        The image tower is trainable in float32, the layers after it are frozen, and the text tower is removed.
        Raises: ValueError for gradient checkpointing of a tower that does not support it.
        """
        self.dtype = torch.float32
        self.float().requires_grad_(False)
        self.image_tower.requires_grad_(True)
        if gradient_checkpointing:
            self._checkpoint_gradients()
        if compile:
            self.image_tower.compile()
        return self.train()

    def _checkpoint_gradients(self) -> None:
        tower = self.image_tower
        with suppress(
            AttributeError, AssertionError
        ):  # some towers lack it, some of timm refuse it, and open_clip's ResNet ignores it
            tower.set_grad_checkpointing(True)
        if not any(getattr(module, "grad_checkpointing", False) for module in tower.modules()):
            raise UserError(f"gradient_checkpointing: {type(tower).__name__} does not offer it; set it to false")


class ImageBackbone(Backbone):
    """An encoder of images only, frozen in its precision; g is the output of `model` for images (B, 3, H, W)."""

    def __init__(
        self,
        model: nn.Module,
        transform: Callable[[Image], Tensor],
        preprocessing: Preprocessing,
        precision: str = "fp32",
    ) -> None:
        super().__init__(precision)
        self.model, self.transform, self.preprocessing = model, transform, preprocessing
        self.freeze()

    @property
    def image_tower(self) -> nn.Module:
        return self.model

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype)).float()


def unit(vectors: Tensor) -> Tensor:
    """Scales rows to length 1, in float32."""
    return normalize(vectors.float(), dim=-1)
