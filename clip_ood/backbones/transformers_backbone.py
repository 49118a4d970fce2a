"""Makes a model of transformers a `Backbone`.

g is what the model gives for a whole image: of a model of images and texts, the pooled output of its image tower before the
projection; of others, `pooler_output` or, where there is none or the weights lack it, the class token after the last norm or, without
one, the mean of the last hidden state over patches.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from clip_ood.backbones.backbone import Backbone, unit
from clip_ood.backbones.checkpoint_file import read_tensors
from clip_ood.backbones.library import library
from clip_ood.backbones.repository_files import write_tokenizer
from clip_ood.backbones.spec import BackboneSpec, ImageSpec
from clip_ood.backbones.transformers_config import TEXTS, checked_description, config_of, read_description
from clip_ood.backbones.transformers_images import Prepared, as_json, read_prepared
from clip_ood.backbones.transformers_images import restored as restored_figures
from clip_ood.backbones.transformers_library import INDEX, LOCAL, config_file, parts_of, prepared_file
from clip_ood.backbones.transformers_tower import Tower
from clip_ood.backbones.weights import weights_file
from clip_ood.errors import UserError, brief
from clip_ood.files.records import read_json

SPARE = ("classifier", "head", "decoder", "lm_head", "mask_token", "embeddings.mask_token", "position_ids", "pooler")


class Texts(nn.Module):
    """Turns texts into unit-norm embeddings by the text side of a model of transformers and its tokenizer.

    SigLIP reads texts in lower case, padded to its whole length, as it was trained.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model, self._tokenizer = model, tokenizer
        self.siglip = model.config.model_type == "siglip"
        self.length = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    def forward(self, texts: list[str]) -> Tensor:
        """Returns what the text tower makes of K texts, before it is put on the unit sphere: (K, E)."""
        given = [text.lower() for text in texts] if self.siglip else texts
        padding = "max_length" if self.siglip else True
        tokens = self._tokenizer(given, padding=padding, truncation=True, max_length=self.length, return_tensors="pt")
        kept = ("input_ids",) if self.siglip else ("input_ids", "attention_mask")
        device = next(self.model.parameters()).device
        found = self.model.get_text_features(**{key: tokens[key].to(device) for key in kept})
        return getattr(found, "pooler_output", found)


class TransformersBackbone(Backbone):
    """An encoder of transformers, frozen in its precision. `described` is what `restored` makes it of without its weights."""

    def __init__(
        self, model: PreTrainedModel, prepared: Prepared, precision: str, described: dict[str, Any], tokenizer: Any
    ) -> None:
        super().__init__(precision)
        kind = model.config.model_type
        self.described, self.transform, self.preprocessing = described, prepared.transform(), prepared.preprocessing
        self.tower = Tower(model.vision_model if kind in TEXTS else model, kind)
        projection = getattr(model, "visual_projection", nn.Identity()) if kind in TEXTS else None
        if projection is not None:
            self.projection = projection
        self.texts = None
        if tokenizer is not None:
            self.has_text = True
            self._scale = model.logit_scale.detach().float().exp().item()
            bias = getattr(model, "logit_bias", None)
            self._bias = None if bias is None else bias.detach().float().item()
            model.vision_model, model.visual_projection = nn.Identity(), nn.Identity()
            self.texts = Texts(model, tokenizer)
        self.freeze()

    @property
    def image_tower(self) -> nn.Module:
        return self.tower

    def encode_image(self, images: Tensor) -> Tensor:
        return self.tower(images.to(self.dtype)).float()

    def project(self, features: Tensor) -> Tensor | None:
        return unit(self.projection(features.to(self.dtype))) if hasattr(self, "projection") else None

    def text_vectors(self, texts: list[str]) -> Tensor:
        return self.texts(texts) if self.has_text else super().text_vectors(texts)

    def train_images(self, gradient_checkpointing: bool = False, compile: bool = False) -> Backbone:
        self.texts, self.has_text = None, False
        return super().train_images(gradient_checkpointing, compile)


