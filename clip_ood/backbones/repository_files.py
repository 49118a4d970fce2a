"""Files of a repository on the hub, each fetched by `Remote`, and those of a tokenizer, written out after they were checked."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from clip_ood.backbones.checked_config import MODEL_TYPE, TOKENIZER_FILES, checked, read_checked
from clip_ood.backbones.remote import Refused, Remote
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.errors import UserError
from clip_ood.files.records import read_json, undamaged
from clip_ood.files.writing import write_text
from clip_ood.terminal.shown import say

REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # on the Hugging Face hub


def write_tokenizer(folder: Path, name: str, spec: BackboneSpec, download: bool) -> None:
    """Writes the tokenizer's files. As in open_clip, that of a local-dir: is looked for in that folder, whatever its name."""
    folder.mkdir()
    names = ["config.json", *TOKENIZER_FILES]
    if spec.model.startswith("local-dir:"):
        own = Path(spec.model.removeprefix("local-dir:"))
        found = {each: own / each for each in names if (own / each).is_file()}
    else:
        found = repository_files(name, names, spec.model, "tokenizer", download)
    if not found.keys() & TOKENIZER_FILES.keys():
        raise UserError(f"the tokenizer of {name}: there are no files of a tokenizer (tokenizer.json, …)")
    if model := found.pop("config.json", None):  # the kind of model that it was made for helps to find its class
        with undamaged(model):
            content = read_json(model)
        if isinstance(content, dict) and (kind := content.get("model_type")):
            write_json(folder / "config.json", checked({"model_type": kind}, MODEL_TYPE, str(model)))
    for each, path in found.items():
        if TOKENIZER_FILES[each] is None:
            shutil.copyfile(path, folder / each)
        else:
            write_json(folder / each, read_checked(path, TOKENIZER_FILES[each]))


def repository_files(name: str, wanted: list[str], model: str, what: str, download: bool) -> dict[str, Path]:
    """Returns those of some files that a repository on the hub has."""
    from huggingface_hub import constants, try_to_load_from_cache

    if not REPOSITORY.fullmatch(name):
        raise UserError(f"the {what} of {model} is neither a folder nor a repository ORG/NAME: {name!r}")
    found: dict[str, Path] = {}
    said = False
    for file in wanted:
        remote = Remote(Path(constants.HF_HUB_CACHE), name, (file,))
        known = try_to_load_from_cache(name, file, cache_dir=remote.cache)
        if isinstance(known, str):
            found[file] = Path(known)
        elif known is None and download and not constants.HF_HUB_OFFLINE:  # otherwise it is known not to be there
            if not said:
                about = f"the {what} of {model} from {remote.address} to {remote.cache}"
                say(f"Downloading what the cache lacks of {about} (size not known)", flush=True)
                said = True
            try:
                found[file] = remote.fetch(download)
            except Refused:
                raise
            except ConnectionError:
                continue
    if not found:
        raise ConnectionError(
            f"the {what} of {model} is not in the local cache {constants.HF_HUB_CACHE}, and the hub does not give it: "
            f"https://huggingface.co/{name}"
        )
    return found


def write_json(path: Path, content: Any) -> None:
    """Writes a value as JSON."""
    write_text(path, json.dumps(content, default=list))
