"""Writes the files from which open_clip builds a model, out of a configuration that was checked.

By itself, open_clip reads a folder's or a repository's configuration as it is, and passes on what it says about text towers and
tokenizers. Here every configuration is read by `checked_config`, every file is fetched by `Remote`, and open_clip and
transformers see only one temporary folder:

<folder>/open_clip_config.json    of the model
<folder>/text_tower/config.json   of a text tower of transformers, if the model has one
<folder>/tokenizer/               its tokenizer's files
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clip_ood.backbones.checked_config import (
    MODEL,
    MODEL_TYPE,
    OPEN_CLIP,
    TEXT_TOWER,
    TOKENIZER_FILES,
    checked,
    read_checked,
)
from clip_ood.backbones.open_clip_library import CONFIG, REPOSITORY
from clip_ood.backbones.remote import Remote
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.backbones.weights import remote_config
from clip_ood.errors import UserError
from clip_ood.files.records import read_json, undamaged
from clip_ood.files.writing import write_text
from clip_ood.terminal.shown import say

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
            _write_tokenizer(folder / "tokenizer", name, spec, download)
        _write(folder / CONFIG, {"model_cfg": model, "preprocess_cfg": described.get("preprocess_cfg") or {}})
        yield folder


def _write_tower(folder: Path, name: str, spec: BackboneSpec, download: bool) -> None:
    folder.mkdir()
    if spec.model.startswith("local-dir:") and Path(name).is_dir():
        source = Path(name, "config.json")
    else:
        source = _files(name, ["config.json"], spec, "text tower", download).get("config.json")
    if source is None or not source.is_file():
        raise UserError(f"text_cfg.hf_model_name: {name} holds no config.json, which describes the text tower")
    _write(folder / "config.json", read_checked(source, TEXT_TOWER))


def _write_tokenizer(folder: Path, name: str, spec: BackboneSpec, download: bool) -> None:
    """Writes the tokenizer's files. As in open_clip, that of a local-dir: is looked for in that folder, whatever its name."""
    folder.mkdir()
    names = ["config.json", *TOKENIZER_FILES]
    if spec.model.startswith("local-dir:"):
        own = Path(spec.model.removeprefix("local-dir:"))
        found = {each: own / each for each in names if (own / each).is_file()}
    else:
        found = _files(name, names, spec, "tokenizer", download)
    if not found.keys() & TOKENIZER_FILES.keys():
        raise UserError(f"text_cfg.hf_tokenizer_name: {name}: there are no files of a tokenizer (tokenizer.json, …)")
    if model := found.pop("config.json", None):  # the kind of model that it was made for helps to find its class
        with undamaged(model):
            content = read_json(model)
        if isinstance(content, dict) and (kind := content.get("model_type")):
            _write(folder / "config.json", checked({"model_type": kind}, MODEL_TYPE, str(model)))
    for each, path in found.items():
        if TOKENIZER_FILES[each] is None:
            shutil.copyfile(path, folder / each)
        else:
            _write(folder / each, read_checked(path, TOKENIZER_FILES[each]))


def _files(name: str, wanted: list[str], spec: BackboneSpec, what: str, download: bool) -> dict[str, Path]:
    """Returns those of some files that a repository on the hub has."""
    from huggingface_hub import constants, try_to_load_from_cache

    if not REPOSITORY.fullmatch(name):
        raise UserError(f"the {what} of {spec.model} is neither a folder nor a repository ORG/NAME: {name!r}")
    found: dict[str, Path] = {}
    said = False
    for file in wanted:
        remote = Remote(Path(constants.HF_HUB_CACHE), name, (file,))
        known = try_to_load_from_cache(name, file, cache_dir=remote.cache)
        if isinstance(known, str):
            found[file] = Path(known)
        elif known is None and download and not constants.HF_HUB_OFFLINE:  # otherwise it is known not to be there
            if not said:
                about = f"the {what} of {spec.model} from {remote.address} to {remote.cache}"
                say(f"Downloading what the cache lacks of {about} (size not known)", flush=True)
                said = True
            try:
                found[file] = remote.fetch(download)
            except ConnectionError:
                continue
    if not found:
        raise ConnectionError(
            f"the {what} of {spec.model} is not in the local cache {constants.HF_HUB_CACHE}, and the hub does not give it: "
            f"https://huggingface.co/{name}"
        )
    return found


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, default=list))


@contextmanager
def _unlogged() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
