"""One experiment: images → features → training → table."""

from __future__ import annotations

import json
import logging
import textwrap
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from callbacks.figures import Figures
from callbacks.ood_evaluation import OODEvaluation
from callbacks.results_files import write_results
from clip_ood.features.store import TextEmbeddings
from clip_ood.prompts import prototypes
from configs.loading import ConfigError, dump
from configs.schema import Config
from datamodules.benchmark import Benchmark, load_benchmark
from datamodules.feature_data import FeatureData
from experiments.extraction import load_features
from experiments.run_folder import head_of, started

logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # no list of absent devices
warnings.filterwarnings(
    "ignore", module="lightning.pytorch", message=".*(does not have many workers|LeafSpec|callbacks used to create).*"
)


def run(config: Config, folder: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    """Runs an experiment in `folder` and returns the content of its results.json.

    With `checkpoint`, the head is taken from that file instead of being trained.
    """
    with started(folder, dump(config)):
        return _run(config, folder, checkpoint)


def _run(config: Config, folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    benchmark = load_benchmark(config)
    check_method(config, benchmark)
    evaluation = OODEvaluation(config.detectors, config.evaluation.resamples, config.seed)
    trains = config.method.name != "zero_shot" and checkpoint is None
    trainer = make_trainer(config, folder, evaluation, trains)
    features, text = load_features(config, benchmark, trainer, folder)
    data = FeatureData(benchmark, features, config.evaluation.batch_size)
    module = make_module(config, benchmark, data, text)
    if trains:
        last = head_of(folder)
        trainer.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
    trainer.test(module, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    if not trainer.is_global_zero:
        return {}
    bank = {"images": len(data.tables["bank"]), "per_class": config.evaluation.bank_per_class}
    about = {
        "run": folder.name,
        "method": config.method.name,
        "encoder": encoder_name(config),
        "seeds": [config.seed],
        "bank": bank,
        "pseudo_labels": getattr(module, "report", None),
    }
    write_results(folder, evaluation.results, about, benchmark)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    log_hyperparameters(trainer, config, results)
    return results


def check_method(config: Config, benchmark: Benchmark) -> None:
    """Raises ConfigError for a method that the ID set or the encoder cannot serve, before any image is read."""
    method = config.method.name
    if method == "linear_probe" and not benchmark.labelled:
        raise ConfigError(
            "method.linear_probe needs labels, and the ID images are a flat folder: sort them into class folders, use "
            "--method={plp: {}} with data.id.class_names, or --method={zero_shot: {}}"
        )
    if method in ("linear_probe", "plp") and len(benchmark.class_names or ()) < 2:
        count = len(benchmark.class_names or ())
        raise ConfigError(f"method.{method} needs two classes or more (data.id.class_names); the ID set has {count}")
    if method == "plp" and config.backbone.library == "timm":
        raise ConfigError(
            f"method.plp needs a text encoder, and timm's {config.backbone.model} has none: use open_clip"
        )


def make_trainer(config: Config, folder: Path, evaluation: OODEvaluation, trains: bool) -> Trainer:
    """The one Trainer that extracts, trains (then it keeps the last step) and evaluates."""
    every = config.evaluation.every_n_epochs
    figures = [Figures(evaluation)] if config.evaluation.figures else []
    last = ModelCheckpoint(
        folder / "checkpoints", filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )  # save_last would keep nothing before the end
    logger = TensorBoardLogger(folder.parent, name=folder.name, version="", default_hp_metric=False)
    ours = {
        "max_epochs": getattr(config.method.settings, "epochs", 1),
        "callbacks": [*([last] if trains else []), evaluation, *figures],
        "enable_checkpointing": trains,
        "logger": logger,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": every or 1,
        "limit_val_batches": 1.0 if every else 0,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return Trainer(**(ours | config.trainer))


def make_module(
    config: Config, benchmark: Benchmark, data: FeatureData, text: TextEmbeddings | None
) -> LightningModule:
    """What the method trains, or the encoder as it is."""
    classes: dict[str, Any] = {"class_names": benchmark.class_names}
    if text is not None:
        embeddings = prototypes(text.embeddings, len(config.data.prompts))
        classes |= {"text_embeddings": embeddings, "logit_scale": text.logit_scale}
    if config.method.name == "zero_shot":
        from lightning_modules.zero_shot import ZeroShot

        return ZeroShot(**classes)
    from lightning_modules.linear_probe import LinearProbe
    from lightning_modules.plp import PLP

    kind = {"linear_probe": LinearProbe, "plp": PLP}[config.method.name]
    return kind(config.method.settings, data.train.stored.features.width, config.seed, **classes)


def encoder_name(config: Config) -> str:
    """The encoder as the table names it."""
    if config.backbone.label is not None:
        return config.backbone.label
    weights = config.backbone.pretrained or ("" if ":" in config.backbone.model else "random weights")
    return " ".join(part for part in (config.backbone.model, weights) if part)


def log_hyperparameters(trainer: Trainer, config: Config, results: dict[str, Any]) -> None:
    """TensorBoard: the config as text, and a line of the hparams page with the mean AUROCs."""
    settings = {"method": config.method.name, "encoder": encoder_name(config), "seed": config.seed}
    settings |= config.method.settings.model_dump(exclude_none=True)
    means = {
        f"ood/mean/{row['detector']}/auroc": row["auroc"]
        for row in results["rows"]
        if (row["ood"], row["setting"]) == ("mean", "standard")
    }
    board = trainer.logger.experiment
    board.add_text("config", textwrap.indent(dump(config), "    "))
    for summary in hparams(settings, means):  # the means are logged already; this names them as the run's metrics
        board.file_writer.add_summary(summary)
    trainer.logger.finalize("success")
