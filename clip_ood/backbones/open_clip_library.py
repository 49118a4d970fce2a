"""Encoders of images and texts from open_clip, by a name and tag of its lists, on the hub, in a folder, or as a checkpoint file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from clip_ood.backbones.checked_config import OPEN_CLIP, TEXT_TOWER, TOKENIZER_FILES, read_checked
from clip_ood.backbones.fingerprint import digest, file_hash, weights_of
from clip_ood.backbones.library import Library, library
from clip_ood.backbones.model_lists import clean, models, nearest_of
from clip_ood.backbones.remote import Remote, hub_cache
from clip_ood.backbones.repository_files import REPOSITORY
from clip_ood.backbones.spec import BackboneSpec, ImageSpec
from clip_ood.errors import UserError
from clip_ood.files.records import read_json, undamaged

if TYPE_CHECKING:
    from clip_ood.backbones.backbone import Backbone

SCHEMES = ("hf-hub:", "local-dir:")
CONFIG = "open_clip_config.json"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TEXT_FILES = ("config.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model")


class OpenClip(Library):
    package, reads_text, takes_tokens = "open_clip_torch", True, True

    def list_models(self) -> dict[str, list[str]]:
        import open_clip

        return {model: open_clip.list_pretrained_tags_by_model(model) for model in open_clip.list_models()}

    def check(self, spec: BackboneSpec) -> None:
        if spec.pooling != "default":
            raise UserError(
                f"backbone.pooling: {spec.pooling} goes with encoders of timm: the embeddings of {spec.model} are made of its own pooling. "
                "Leave it out, or take the image tower alone (library: timm, as vit_base_patch16_clip_224.openai)"
            )
        if spec.model.startswith(SCHEMES):
            _check_own(spec)
        else:
            _check_open_clip(spec)

    def check_text(self, spec: BackboneSpec, text: BackboneSpec) -> None:
        library(text.library).check(text)
        widths = joint_width(spec.model), joint_width(text.model)
        if None not in widths and widths[0] != widths[1]:
            raise UserError(
                f"backbone.text: {text.model} embeds texts in {widths[1]} dimensions, and {spec.model} images in {widths[0]}; "
                "take a text tower that was trained with this image tower"
            )

    def remote_config(self, spec: BackboneSpec) -> Remote | None:
        if not spec.model.startswith("hf-hub:"):
            return None
        return Remote(hub_cache(), spec.model.removeprefix("hf-hub:"), (CONFIG,))

    def remote_weights(self, spec: BackboneSpec) -> Remote | None:
        if spec.model.startswith("hf-hub:"):
            return Remote(hub_cache(), spec.model.removeprefix("hf-hub:"), FILES)
        from open_clip.pretrained import get_pretrained_cfg

        tag = get_pretrained_cfg(spec.model, spec.pretrained or "")
        if not tag:
            return None
        if not tag.get("hf_hub"):
            return Remote(Path("~/.cache/clip").expanduser(), url=tag["url"])
        repository, _, file = tag["hf_hub"].rpartition("/")
        return Remote(hub_cache(), repository, (f"{file.rpartition('.')[0]}.safetensors", file) if file else FILES)

    def local_weights(self, spec: BackboneSpec) -> Path | None:
        """Returns the checkpoint file, by itself or in the model's folder."""
        if not spec.model.startswith("local-dir:"):
            return super().local_weights(spec)
        from open_clip.factory import _find_checkpoint_in_dir

        folder = Path(spec.model.removeprefix("local-dir:"))
        if file := _find_checkpoint_in_dir(folder):
            return Path(file)
        others = sorted(
            path for path in folder.iterdir() if path.suffix in (".pt", ".ckpt", ".npz")
        )  # open_clip ignores these
        if len(others) > 1:
            raise UserError(
                f"{folder} holds several checkpoints ({', '.join(path.name for path in others[:3])}): leave the one that is meant there"
            )
        return others[0] if others else None

    def fingerprint(self, spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
        """Adds `text`, which identifies the text tower's configuration and tokenizer in a folder."""
        if spec.model.startswith("local-dir:"):
            return _folder(Path(spec.model.removeprefix("local-dir:")), spec, hashes)
        if spec.model.startswith("hf-hub:"):
            return {"weights": weights_of(spec, hashes)}
        from open_clip import get_model_config

        from clip_ood.backbones.open_clip_backbone import training_tag, uses_quick_gelu

        prepared = {key: value for key, value in training_tag(spec).items() if key not in ("url", "hf_hub")}
        return {
            "architecture": digest(get_model_config(spec.model)),
            "quick_gelu": uses_quick_gelu(spec),
            "preprocessing": prepared,
            "weights": weights_of(spec, hashes),
        }

    def create(self, spec: BackboneSpec, download: bool) -> Backbone:
        from clip_ood.backbones.open_clip_backbone import OpenClipBackbone

        return OpenClipBackbone(spec, download)

    def image_side(self, spec: BackboneSpec) -> Backbone:
        from clip_ood.backbones.open_clip_files import describe, without_text

        return self._built(without_text(describe(spec, download=False)), spec)

    def described(self, backbone: Backbone) -> Mapping[str, Any]:
        """Returns the architecture and preprocessing, with a minimal text tower."""
        from clip_ood.backbones.open_clip_files import without_text

        return without_text(backbone.described) | {"preprocess_cfg": backbone.image_tower.preprocess_cfg}

    def restored(self, spec: BackboneSpec, described: Path) -> Backbone:
        from clip_ood.backbones.open_clip_files import read_images_alone

        return self._built(read_images_alone(described), spec)

    def _built(self, described: Mapping[str, Any], spec: BackboneSpec) -> Backbone:
        with TemporaryDirectory() as place:
            Path(place, CONFIG).write_text(json.dumps(described, default=list), encoding="utf-8")
            own = ImageSpec("open_clip", f"local-dir:{place}", precision=spec.precision, image_size=spec.image_size)
            return self.create(own, download=False)


def _check_own(spec: BackboneSpec) -> None:
    for key in ("pretrained", "preprocess"):
        if value := getattr(spec, key):
            raise UserError(
                f"Backbone {spec.model} brings its own weights and preprocessing: leave `{key}` out (got {value!r})"
            )
    if spec.model.startswith("hf-hub:"):
        if not REPOSITORY.fullmatch(spec.model.removeprefix("hf-hub:")):
            raise UserError(f"Backbone {spec.model}: a model on the Hugging Face hub is named hf-hub:ORG/REPO")
        return
    folder = Path(spec.model.removeprefix("local-dir:"))
    if not (folder / "open_clip_config.json").is_file():
        raise UserError(f"Backbone {spec.model}: {folder} holds no open_clip_config.json.{_demo_hint(folder)}")
    described = read_checked(folder / "open_clip_config.json", OPEN_CLIP)
    if not isinstance(spec, ImageSpec):
        _check_text_files(folder, (described.get("model_cfg") or {}).get("text_cfg") or {})


def _check_text_files(folder: Path, text: dict[str, Any]) -> None:
    """Raises NotAllowed for a text tower or tokenizer in a model's own folder whose description is not allowed."""
    files: dict[Path, Any] = {}
    if text.get("hf_model_name"):
        files[Path(text["hf_model_name"], "config.json")] = TEXT_TOWER
    if text.get("hf_tokenizer_name"):
        files |= {folder / name: keys for name, keys in TOKENIZER_FILES.items() if keys is not None}
    for path, keys in files.items():
        if path.is_file():
            read_checked(path, keys)


def _check_open_clip(spec: BackboneSpec) -> None:
    known = models("open_clip")
    if spec.model not in known:
        meant = _place(spec.model)
        near = f" Did you mean {meant}?" if meant else nearest_of(spec.model, known)
        raise UserError(f"open_clip has no model {spec.model!r}.{near}")
    tags = known[spec.model] | known.get(spec.model.removesuffix("-quickgelu"), frozenset())
    if spec.pretrained and clean(spec.pretrained) in tags:
        if spec.preprocess:
            raise UserError(
                f"The pretrained tag {spec.pretrained} says how its images were prepared: leave `preprocess` out "
                f"(got {spec.preprocess!r})"
            )
    elif spec.pretrained:
        _check_file(spec, tags)
    if spec.preprocess and clean(spec.preprocess) not in tags:
        raise UserError(f"{spec.model} has no pretrained tag {spec.preprocess!r}.{nearest_of(spec.preprocess, tags)}")


def _check_file(spec: BackboneSpec, tags: frozenset[str]) -> None:
    if not Path(spec.pretrained).is_file():
        near = nearest_of(spec.pretrained, tags)
        known = f" Known: {', '.join(sorted(tags))}." if tags else ""
        raise UserError(f"{spec.model} has no pretrained tag or checkpoint file {spec.pretrained!r}.{near}{known}")
    if not tags:
        raise UserError(
            f"The checkpoint {spec.pretrained} does not say how its images were prepared, and {spec.model} has no "
            "pretrained tags to name: put it in a folder with an open_clip_config.json and use model local-dir:FOLDER."
        )
    if not spec.preprocess:
        raise UserError(
            f"The checkpoint {spec.pretrained} does not say how its images were prepared: set backbone.preprocess to "
            f"the pretrained tag whose mean, std and activation it was trained with, for instance {min(tags)}."
        )


def _place(model: str) -> str | None:
    """Returns our name for a repository on the hub, a folder, or a model by OpenAI's name (ViT-B/32), and None for other names."""
    if (name := model.replace("/", "-")) in models("open_clip"):
        return name
    if Path(model, "open_clip_config.json").is_file():
        return f"local-dir:{model}"
    found = re.fullmatch(
        r"(?:(?:https?://)?huggingface\.co/|hf[-_]hub:/*)?([\w-][\w.-]*/[\w-][\w.-]*?)/?", model, re.IGNORECASE
    )
    return f"hf-hub:{found[1]}" if found else None


def _demo_hint(folder: Path) -> str:
    return " Build it: clip-ood demo encoder" if folder.name == "demo_encoder" else ""


def joint_width(model: str) -> int | None:
    """Returns the width of an open_clip model's joint space by its configuration.

    It is None if the configuration does not say, and for a model on the hub.
    """
    if model.startswith("hf-hub:"):
        return None
    if model.startswith("local-dir:"):
        described = read_checked(Path(model.removeprefix("local-dir:"), "open_clip_config.json"), OPEN_CLIP)
        return (described.get("model_cfg") or {}).get("embed_dim")
    return json.loads((_package() / "model_configs" / f"{model}.json").read_text("utf-8"))["embed_dim"]


def _folder(folder: Path, spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
    """Identifies a folder by its files, since it may be moved."""
    with undamaged(folder / "open_clip_config.json"):
        config = read_json(folder / "open_clip_config.json")
    text_files = sorted({path for pattern in TEXT_FILES for path in folder.glob(pattern)})
    return {
        "model": "local-dir",
        "architecture": digest(_without_paths(config)),
        "weights": weights_of(spec, hashes),
        "text": digest({path.name: file_hash(path, hashes) for path in text_files}),
    }


def _without_paths(config: Any) -> Any:
    """Returns a config without absolute paths, because moving a folder changes no feature."""
    if isinstance(config, dict):
        return {key: _without_paths(value) for key, value in config.items()}
    return "" if isinstance(config, str) and os.path.isabs(config) else config


def _package() -> Path:
    return Path(next(iter(find_spec("open_clip").submodule_search_locations)))
