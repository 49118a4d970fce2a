"""What results.json says of a run besides its rows: what it was made with, what it learnt, and what it judges by."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule

from clip_ood.calibration import summary
from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.config.given import GIVEN
from clip_ood.config.schema import Config
from clip_ood.datamodules.evaluation_data import EvaluationData
from clip_ood.detect.save import obstacle


def made_with(config: Config, run: str, data: EvaluationData) -> dict[str, Any]:
    """Returns the name of the run, its method, encoder and seed, and the numbers of its images."""
    return {
        "run": run,
        "method": config.method.name,
        "encoder": encoder_name(config),
        "seeds": [config.seed],
        "split": split_of(config, data),
        "bank": {"images": len(data.tables["bank"]), "per_class": config.evaluation.bank_per_class},
    }


def learnt(module: LightningModule) -> dict[str, Any]:
    """Returns what a module says of its pseudo-labels, its training images and its sweep; None where it has none."""
    names = {"pseudo_labels": "report", "trained_on": "trained_on", "sweep": "sweep"}
    return {name: getattr(module, attribute, None) for name, attribute in names.items()}


def judges_by(config: Config, evaluation: OODEvaluation) -> dict[str, Any]:
    """Returns which scores come from several folds, what predicts classes, and the thresholds."""
    predictor = evaluation.results.predictor
    return {
        "by_folds": evaluation.by_folds,
        "predictor": predictor and asdict(predictor),
        "calibration": calibration(config, evaluation),
    }


def split_of(config: Config, data: EvaluationData) -> dict[str, Any]:
    """Returns how the ID images were divided.

    This is whether another seed draws other test images out of those that this one trains on, and the numbers of readable images,
    before any draw of them (per_class, bank_per_class).
    """
    counts = {"train": "train", "val": "val", "test": "id_test"}
    sizes = {name: len(data.tables[part]) for name, part in counts.items()}
    redrawn = config.data.id.images is not None and bool(sizes["test"])
    return {"redrawn": redrawn} | sizes


def calibration(config: Config, evaluation: OODEvaluation) -> dict[str, Any] | None:
    """Returns what results.json states of the thresholds, or None if there are no ID images to calibrate on.

    The default is the first detector that detect.py can use; `on` is the role of the ID images; `flagged` are the numbers of images of
    each OOD set below the thresholds, by detector.
    """
    found = evaluation.results.calibrations
    if not found:
        return None
    suite = evaluation.suite
    saved = [name for name, each in suite.detectors.items() if obstacle(each, suite.reference) is None]
    on = next(role for role in ("val", "train") if role in evaluation.results.roles.values())
    stated = summary(found, config.evaluation.accept) | {"on": on} | ({"default": saved[0]} if saved else {})
    return stated | {"flagged": evaluation.results.flagged(stated["thresholds"] or {})}


def encoder_name(config: Config) -> str:
    """Returns the encoder's name in the table."""
    encoder = config.backbone
    is_named = ":" in encoder.model or encoder.library == GIVEN
    weights = encoder.pretrained or ("" if is_named else "random weights")
    name = encoder.label or " ".join(part for part in (encoder.model, weights) if part)
    return name if encoder.text is None else f"{name}, texts by {encoder.text.model}"