def transformers_backbone(spec: BackboneSpec, download: bool) -> TransformersBackbone:
    """Makes the encoder that `spec` names; of an `ImageSpec`, without texts. Raises what its files and transformers raise."""
    description = read_description(config_file(spec, download))
    kind = description["model_type"]
    prepared = read_prepared(prepared_file(spec, download), kind)
    file = weights_file(spec, download)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.random_seed)
        model = _built(description) if file is None else _loaded(description, file, spec, download)
    tokenizer = _tokenizer(spec, download) if kind in TEXTS and not isinstance(spec, ImageSpec) else None
    with_pooler = getattr(model, "pooler", None) is not None
    described = {"config": description, "pooler": with_pooler, "preprocessing": as_json(prepared)}
    return TransformersBackbone(model, prepared, spec.precision, described, tokenizer)


def restored(spec: BackboneSpec, file: Path) -> TransformersBackbone:
    """Makes the encoder without its weights from what `TransformersBackbone.described` said, and without texts.

    Raises: UserError for a description that is not allowed.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("pooler"), bool):
        raise UserError(f"{file} describes no model of transformers")
    description = checked_description(content.get("config"), str(file))
    prepared = restored_figures(content.get("preprocessing") or {}, str(file))
    model = _built(description)
    if not content["pooler"] and hasattr(model, "pooler"):
        model.pooler = None
    return TransformersBackbone(model, prepared, spec.precision, content, None)


def _built(description: dict[str, Any]) -> PreTrainedModel:
    """Makes a model with random weights, on the current default device."""
    config = config_of(description)
    with _unlogged():
        return MODEL_MAPPING[type(config)]._from_config(config, dtype=torch.float32).eval()


def _loaded(description: dict[str, Any], file: Path, spec: BackboneSpec, download: bool) -> PreTrainedModel:
    """Makes a model with the weights of a file or of several; its pooler is left out if they lack it.

    Raises: UserError for weights that are not this model's.
    """
    remote = library(spec.library).remote_weights(spec)
    files = parts_of(file, remote, download) if file.name == INDEX else [file]
    state = {name: value for each in files for name, value in read_tensors(each).items()}
    config = config_of(description)
    with _unlogged():
        model, report = MODEL_MAPPING[type(config)].from_pretrained(
            None,  # no folder or repository: the configuration was checked, and the weights are read
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below; transformers tells them in its log alone
            local_files_only=True,
            trust_remote_code=False,
        )
    other = sorted(each[0] for each in report["mismatched_keys"])
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    unknown = sorted(name for name in report["unexpected_keys"] if not _spare(name))
    if missing or unknown or other:
        raise UserError(
            f"its weights are not this model's: {len(missing)} missing ({', '.join(missing[:2])}), {len(unknown)} unknown "
            f"({', '.join(unknown[:2])}), {len(other)} of another shape ({', '.join(other[:2])})"
        )
    if report["missing_keys"]:  # transformers would draw a random pooler
        model.pooler = None
    return model.eval()


def _spare(name: str) -> bool:
    """Says whether a weight is one that image features are not made of, as a classifier's."""
    return any(f".{part}." in f".{name}." for part in SPARE)


def _tokenizer(spec: BackboneSpec, download: bool) -> Any:
    name = spec.model.removeprefix(LOCAL)
    with TemporaryDirectory(prefix="clip-ood-") as place, _unlogged():
        folder = Path(place, "tokenizer")
        write_tokenizer(folder, name, spec, download)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except ImportError as error:  # SentencePiece's files need its package
            raise UserError(
                f"its tokenizer needs a package that is not installed: {json.dumps(str(error))[:300]}"
            ) from error
        except Exception as error:  # readers of its several formats may raise anything for a damaged file
            reason = f"{type(error).__name__}: {brief(error, 200)}"
            raise UserError(f"the tokenizer of {name} cannot be read ({reason}): fetch its files again") from error
    if tokenizer.pad_token is None:
        raise UserError(
            f"the tokenizer of {name} has no pad_token, which fills up shorter texts: name one in tokenizer_config.json"
        )
    return tokenizer


@contextmanager
def _unlogged() -> Iterator[None]:
    """Drops transformers' progress bar, and its warnings of weights that a classifier would have."""
    before, bars = logging.root.manager.disable, is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            enable_progress_bar()
