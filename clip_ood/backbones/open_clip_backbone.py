"""Makes any open_clip model a `Backbone`.

The projection into the joint space is taken out of the image tower once, so that the tower itself computes g and the
projection turns g into h. If a tower has no separate projection (RN50's attention pooling), g is the tower's output.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.hf_model import HFTextEncoder
from open_clip.model import TimmModel, convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.pretrained import get_pretrained_cfg
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone, Preprocessing, unit
from clip_ood.backbones.checkpoint_file import read_tensors
from clip_ood.backbones.fitting import fit
from clip_ood.backbones.open_clip_files import describe, without_text, written
from clip_ood.backbones.open_clip_library import SCHEMES
from clip_ood.backbones.open_clip_text import encode_changed, token_embedding, without_padding
from clip_ood.backbones.spec import BackboneSpec, ImageSpec
from clip_ood.backbones.timm_pooling import set_input_size
from clip_ood.backbones.weights import weights_file
from clip_ood.errors import UserError

OF_NO_USE = (  # unused tensors in OpenAI's files, and in those of older versions of transformers
    "input_resolution",
    "context_length",
    "vocab_size",
    "text.transformer.embeddings.position_ids",
)


class OpenClipBackbone(Backbone):
    """An open_clip image-text model: a pretrained tag, `hf-hub:`, `local-dir:`, a checkpoint file or random weights.

    Made of an `ImageSpec`, it has no texts: nothing of its tokenizer is read, nor of a text tower of transformers if its weights
    are known. `described` is its configuration. Raises: ValueError for a configuration that is not allowed, and if a checkpoint's
    activation (QuickGELU) is not the architecture's; ConnectionError for what would have to be downloaded without `download`.
    """

    def __init__(self, spec: BackboneSpec, download: bool = True) -> None:
        super().__init__(spec.precision)
        self.has_text = not isinstance(spec, ImageSpec)
        self.described = describe(spec, download)
        weights = weights_file(spec, download)
        text = self.described["model_cfg"].get("text_cfg") or {}
        image_alone = not self.has_text and weights is not None and bool(text.get("hf_model_name"))
        built = without_text(self.described) if image_alone else self.described
        with written(built, spec, self.has_text, download) as folder:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(spec.random_seed)
                model = open_clip.create_model(
                    f"local-dir:{folder}", device=torch.get_default_device(), pretrained_text=False
                )
            if self.has_text:
                self._tokenize = _tokenizer(text, folder / "tokenizer")
        if weights is not None:
            load_weights(model, weights, image_alone)
        if spec.image_size is not None and isinstance(model.visual, TimmModel):
            set_input_size(model.visual.trunk, spec.image_size, spec.model)
        prepared = PreprocessCfg(**model.visual.preprocess_cfg)
        self.transform = image_transform_v2(prepared, is_train=False)
        size = (prepared.size, prepared.size) if isinstance(prepared.size, int) else tuple(prepared.size)
        self.preprocessing = Preprocessing(size, tuple(prepared.mean), tuple(prepared.std), prepared.interpolation)
        self.projection = take_projection(model.visual)
        self.model = model
        with_scale = self.has_text and not model.logit_scale.is_meta
        self._scale = model.logit_scale.detach().float().exp().item() if with_scale else None
        bias = getattr(model, "logit_bias", None)
        self._bias = bias.detach().float().item() if with_scale and bias is not None else None
        self.freeze()

    @property
    def image_tower(self) -> nn.Module:
        return self.model.visual

    def encode_image(self, images: Tensor) -> Tensor:
        features = self.model.visual(images.to(self.dtype))
        return (features[0] if isinstance(features, tuple) else features).float()  # CoCa's tower gives tokens as well

    def project(self, features: Tensor) -> Tensor:
        return unit(self.projection(features.to(self.dtype)))

    def train_images(self, gradient_checkpointing: bool = False, compile: bool = False) -> Backbone:
        self.model, self.has_text = nn.ModuleDict({"visual": self.model.visual}), False
        return super().train_images(gradient_checkpointing, compile)

    def text_vectors(self, texts: list[str]) -> Tensor:
        tokens = self._tokenize(texts)
        tower = getattr(self.model, "text", None)
        if isinstance(tower, HFTextEncoder):
            tokens = without_padding(tower, tokens)
        tokens = tokens.to(next(self.model.parameters()).device)
        embeddings = self.model.encode_text(tokens)
        return embeddings[0] if isinstance(embeddings, tuple) else embeddings

    def tokenize(self, texts: list[str]) -> Tensor:
        return self._tokenize(texts) if self.has_text else super().tokenize(texts)

    def token_embeddings(self, tokens: Tensor) -> Tensor:
        return token_embedding(self.model)(tokens) if self.has_text else super().token_embeddings(tokens)

    def encode_tokens(self, tokens: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        if not self.has_text:
            return super().encode_tokens(tokens, change)
        return unit(encode_changed(self.model, tokens, change))

    def text_side(self) -> Backbone:
        if not self.has_text:
            return super().text_side()
        self.model.visual, self.projection = nn.Identity(), nn.Identity()
        return self


def _tokenizer(text: dict[str, Any], folder: Path) -> Callable[[list[str]], Tensor]:
    """Returns the tokenizer that a text tower's configuration asks for; `folder` holds its files if it is one of transformers."""
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    more = text.get("tokenizer_kwargs") or {}
    if not text.get("hf_tokenizer_name"):
        return SimpleTokenizer(context_length=length, **more)
    mode = text.get("tokenizer_mode")
    kept_here = {"trust_remote_code": False, "local_files_only": True}
    return HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, **more, **kept_here)


