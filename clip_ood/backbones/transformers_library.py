"""Encoders from transformers: a repository of the Hugging Face hub, or a folder that holds the same files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_ood.backbones.fingerprint import digest, file_hash, weights_of
from clip_ood.backbones.library import Library
from clip_ood.backbones.remote import Remote, hub_cache
from clip_ood.backbones.repository_files import REPOSITORY, repository_files
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.backbones.transformers_config import IMAGES, TEXTS, read_description
from clip_ood.errors import UserError
from clip_ood.files.records import read_named

if TYPE_CHECKING:
    from clip_ood.backbones.backbone import Backbone

LOCAL = "local-dir:"
CONFIG = "config.json"
PREPARED = ("preprocessor_config.json", "processor_config.json")
INDEX = "model.safetensors.index.json"  # of weights in several files
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin")
TEXT_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")


class Transformers(Library):
    package, reads_text, described_in = "transformers", True, CONFIG

    def list_models(self) -> dict[str, list[str]]:
        """Returns the types of models whose image features are known; repositories have no list."""
        return {kind: [] for kind in sorted((*TEXTS, *IMAGES))}

    def check(self, spec: BackboneSpec) -> None:
        _check(spec)

    def reads_texts(self, spec: BackboneSpec) -> bool:
        return read_description(config_file(spec, download=True))["model_type"] in TEXTS

    def remote_config(self, spec: BackboneSpec) -> Remote | None:
        return None if spec.model.startswith(LOCAL) else Remote(hub_cache(), spec.model, (CONFIG,))

    def remote_weights(self, spec: BackboneSpec) -> Remote | None:
        if spec.model.startswith(LOCAL) or spec.pretrained != "default":
            return None
        return Remote(hub_cache(), spec.model, WEIGHTS)

    def local_weights(self, spec: BackboneSpec) -> Path | None:
        """Returns the checkpoint file, by itself or in the model's folder; for weights in several files, the list of them."""
        if spec.pretrained != "default":
            return super().local_weights(spec)
        if not spec.model.startswith(LOCAL):
            return None
        folder = _folder(spec)
        return next(folder / name for name in WEIGHTS if (folder / name).is_file())

    def fingerprint(self, spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
        """Adds what identifies a folder, which may be moved, and the configuration that weights of a file are loaded into."""
        own = {"weights": self._weights(spec, hashes)}
        if spec.pretrained is None:
            own["transformers"] = version(self.package)
        if not spec.model.startswith(LOCAL):
            return own if spec.pretrained == "default" else own | {"configuration": self.remote_config(spec).revision()}
        folder = _folder(spec)
        read = {name: read_named(folder / name) for name in (CONFIG, *PREPARED) if (folder / name).is_file()}
        texts = sorted({path for pattern in TEXT_FILES for path in folder.glob(pattern)})
        return own | {
            "model": "local-dir",
            "architecture": digest(
                {key: value for key, value in read.pop(CONFIG).items() if "name_or_path" not in key}
            ),
            "preprocessing": digest(read),
            "text": digest({path.name: file_hash(path, hashes) for path in texts}),
        }

    def _weights(self, spec: BackboneSpec, hashes: Path) -> str:
        file = self.local_weights(spec)
        if file is None or file.name != INDEX:
            return weights_of(spec, hashes)
        return f"files:{digest({path.name: file_hash(path, hashes) for path in parts_of(file, None)})}"

    def create(self, spec: BackboneSpec, download: bool) -> Backbone:
        from clip_ood.backbones.transformers_backbone import transformers_backbone

        return transformers_backbone(spec, download)

    def described(self, backbone: Backbone) -> Mapping[str, Any]:
        """Returns the model's configuration, whether it has its pooler, and the figures by which images are prepared."""
        return backbone.described

    def restored(self, spec: BackboneSpec, described: Path) -> Backbone:
        from clip_ood.backbones.transformers_backbone import restored

        _require(self.package)
        return restored(spec, described)


def config_file(spec: BackboneSpec, download: bool) -> Path:
    """Returns the model's config.json, of its folder or from the hub. Raises: ConnectionError if it cannot be had."""
    if spec.model.startswith(LOCAL):
        return _folder(spec) / CONFIG
    return repository_files(spec.model, [CONFIG], spec.model, "configuration", download)[CONFIG]


def prepared_file(spec: BackboneSpec, download: bool) -> Path:
    """Returns the file that says how the model's images are prepared. Raises: UserError if there is none, ConnectionError."""
    if spec.model.startswith(LOCAL):
        found = {name: _folder(spec) / name for name in PREPARED if (_folder(spec) / name).is_file()}
    else:
        found = repository_files(spec.model, list(PREPARED), spec.model, "preprocessing", download)
    if not found:
        raise UserError(
            f"{_folder(spec)} holds no {PREPARED[0]}, which says how images are prepared; save the image processor there"
        )
    return found.get(PREPARED[0]) or found[PREPARED[1]]


def parts_of(index: Path, remote: Remote | None, download: bool = False) -> list[Path]:
    """Returns the files that an index of weights names, each fetched if they come from a repository.

    Raises: UserError for an index that names files elsewhere, ConnectionError as `Remote.fetch` does.
    """
    content = read_named(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    names = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
    if not names or any(name in ("", "..") or "\0" in name or Path(name).name != name for name in names):
        raise UserError(f"{index} names no files of weights beside it")
    if remote is None:
        files = [index.with_name(name) for name in names]
        if missing := [file.name for file in files if not file.is_file()]:
            raise UserError(
                f"{index} names {len(files)} files of weights, and {missing[0]} is not beside it: bring it there"
            )
        return files
    return [Remote(remote.cache, remote.repository, (name,)).fetch(download) for name in names]


def _check(spec: BackboneSpec) -> None:
    _require(Transformers.package)
    if spec.preprocess:
        raise UserError(
            f"transformers' models know their preprocessing: leave `preprocess` out (got {spec.preprocess!r})"
        )
    if spec.pooling != "default":
        raise UserError(
            f"backbone.pooling: {spec.pooling} goes with encoders of timm: a model of transformers keeps its own pooling. Leave it out"
        )
    if spec.image_size is not None:
        raise UserError("backbone.image_size: a model of transformers keeps its own size of images. Leave it out")
    if spec.model.startswith(LOCAL):
        _check_folder(spec)
    elif not REPOSITORY.fullmatch(spec.model) or "/" not in spec.model:
        raise UserError(_no_such(spec.model))
    if spec.pretrained not in (None, "default") and not Path(spec.pretrained).is_file():
        raise UserError(
            f"transformers: `pretrained` is `default` (the model's own weights), null (random weights) or a checkpoint file; there is no "
            f"file {spec.pretrained!r}"
        )


def _check_folder(spec: BackboneSpec) -> None:
    folder = _folder(spec)
    if not (folder / CONFIG).is_file():
        beside = (
            [each.name for each in folder.parent.iterdir() if (each / CONFIG).is_file()]
            if folder.parent.is_dir()
            else []
        )
        near = difflib.get_close_matches(folder.name, beside, n=1)
        meant = f" Did you mean {LOCAL}{folder.with_name(near[0])}?" if near else ""
        raise UserError(f"Backbone {spec.model}: {folder} holds no {CONFIG}, as a model of transformers does.{meant}")
    read_description(folder / CONFIG)
    if spec.pretrained == "default" and not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(
            f"Backbone {spec.model}: {folder} holds no weights ({', '.join(WEIGHTS)}); null draws random ones"
        )


def _no_such(model: str) -> str:
    for prefix in ("https://huggingface.co/", "hf-hub:"):
        if model.startswith(prefix) and "/" in (name := model.removeprefix(prefix).strip("/")):
            return f"transformers has no model {model!r}. Did you mean {name}?"
    if Path(model, CONFIG).is_file():
        return f"transformers has no model {model!r}. Did you mean {LOCAL}{model}?"
    return f"transformers has no model {model!r}: name a repository of the Hugging Face hub as ORG/REPO, or a folder as {LOCAL}FOLDER"


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise UserError(
            f"library: {package} needs the package {package}, which is not installed: pip install 'clip-ood[{package}]'"
        )


def _folder(spec: BackboneSpec) -> Path:
    return Path(spec.model.removeprefix(LOCAL))
