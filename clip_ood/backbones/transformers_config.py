"""Reads a model's config.json for transformers: which kinds of model are taken, and what of their description reaches the library.

A configuration comes from whoever made the model. Keys by which it would run their code, or load another package or model, are
refused; of the others, only plain data reaches transformers: the fields of the model's own configuration class, and numbers.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_ood.backbones.checked_config import NotAllowed
from clip_ood.errors import UserError
from clip_ood.files.records import read_named

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TEXTS = (
    "altclip",
    "chinese_clip",
    "clip",
    "metaclip_2",
    "siglip",
)  # the model types with a joint space of images and texts
IMAGES = (
    *("beit", "bit", "clip_vision_model", "convnext", "convnextv2", "data2vec-vision", "deit", "dinov2"),
    *("dinov2_with_registers", "dinov3_convnext", "dinov3_vit", "efficientnet", "focalnet", "hiera", "ijepa"),
    *("mobilenet_v1", "mobilenet_v2", "poolformer", "pvt", "regnet", "resnet", "siglip_vision_model"),
    *("swiftformer", "swin", "swinv2", "vit", "vit_msn"),
)
CODE = ("auto_map", "trust_remote_code", "custom_pipelines")  # name code that lies in the repository
OTHERS = ("quantization_config", "backbone", "backbone_config", "use_timm_backbone", "use_pretrained_backbone")
OF_CALLS = re.compile(
    r"architectures|dtype|torch_dtype|return_dict|use_return_dict|output_.*|torchscript|transformers_version|.*implementation.*|"
    r"id2label|label2id|num_labels|model_type|use_kernels|_name_or_path|name_or_path|gradient_checkpointing"
)
WORD = re.compile(r"[\w-]{0,100}")


def read_description(path: Path) -> dict[str, Any]:
    """Reads a config.json. Raises: UserError for a kind of model that is not taken, NotAllowed for one that would run code."""
    return checked_description(read_named(path), str(path))


def checked_description(content: Any, place: str) -> dict[str, Any]:
    """Returns `content`, if it describes a kind of model that is taken. Raises as `read_description` does."""
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        raise UserError(f"{place} describes no model of transformers: it has no model_type")
    _refuse(content, place)
    if kind not in (*TEXTS, *IMAGES):
        near = difflib.get_close_matches(kind, (*TEXTS, *IMAGES), n=2, cutoff=0.75)
        also = f" Near it are {' and '.join(near)}." if near else ""
        raise UserError(
            f"{place}: the model type {kind!r} is none of those whose image features are known here.{also} Known: "
            f"{', '.join(sorted((*TEXTS, *IMAGES)))}. Any other module is an encoder of your own (library: own)"
        )
    return content


def config_of(description: dict[str, Any]) -> PretrainedConfig:
    """Makes transformers' configuration out of a description that was checked. Raises what its class raises."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[description["model_type"]]
    return cls(**_fields(description, cls))


def _refuse(value: Any, place: str, key: str = "") -> None:
    """Raises NotAllowed for keys, at any depth, by which a model would bring code, or have another package or model loaded."""
    if isinstance(value, list):
        for each in value:
            _refuse(each, place, key)
    if not isinstance(value, dict):
        return
    for name, each in value.items():
        path = f"{key}.{name}" if key else str(name)
        if name in CODE and each:
            raise NotAllowed(
                f"{place}: {path} asks for code that lies beside the model, and no code of others is run. Take a model that "
                "transformers itself has or, if you trust the code, put it on your Python path and name it by library: own"
            )
        if name in OTHERS and each:
            raise NotAllowed(
                f"{place}: {path} asks for another package or model, which is not loaded. Take a plain model"
            )
        _refuse(each, place, path)


def _fields(description: dict[str, Any], cls: type) -> dict[str, Any]:
    own = {each.name for each in fields(cls)}
    found = {}
    for name, value in description.items():
        part = cls.sub_configs.get(name.removesuffix("_dict"))  # CLIP's older files also have text_config_dict
        if part is not None:
            found[name] = _fields(value, part) if isinstance(value, dict) else None
        elif not OF_CALLS.fullmatch(name) and (_plain(value) if name in own else _numbers(value)):
            found[name] = value
    return {name: value for name, value in found.items() if value is not None or name in own}


def _plain(value: Any) -> bool:
    """Says whether a value is made of numbers, true and false, and short words."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _plain(each) for name, each in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and bool(WORD.fullmatch(value)))


def _numbers(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, list) and all(map(_numbers, value)))
