"""Any timm model as an image-only `Backbone`: g is what its classifier would see."""

from __future__ import annotations

import sys
from inspect import signature
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models import model_entrypoint
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone, Preprocessing
from clip_ood.backbones.checkpoint_file import read_tensors
from clip_ood.backbones.fitting import fit
from clip_ood.backbones.spec import BackboneSpec

FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")  # from published names to timm's


class TimmBackbone(Backbone):
    """A timm encoder without its classifier: its default weights, a checkpoint file, or random weights."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec.precision)
        file = spec.pretrained if spec.pretrained != "default" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.random_seed)
            self.model = timm.create_model(spec.model, pretrained=spec.pretrained == "default", num_classes=0)
        if file:
            self._load(Path(file), spec.model)
        prepared = resolve_model_data_config(self.model)
        self.transform = create_transform(**prepared, is_training=False)
        self.preprocessing = Preprocessing(
            tuple(prepared["input_size"][1:]),
            tuple(prepared["mean"]),
            tuple(prepared["std"]),
            prepared["interpolation"],
        )
        self.freeze()

    @property
    def image_tower(self) -> nn.Module:
        return self.model

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype)).float()

    def _load(self, file: Path, name: str) -> None:
        if file.suffix == ".npz" and hasattr(self.model, "load_pretrained"):  # of JAX, arrays alone
            self.model.load_pretrained(str(file))
            return
        with torch.device("meta"):  # of the classifier only the names are of interest
            known = timm.create_model(name, num_classes=1).state_dict().keys() | {"mask_token"}
        fit(self.model, read_tensors(file), lambda state: self._named_as_here(state, name), known.__contains__)

    def _named_as_here(self, state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        """What timm itself makes of published weights of the model `name`: other names, grids of another size interpolated."""
        source = sys.modules[model_entrypoint(name.partition(".")[0]).__module__]
        convert = next((getattr(source, each) for each in FILTERS if hasattr(source, each)), None)
        if convert is None:
            return state
        taken = signature(convert).parameters
        given = (state, self.model)[: len(taken)]  # some ask for no model
        more = {"adapt_layer_scale": True} if "adapt_layer_scale" in taken else {}  # as DeiT III names them
        return convert(*given, **more)
