"""Encoders of images only from timm; g is the input of the classifier."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_ood.backbones.fingerprint import weights_of
from clip_ood.backbones.library import Library
from clip_ood.backbones.model_lists import models, nearest_of
from clip_ood.backbones.remote import Remote, hub_cache
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.errors import UserError

if TYPE_CHECKING:
    from clip_ood.backbones.backbone import Backbone

FILES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # of models trained by open_clip


class Timm(Library):
    package, reads_text = "timm", False

    def list_models(self) -> dict[str, list[str]]:
        import timm

        found: dict[str, list[str]] = {model: [] for model in timm.list_models()}
        for name in timm.list_models(include_tags=True):
            model, _, tag = name.partition(".")
            found[model] += [tag] if tag else []
        return found

    def check(self, spec: BackboneSpec) -> None:
        _check(spec)

    def remote_weights(self, spec: BackboneSpec) -> Remote | None:
        return _default(spec.model) if spec.pretrained == "default" else None

    def fingerprint(self, spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
        if spec.pretrained is None:
            return {"weights": weights_of(spec, hashes), "timm": version("timm")}
        from timm.models import get_pretrained_cfg

        return {"weights": weights_of(spec, hashes), "preprocessing": get_pretrained_cfg(spec.model).to_dict()}

    def create(self, spec: BackboneSpec, download: bool) -> Backbone:
        from clip_ood.backbones.timm_backbone import timm_backbone

        return timm_backbone(spec)


def _check(spec: BackboneSpec) -> None:
    architecture, _, tag = spec.model.partition(".")
    known = models("timm")
    if (name := spec.model.rpartition("/")[2]) != spec.model and name.partition(".")[0] in known:
        raise UserError(
            f"timm has no model {spec.model!r}: its models are taken by their names in timm. Did you mean {name}, with pretrained: "
            "default for the weights in that repository?"
        )
    if ":" in spec.model:
        raise UserError(
            f"timm has no model {spec.model!r}: its models are taken by their names in timm; folders and repositories are read as "
            "open_clip's (library: open_clip)"
        )
    if architecture not in known:
        raise UserError(f"timm has no model {spec.model!r}.{nearest_of(architecture, known)}")
    tags = known[architecture]
    if tag and tag not in tags:
        listed = f" Known: {', '.join(sorted(tags))}." if tags else ""
        raise UserError(f"timm's {architecture} has no weights {tag!r}.{nearest_of(tag, tags)}{listed}")
    if spec.preprocess:
        raise UserError(f"timm models know their preprocessing: leave `preprocess` out (got {spec.preprocess!r})")
    if spec.pretrained not in (None, "default") and not Path(spec.pretrained).is_file():
        raise UserError(
            f"timm: `pretrained` is `default`, null or a checkpoint file; there is no file {spec.pretrained!r}"
        )


def _default(model: str) -> Remote:
    import torch
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model)
    if config and config.hf_hub_id:
        return Remote(
            hub_cache(), config.hf_hub_id, _alternatives(config.hf_hub_filename) if config.hf_hub_filename else FILES
        )
    if config and config.url:
        return Remote(Path(torch.hub.get_dir(), "checkpoints"), url=config.url)
    raise UserError(f"timm has no published weights of {model}: set backbone.pretrained to a checkpoint file or null")


def _alternatives(file: str) -> tuple[str, ...]:
    """Returns the names under which timm looks for a file on the hub."""
    known = [files for files in (OPEN_CLIP_FILES, FILES) if file in files]
    return known[0] if known else (f"{file.rpartition('.')[0]}.safetensors", file)
