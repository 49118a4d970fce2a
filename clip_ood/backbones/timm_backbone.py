"""Makes any timm model an `ImageBackbone`: g is the input of its classifier."""

from __future__ import annotations

import sys
from inspect import signature
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models import model_entrypoint
from torch import Tensor, nn

from clip_ood.backbones.backbone import ImageBackbone, Preprocessing
from clip_ood.backbones.checkpoint_file import read_tensors
from clip_ood.backbones.fitting import fit
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.backbones.timm_pooling import Pooled, set_input_size

FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")  # from published names to timm's


def timm_backbone(spec: BackboneSpec) -> ImageBackbone:
    """Makes a timm encoder without its classifier, with its default weights, a checkpoint file, or random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.random_seed)
        model = timm.create_model(spec.model, pretrained=spec.pretrained == "default", num_classes=0)
    if spec.pretrained not in (None, "default"):
        _load(model, Path(spec.pretrained), spec.model)
    prepared = resolve_model_data_config(model)
    if spec.image_size is not None:
        set_input_size(model, spec.image_size, spec.model)
        prepared |= {"input_size": (3, spec.image_size, spec.image_size)}
    if spec.pooling != "default":
        model = Pooled(model, spec.pooling, spec.model)
    preprocessing = Preprocessing(
        tuple(prepared["input_size"][1:]), tuple(prepared["mean"]), tuple(prepared["std"]), prepared["interpolation"]
    )
    return ImageBackbone(model, create_transform(**prepared, is_training=False), preprocessing, spec.precision)


def _load(model: nn.Module, file: Path, name: str) -> None:
    if file.suffix == ".npz" and hasattr(model, "load_pretrained"):  # JAX's files hold only arrays
        model.load_pretrained(str(file))
        return
    with torch.device("meta"):  # only the names of the classifier's weights are needed
        known = timm.create_model(name, num_classes=1).state_dict().keys() | {"mask_token"}
    fit(model, read_tensors(file), lambda state: _named_as_here(model, state, name), known.__contains__)


def _named_as_here(model: nn.Module, state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Converts published weights of the model `name` as timm does: it renames them, and interpolates grids of another size."""
    source = sys.modules[model_entrypoint(name.partition(".")[0]).__module__]
    convert = next((getattr(source, each) for each in FILTERS if hasattr(source, each)), None)
    if convert is None:
        return state
    taken = signature(convert).parameters
    given = (state, model)[: len(taken)]  # some take no model
    more = {"adapt_layer_scale": True} if "adapt_layer_scale" in taken else {}  # DeiT III has these names
    return convert(*given, **more)
