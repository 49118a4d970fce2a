"""What identifies an encoder's outputs, known without loading its weights."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from clip_ood.backbones.names import BackboneSpec


def fingerprint(spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
    """Architecture, weights, preprocessing and precision of an encoder: equal fingerprints, equal features.

    weights is a hub revision, the SHA-256 of a local file (remembered in the JSON file `hashes` by path, size and
    mtime), or the seed of random weights. A `text` entry tells the text tower of an open_clip model.
    """
    describe = _timm if spec.library == "timm" else _open_clip
    return {"library": spec.library, "model": spec.model, "precision": spec.precision, **describe(spec, hashes)}


def digest(value: Any) -> str:
    """16 hex digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _open_clip(spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
    if spec.model.startswith("local-dir:"):
        folder = Path(spec.model.removeprefix("local-dir:"))
        from open_clip.factory import _find_checkpoint_in_dir

        config = json.loads((folder / "open_clip_config.json").read_text())
        checkpoint = _find_checkpoint_in_dir(folder)
        weights = file_hash(Path(checkpoint), hashes) if checkpoint else f"random:{spec.random_seed}"
        content = {"architecture": digest(_without_paths(config)), "weights": weights}
        return content | {"model": "local-dir"}  # the folder may move; its files are what counts
    if spec.model.startswith("hf-hub:"):
        return {"weights": hub_revision(spec.model.removeprefix("hf-hub:"), "open_clip_config.json")}

    from open_clip import get_model_config
    from open_clip.pretrained import get_pretrained_cfg

    from clip_ood.backbones.open_clip_backbone import uses_quick_gelu

    content = {"architecture": digest(get_model_config(spec.model)), "quick_gelu": uses_quick_gelu(spec)}
    tag = get_pretrained_cfg(spec.model, spec.pretrained or "") or {}
    if tag:
        prepared = {key: value for key, value in tag.items() if key not in ("url", "hf_hub")}
        return content | {"preprocessing": prepared, "weights": _tag_weights(tag)}
    weights = file_hash(Path(spec.pretrained), hashes) if spec.pretrained else f"random:{spec.random_seed}"
    return content | {"preprocessing": spec.preprocess, "weights": weights}


def _tag_weights(tag: dict[str, Any]) -> str:
    if tag.get("hf_hub"):
        repository, _, file = tag["hf_hub"].rpartition("/")
        return hub_revision(repository, file or "open_clip_model.safetensors")
    return tag["url"]  # OpenAI's addresses hold the SHA-256


def _timm(spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
    import timm
    from timm.models import get_pretrained_cfg

    if spec.pretrained is None:
        return {"weights": f"random:{spec.random_seed}", "timm": timm.__version__}
    config = get_pretrained_cfg(spec.model)
    if spec.pretrained != "default":
        return {"weights": file_hash(Path(spec.pretrained), hashes), "preprocessing": config.to_dict()}
    if config.hf_hub_id:
        return {"weights": hub_revision(config.hf_hub_id, "model.safetensors"), "preprocessing": config.to_dict()}
    return {"weights": config.url, "preprocessing": config.to_dict()}


def hub_revision(repository: str, file: str) -> str:
    """`repository@commit`: of the copy in the local cache if there is one, else of the hub's newest.

    Raises: ConnectionError without a cached copy and without network.
    """
    from huggingface_hub import HfApi, constants

    folder = Path(constants.HF_HUB_CACHE, "models--" + repository.replace("/", "--"))
    if (pointer := folder / "refs" / "main").is_file() and any(folder.glob("snapshots/*/*")):
        return f"{repository}@{pointer.read_text().strip()}"
    try:
        return f"{repository}@{HfApi().model_info(repository).sha}"
    except Exception as error:
        raise ConnectionError(
            f"The weights {repository} are not in the local cache and the Hugging Face hub does not answer "
            f"({type(error).__name__}). With network they are downloaded to {constants.HF_HUB_CACHE}; without it, name a "
            "checkpoint file as backbone.pretrained, or try --backbone=backbones/demo.yaml, which needs no download."
        ) from error


def file_hash(path: Path, remembered: Path) -> str:
    """SHA-256 of a file, computed once for each (path, size, mtime) and remembered in a JSON file.

    Raises: FileNotFoundError.
    """
    path = path.resolve()
    stat = path.stat()
    key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
    known = json.loads(remembered.read_text()) if remembered.is_file() else {}
    if key not in known:
        known[key] = f"sha256:{_sha256(path)}"
        remembered.parent.mkdir(parents=True, exist_ok=True)
        temporary = remembered.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(known, indent=1))
        temporary.replace(remembered)
    return known[key]


def _sha256(path: Path) -> str:
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def _without_paths(config: Any) -> Any:
    """A config without absolute paths: moving a folder changes no feature."""
    if isinstance(config, dict):
        return {key: _without_paths(value) for key, value in config.items()}
    return "" if isinstance(config, str) and os.path.isabs(config) else config