def load_weights(model: nn.Module, file: Path, image_alone: bool = False) -> None:
    """Loads the weights of a checkpoint file into a model, or into its image tower alone.

    Position embeddings of another size are interpolated. Raises: ValueError for a file that does not fit exactly, or cannot be
    read.
    """
    if file.suffix in (".npz", ".npy"):  # JAX's files hold only arrays
        open_clip.load_checkpoint(model, str(file))
        return
    prepare = _image_tower_of if image_alone else _whole
    fit(
        model.visual if image_alone else model,
        read_tensors(file),
        lambda state: prepare(state, model),
        OF_NO_USE.__contains__,
    )


def _image_tower_of(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    state = convert_state_dict(model, state)
    _resize(state, model)
    return {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}


def _whole(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Changes a state as open_clip does before it loads it."""
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if own is not None and name in state:
            state[name] = state[name].reshape(own.shape)
        elif own is not None and name == "logit_bias":  # the file's model has none
            state[name] = torch.zeros(own.shape)
    _resize(state, model)
    resize_text_pos_embed(state, model)
    return state


def _resize(state: dict[str, Tensor], model: nn.Module) -> None:
    """Interpolates the image tower's position embeddings, open_clip's own or a timm trunk's, if the grid is another."""
    for name in state:
        if name.endswith("positional_embedding"):
            state[name] = state[name].float()  # a CPU cannot interpolate half precision
    resize_pos_embed(state, model)
    trunk, name = getattr(model.visual, "trunk", None), "visual.trunk.pos_embed"
    own = getattr(trunk, "pos_embed", None)
    if own is not None and name in state and state[name].shape != own.shape:
        more = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
        state[name] = resample_abs_pos_embed(state[name], list(trunk.patch_embed.grid_size), num_prefix_tokens=more)


class MatrixProjection(nn.Module):
    """Computes g -> g P, as ViT towers keep their projection: a bare (D, E) parameter."""

    def __init__(self, matrix: nn.Parameter) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.matrix


def take_projection(visual: nn.Module) -> nn.Module:
    """Takes the projection out of an open_clip image tower and returns it; from then on the tower computes g."""
    if isinstance(visual, TimmModel):
        return _take_from_timm(visual)
    if isinstance(getattr(visual, "proj", None), nn.Parameter):  # VisionTransformer
        projection = MatrixProjection(visual.proj)
        visual.proj = None
        return projection
    return nn.Identity()  # ModifiedResNet: attention pooling is the last layer


def _take_from_timm(visual: TimmModel) -> nn.Module:
    for name in ("proj", "mlp"):
        if name in visual.head._modules:
            return visual.head._modules.pop(name)
    if len(visual.head) == 0 and isinstance(classifier := visual.trunk.get_classifier(), nn.Linear):
        visual.trunk.reset_classifier(0)  # the trunk's classifier served as the projection
        return classifier
    return nn.Identity()


def uses_quick_gelu(spec: BackboneSpec) -> bool:
    """Says whether QuickGELU must be forced because the weights that `spec` names were trained with it.

    Raises: ValueError for a -quickgelu architecture with weights that were not.
    """
    if spec.model.startswith(SCHEMES):
        return False  # the config of the folder or repository says it
    tag = training_tag(spec)
    trained_with = bool(tag.get("quick_gelu")) if tag else spec.model.endswith("-quickgelu")
    if spec.model.endswith("-quickgelu") and not trained_with:
        plain = spec.model.removesuffix("-quickgelu")
        raise UserError(f"{spec.preprocess or spec.pretrained} was trained with GELU, not QuickGELU: use model {plain}")
    return trained_with


def training_tag(spec: BackboneSpec) -> dict[str, Any]:
    """Returns what open_clip knows of the pretrained tag that `spec` names: mean, std, resizing, activation; {} without a tag."""
    name = spec.preprocess or spec.pretrained
    if name is None or spec.model.startswith(SCHEMES):
        return {}
    return get_pretrained_cfg(spec.model, name) or get_pretrained_cfg(spec.model.removesuffix("-quickgelu"), name)
