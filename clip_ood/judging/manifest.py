"""What stands in a detector's folder, as its manifest says: found, read and checked."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from clip_ood.backbones.fingerprint import digest
from clip_ood.json_files import read_json

FOLDER, MANIFEST, STATE, ENCODER = "detector", "detector.json", "state.safetensors", "encoder"
FORMAT = 2
READ = (1, 2)  # format 1 does not say what predicts classes: the head, else the texts


class DetectorFolderError(ValueError):
    """A detector's folder that is missing, damaged, changed, or of another version."""


def find_folder(place: Path) -> Path:
    """The detector's folder of a run, or `place` itself where it is one.

    Raises: DetectorFolderError for anything else, with what to do.
    """
    for folder in (place / FOLDER, place):
        if (folder / MANIFEST).is_file():
            return folder
    if not place.is_dir():
        raise DetectorFolderError(f"There is no run or detector folder {place}")
    if seeds := sorted(place.glob(f"seed-*/{FOLDER}/{MANIFEST}")):
        raise DetectorFolderError(f"{place} has a run for each of several seeds: name one, {seeds[0].parents[1]}")
    raise DetectorFolderError(
        f"{place} holds no detector ({FOLDER}/{MANIFEST}): it is no finished run, or was made with evaluation.save_detector="
        "false; train.py or eval.py --run writes one"
    )


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the digest of its own content."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return content | {"digest": digest(content)}


def read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path)
        if not isinstance(manifest, dict) or "format" not in manifest:
            raise ValueError("no format")
    except ValueError as error:
        raise DetectorFolderError(f"{path} is damaged ({error}); copy the folder again") from error
    if manifest["format"] not in READ:
        made = manifest.get("versions", {}).get("clip-ood", "another version")
        raise DetectorFolderError(
            f"{path} is of format {manifest['format']} (clip-ood {made}), and this version reads format {FORMAT}: use that "
            "version, or run the experiment again"
        )
    if sealed(manifest)["digest"] != manifest.get("digest"):
        raise DetectorFolderError(f"{path} was changed after it was saved; copy the folder again")
    if outside := [name for name in manifest["files"] if PurePath(name).is_absolute() or ".." in PurePath(name).parts]:
        raise DetectorFolderError(
            f"{path} names a file outside its folder, {outside[0]!r}, which no run does: do not use it"
        )
    return manifest
