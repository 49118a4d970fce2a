"""Writes the files from which open_clip builds a model, out of a configuration that was checked.

By itself, open_clip reads a folder's or a repository's configuration as it is, and passes on what it says about text towers and
tokenizers. Here every configuration is read by `checked_config`, every file is fetched by `Remote`, and open_clip and
transformers see only one temporary folder:

<folder>/open_clip_config.json    of the model
<folder>/text_tower/config.json   of a text tower of transformers, if the model has one
<folder>/tokenizer/               its tokenizer's files
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clip_ood.backbones.checked_config import (
    MODEL,
    OPEN_CLIP,
    TEXT_TOWER,
    checked,
    read_checked,
)
from clip_ood.backbones.open_clip_library import CONFIG
from clip_ood.backbones.repository_files import repository_files, write_json, write_tokenizer
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.backbones.weights import remote_config
from clip_ood.errors import UserError
from clip_ood.files.records import read_json

NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
OF_TEXT = ("text_cfg", "multimodal_cfg", "custom_text")


def describe(spec: BackboneSpec, download: bool = True) -> dict[str, Any]:
    """Returns the content of an open_clip_config.json for the model that `spec` names: its architecture and preprocessing, for images of
    the size that `spec` asks for.

    Raises: ValueError for a configuration with a key that is not allowed, ConnectionError as `Remote.fetch` does.
    """
    described = _described(spec, download)
    if spec.image_size is not None:
        described["model_cfg"]["vision_cfg"]["image_size"] = spec.image_size
        (described.get("preprocess_cfg") or {}).pop("size", None)  # open_clip then takes that of the tower
    return described


def _described(spec: BackboneSpec, download: bool) -> dict[str, Any]:
    if spec.model.startswith("local-dir:"):
        return read_description(Path(spec.model.removeprefix("local-dir:"), CONFIG))
    if remote := remote_config(spec):
        return read_description(remote.fetch(download))
    import open_clip

    from clip_ood.backbones.open_clip_backbone import training_tag, uses_quick_gelu

    model = checked(open_clip.get_model_config(spec.model), MODEL, f"open_clip's {spec.model}.json")
    if uses_quick_gelu(spec):
        model["quick_gelu"] = True
    tag = training_tag(spec)
    prepared = {key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in tag}
    return {"model_cfg": model, "preprocess_cfg": prepared}


def read_description(path: Path) -> dict[str, Any]:
    """Reads an open_clip_config.json. Raises: ValueError for one that is not allowed, or describes no model."""
    described = read_checked(path, OPEN_CLIP)
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if (described.get("model_cfg") or {}).get(key) is None:
            raise UserError(f"{path} describes no model of open_clip: model_cfg.{key} is missing")
    return described


def read_images_alone(path: Path) -> dict[str, Any]:
    """Reads an open_clip_config.json without its text tower, whatever that is. Raises as `read_description` does."""
    try:
        described = without_text(read_json(path))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path} describes no model of open_clip ({error})") from error
    return checked(described, OPEN_CLIP, str(path))


def without_text(described: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a description with a minimal text tower in place of its own."""
    model = {key: value for key, value in described["model_cfg"].items() if key not in OF_TEXT}
    return {**described, "model_cfg": model | {"text_cfg": NO_TEXT}}


@contextmanager
def written(described: Mapping[str, Any], spec: BackboneSpec, with_tokenizer: bool, download: bool) -> Iterator[Path]:
    """Provides the folder for open_clip while it is needed; open_clip's warnings of weights that are not there yet are dropped."""
    model = deepcopy(described["model_cfg"])
    text = model.get("text_cfg") or {}
    with _unlogged(), TemporaryDirectory(prefix="clip-ood-") as place:
        folder = Path(place)
        if name := text.get("hf_model_name"):
            _write_tower(folder / "text_tower", name, spec, download)
            text["hf_model_name"] = str(folder / "text_tower")
        if with_tokenizer and (name := text.get("hf_tokenizer_name")):
            write_tokenizer(folder / "tokenizer", name, spec, download)
        write_json(folder / CONFIG, {"model_cfg": model, "preprocess_cfg": described.get("preprocess_cfg") or {}})
        yield folder


def _write_tower(folder: Path, name: str, spec: BackboneSpec, download: bool) -> None:
    folder.mkdir()
    if spec.model.startswith("local-dir:") and Path(name).is_dir():
        source = Path(name, "config.json")
    else:
        source = repository_files(name, ["config.json"], spec.model, "text tower", download).get("config.json")
    if source is None or not source.is_file():
        raise UserError(f"text_cfg.hf_model_name: {name} holds no config.json, which describes the text tower")
    write_json(folder / "config.json", read_checked(source, TEXT_TOWER))


@contextmanager
def _unlogged() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
