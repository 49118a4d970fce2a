"""Writes a fitted detector as the folder that `SavedDetector` reads, which lists its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.fingerprint import sha256
from clip_ood.backbones.image_encoder import save_image_encoder
from clip_ood.backbones.spec import BackboneSpec, EncoderSpec, ImageSpec
from clip_ood.calibration import Calibration, summary
from clip_ood.class_predictions import KNN, ClassPredictor
from clip_ood.detect.manifest import ENCODER, FORMAT, MANIFEST, STATE, sealed
from clip_ood.detect.saved import SavedDetector, bank_name
from clip_ood.detect.saved_encoder import Encoder
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.build import Omitted
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.statistic import statistics_of
from clip_ood.files.tensor_files import save_tensors
from clip_ood.files.writing import written_whole
from clip_ood.files.written_names import json_bytes
from clip_ood.outputs import WITH_NEGATIVES, Cache, Reference
from clip_ood.versions import versions


def described(spec: BackboneSpec, kind: type[EncoderSpec] = ImageSpec) -> EncoderSpec:
    """Returns the encoder of `spec`, by default without its texts, with files and folders by their absolute paths."""
    model, pretrained = spec.model, spec.pretrained
    if model.startswith("local-dir:"):
        model = f"local-dir:{Path(model.removeprefix('local-dir:')).resolve()}"
    if pretrained is not None and Path(pretrained).is_file():
        pretrained = str(Path(pretrained).resolve())
    own = (spec.preprocess, spec.random_seed, spec.precision, spec.pooling, spec.image_size)
    return kind(spec.library, model, pretrained, *own)


def save_bank(folder: Path, detectors: Mapping[str, Detector], rank: int = 0) -> None:
    """Writes this process's part of the banks that detectors search when they score: that of g, and one for each layer."""
    for bank in {bank for each in detectors.values() if each.portable for bank in searched(each)}:
        save_tensors(bank.state(), folder / f"{bank_name(bank.layer)}-{rank:05d}.safetensors")


def save_detector(
    folder: Path,
    encoder: Encoder,
    reference: Reference,
    detectors: Mapping[str, Detector],
    omitted: Sequence[Omitted],
    calibration: Mapping[str, Calibration] | None,
    about: Mapping[str, Any],
    accept: float,
    trained: tuple[Backbone, BackboneSpec] | None = None,
    predictor: ClassPredictor | None = None,
    bank_labels: Tensor | None = None,
) -> None:
    """Writes everything except the bank and its images, which already lie in `folder`; the manifest is written last.

    calibration: those of the detectors by name, None or empty if there are no ID val images; about: what the manifest says besides what
    is needed (run, method, batch_size of images); trained: the encoder, if the run changed it; predictor: what predicts classes
    (None: the head or, without one, the texts); bank_labels: if k-NN predicts, the classes by index of the bank's images.
    A detector that cannot be saved is left out, and named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    why = {name: obstacle(each, reference) for name, each in detectors.items()}
    kept = {name: each for name, each in detectors.items() if why[name] is None}
    left_out = [asdict(each) for each in omitted]
    left_out += [{"detector": name, "reason": reason} for name, reason in why.items() if reason is not None]
    state = _state(reference, kept, calibration)
    if predictor is not None and predictor.by == KNN:
        state["bank_labels"] = bank_labels.cpu()
    narrow = {name: value.float() for name, value in state.items() if _is_single(value)}
    save_tensors(state | narrow, folder / STATE)
    if trained is not None:
        save_image_encoder(folder / ENCODER, *trained)
        encoder = replace(encoder, in_folder=True)
    manifest = {
        "format": FORMAT,
        **about,
        "versions": versions(),
        "encoder": asdict(encoder),
        "class_names": None if reference.class_names is None else list(reference.class_names),
        "logit_scale": reference.logit_scale,
        "logit_bias": reference.logit_bias,
        "words": _words(reference, kept),
        "detectors": [_entry(name, each, calibration) for name, each in kept.items()],
        "omitted": left_out,
        "predictor": None if predictor is None else asdict(predictor),
        "accept": accept,
        "doubles": sorted(narrow),
        "calibration": summary({name: calibration[name] for name in kept}, accept) if calibration and kept else None,
    }
    seal(folder, manifest | {"files": hashes(folder, folder.rglob("*"))})


def add_encoder(saved: SavedDetector, encoder: str | None = None, allow_download: bool = False) -> bool:
    """Puts the weights of the image encoder into the detector's folder; returns True if they were not there yet.

    `encoder` and `allow_download` are as in `SavedDetector.backbone`. Files that links in the folder lead to are never written.

    Raises: DetectorFolderError for a folder that is damaged or changed, and if the encoder cannot be loaded.
    """
    if saved.encoder.in_folder:
        return False
    saved.check_files()
    backbone, place = saved.backbone(encoder, allow_download), saved.folder / ENCODER
    if place.is_symlink() or place.is_file():
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)  # left by a call that was killed
    written = save_image_encoder(place, backbone, saved.encoder.spec)
    files = saved.manifest["files"] | hashes(saved.folder, written)
    seal(saved.folder, saved.manifest | {"files": files, "encoder": asdict(replace(saved.encoder, in_folder=True))})
    return True


def _words(reference: Reference, detectors: Mapping[str, Detector]) -> dict[str, list[str]]:
    """Returns the negative labels whose words are needed, as some detector reads new texts made of them."""
    asked = {field for each in detectors.values() if "text_tower" in each.requires for field in each.requires}
    return {name: list(getattr(reference, name).words) for name in WITH_NEGATIVES if name in asked}


def _entry(name: str, detector: Detector, calibration: Mapping[str, Calibration] | None) -> dict[str, Any]:
    entry = {"column": name, "spec": detector.spec, "notes": detector.notes}
    return entry | calibration_entries(calibration[name]) if calibration else entry


def calibration_entries(calibration: Calibration) -> dict[str, Any]:
    """Returns what the manifest says of a detector's calibration."""
    choice = calibration.choice
    return {"calibrated_by": calibration.by} | ({} if choice is None else {"choice": asdict(choice)})


