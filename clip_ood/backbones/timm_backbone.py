"""Any timm model as an `ImageBackbone`: g is what its classifier would see."""

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

FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")  # from published names to timm's


def timm_backbone(spec: BackboneSpec) -> ImageBackbone:
    """A timm encoder without its classifier: its default weights, a checkpoint file, or random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.random_seed)
        model = timm.create_model(spec.model, pretrained=spec.pretrained == "default", num_classes=0)
    if spec.pretrained not in (None, "default"):
        _load(model, Path(spec.pretrained), spec.model)
    prepared = resolve_model_data_config(model)
    preprocessing = Preprocessing(
        tuple(prepared["input_size"][1:]), tuple(prepared["mean"]), tuple(prepared["std"]), prepared["interpolation"]
    )
    return ImageBackbone(model, create_transform(**prepared, is_training=False), preprocessing, spec.precision)


def _load(model: nn.Module, file: Path, name: str) -> None:
    if file.suffix == ".npz" and hasattr(model, "load_pretrained"):  # of JAX, arrays alone
        model.load_pretrained(str(file))
        return
    with torch.device("meta"):  # of the classifier only the names are of interest
        known = timm.create_model(name, num_classes=1).state_dict().keys() | {"mask_token"}
    fit(model, read_tensors(file), lambda state: _named_as_here(model, state, name), known.__contains__)


def _named_as_here(model: nn.Module, state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """What timm itself makes of published weights of the model `name`: other names, grids of another size interpolated."""
    source = sys.modules[model_entrypoint(name.partition(".")[0]).__module__]
    convert = next((getattr(source, each) for each in FILTERS if hasattr(source, each)), None)
    if convert is None:
        return state
    taken = signature(convert).parameters
    given = (state, model)[: len(taken)]  # some ask for no model
    more = {"adapt_layer_scale": True} if "adapt_layer_scale" in taken else {}  # as DeiT III names them
    return convert(*given, **more)