def calibration_tensors(calibrations: Mapping[str, Calibration]) -> dict[str, Tensor]:
    """Returns the scores and predicted classes of calibration images, by the names under which they are saved."""
    scores = {f"calibration.{name}": each.scores for name, each in calibrations.items()}
    classes = {f"calibration_class.{name}": each.classes for name, each in calibrations.items()}
    return scores | {name: each for name, each in classes.items() if each is not None}


def obstacle(detector: Detector, reference: Reference) -> str | None:
    """Returns why a detector cannot judge new images from what a folder holds, or None if it can."""
    if not detector.portable or detector.spec is None:
        return "keeps what it learnt in another package's objects, which are not saved"
    if "logits" in detector.requires and not reference.has_head:
        return "needs the logits of a head that is neither a linear layer nor a cache, which is not saved"
    if "layers" in detector.requires:
        return "needs layers, which judging makes of new images only for a detector with the key layer"
    return None


def hashes(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Returns the SHA-256 of each file among `paths`, by its name within `folder`."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(paths) if path.is_file()}


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest with the digest of its content, which makes the folder one that can be read."""
    content = sealed(json.loads(json.dumps(manifest, default=str)))
    with written_whole(folder / MANIFEST) as file:
        file.write(json_bytes(content))


def _state(
    reference: Reference, detectors: Mapping[str, Detector], calibration: Mapping[str, Calibration] | None
) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for name, value in vars(reference).items():
        if isinstance(value, Tensor):
            values[f"reference.{name}"] = value
        elif name in WITH_NEGATIVES and value is not None:
            values |= {f"reference.{name}.classes": value.classes, f"reference.{name}.negatives": value.negatives}
        elif isinstance(value, Cache):
            numbers = {part: torch.tensor(getattr(value, part), dtype=torch.float64) for part in ("alpha", "beta")}
            parts = {"keys": value.keys, "values": value.values} | numbers
            values |= {f"reference.cache.{part}": each for part, each in parts.items()}
    for column, detector in detectors.items():
        values |= {f"detectors.{column}.{name}": value for name, value in detector.state().items()}
        if calibration:
            values |= calibration_tensors({column: calibration[column]})
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in values.items()}


def _is_single(value: Tensor) -> bool:
    """Says whether a tensor is float64 of numbers that float32 holds as they are."""
    return value.dtype == torch.float64 and torch.equal(value.float().double(), value)


def searched(detector: Detector) -> list[Bank]:
    """Returns the banks in which a detector searches when it scores."""
    if not detector.searches:
        return []
    return [each for each in statistics_of(detector).values() if isinstance(each, Bank)]
