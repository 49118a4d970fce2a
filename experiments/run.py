"""Conducts one experiment: images → features → training → table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from clip_ood.calibration import summary
from clip_ood.callbacks.averaging import MovingAverage
from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.callbacks.stopped_early import StoppedEarly
from clip_ood.callbacks.throughput import Throughput
from clip_ood.config.loading import dump
from clip_ood.config.resuming import FREE
from clip_ood.config.schema import Config, FineTune, Method
from clip_ood.data.benchmark import Benchmark
from clip_ood.datamodules.evaluation_data import EvaluationData
from clip_ood.detectors.names import DEFAULTS, UNLABELLED
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.cautions import too_few_to_calibrate
from clip_ood.experiments.checkpoints import WholeCheckpoints, check_checkpoint
from clip_ood.experiments.cross_fit import cross_fit, without_copies
from clip_ood.experiments.extraction import load_features, using_features, vocabulary_of
from clip_ood.experiments.held_out import hold_out_classes
from clip_ood.experiments.image_numbers import image_numbers
from clip_ood.experiments.kept_decisions import as_kept, kept_in
from clip_ood.experiments.leaks import find_leaks, without
from clip_ood.experiments.loggers import check_loggers, ending_trackers, label, make_loggers
from clip_ood.experiments.models import build, check_detectors, check_method
from clip_ood.experiments.negatives import write_words
from clip_ood.experiments.own_classes import make_callbacks
from clip_ood.experiments.quiet import hush
from clip_ood.experiments.reporting import draw
from clip_ood.experiments.resume import (
    check_alike,
    check_contents,
    check_head_contents,
    check_head_images,
    check_images,
    check_resumed,
    contents_of,
    record_contents,
    record_images,
)
from clip_ood.experiments.saving import bank_images, detector_writer
from clip_ood.experiments.suspects import answer_folder
from clip_ood.experiments.trainer import new_trainer
from clip_ood.leaks.told import leaks_told
from clip_ood.process import stalls
from clip_ood.runs.results_files import write_results
from clip_ood.runs.run_folder import GROUPS, LABELS, REPORT, SUSPECTS, head_of, is_follower, read_results, started
from clip_ood.terminal.console import Terminal
from clip_ood.terminal.shown import say
from clip_ood.versions import versions

hush()


def run(config: Config, folder: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    """Runs an experiment in `folder` and returns the content of its results.json.

    With `checkpoint`, the head is taken from that file instead of being trained. Raises: ConfigError if `folder` holds
    something that was trained under other settings, or on other images.
    """
    if checkpoint is None and not is_follower():
        check_resumed(config, folder, FREE | {"detectors"})
    check_loggers(config.trainer)
    stalls.wait_at_most(config.timeout)
    with Terminal(quiet=is_follower()).status("Listing the images"):
        benchmark = load_benchmark(as_kept(config, kept_in(folder)))
    if not is_follower():
        check_begun(config, folder, checkpoint, benchmark)
        if caution := too_few_to_calibrate(config, benchmark):
            say(caution, flush=True)
    with started(folder, dump(config)):
        if not is_follower():
            record_images(folder, benchmark)
        with using_features(config), ending_trackers():
            return _run(config, folder, checkpoint, benchmark)


def check_begun(config: Config, folder: Path, checkpoint: Path | None, benchmark: Benchmark) -> None:
    """Raises ConfigError if the content of `folder`, or the head in `checkpoint`, is damaged or was trained on other images."""
    check_images(folder, benchmark)
    if (begun := checkpoint or head_of(folder)).is_file():
        check_checkpoint(begun)
    if checkpoint is not None:
        check_head_images(checkpoint, config, benchmark)


def scoring(config: Config, checkpoint: Path | None) -> Config:
    """Returns the config for scoring with a head from `checkpoint`, if there is one.

    The checkpoint overwrites the head's initial weights, so the config does not say where these come from.
    """
    if checkpoint is None or config.method.finetune is None:
        return config
    started_anywhere = config.method.finetune.model_copy(update={"head": "random"})
    return config.model_copy(update={"method": Method(finetune=started_anywhere)})


def with_detectors(config: Config, benchmark: Benchmark) -> Config:
    """Returns the config with the detectors of a cross-fitted run that names none: those without labels and, with classes, all others."""
    if config.detectors is not None or config.evaluation.cross_fit is None:
        return config
    has_classes = benchmark.labelled or benchmark.class_names is not None
    others = [name for name in DEFAULTS if name not in UNLABELLED] if has_classes else []
    return config.model_copy(update={"detectors": [*UNLABELLED, *others]})


def _run(config: Config, folder: Path, checkpoint: Path | None, benchmark: Benchmark) -> dict[str, Any]:
    config = with_detectors(scoring(config, checkpoint), benchmark)
    check_method(config, benchmark)
    every, trains = config.evaluation.every_n_epochs, config.method.settings.trains and checkpoint is None
    evaluation = OODEvaluation(config.detectors, every_n_epochs=every if trains else 1, accept=config.evaluation.accept)
    validates = trains and benchmark.labelled and bool(benchmark.parts["val"].rows)
    trainer = make_trainer(config, folder, evaluation, trains, validates)
    if trains and isinstance(config.method.settings, FineTune):
        plan_steps(trainer, config.method.settings, len(benchmark.parts["train"].rows))
    features, text = load_features(config, benchmark, trainer, folder)
    if (vocabulary := vocabulary_of(config)) is None and config.data.vocabulary is not None and trainer.is_global_zero:
        say(f"No words name the images (data.vocabulary): {encoder_name(config)} reads no text", flush=True)
    check_alike(benchmark, trainer)
    now = contents_of(config, benchmark, features)
    check_contents(folder, now)
    if checkpoint is not None:
        check_head_contents(checkpoint, config, now)
    if trainer.is_global_zero:
        record_contents(folder, now)
    leaks = find_leaks(config, benchmark, features, trainer.strategy.root_device, quiet=not trainer.is_global_zero)
    numbers, benchmark = image_numbers(benchmark, features), without(benchmark, leaks.out)
    if trainer.is_global_zero:
        leaks.write(folder)
        for line in leaks_told(leaks.about()):
            say(line, flush=True)
    if config.evaluation.cross_fit is not None:
        benchmark, copy_of = without_copies(benchmark, leaks, features)
        evaluation.cross_fit = cross_fit(
            config, benchmark, features, text, copy_of, leaks, quiet=not trainer.is_global_zero
        )
    first = next(iter(features.values()))
    if first.features is not None:  # a tuned encoder's widths are known only once it is loaded
        joint = None if first.embeddings is None else first.embeddings.width
        check_detectors(config, benchmark, first.features.width, joint)
    held_out = None
    if config.evaluation.hold_out_classes is not None:
        held_out = hold_out_classes(config, benchmark, features, text, leaks, quiet=not trainer.is_global_zero)
    module, data = build(config, benchmark, features, text)
    evaluation.tables, evaluation.images = data.evaluated, numbers
    data.evaluate_every = every if validates else 1
    if config.evaluation.save_detector:
        writer = detector_writer(config, folder, evaluation)
        writer.images = bank_images(benchmark, features, evaluation.cross_fit)
        writer.vocabulary = vocabulary
        trainer.callbacks.append(writer)
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
        "split": split_of(config, data),
        "bank": bank,
        "pseudo_labels": getattr(module, "report", None),
        "trained_on": getattr(module, "trained_on", None),
        "sweep": getattr(module, "sweep", None),
        "negative_words": write_words(folder, {} if text is None else text.negatives),
        **leaks.about(),
        "suspects": None,
        "held_out": held_out,
        "by_folds": evaluation.by_folds,
        "predictor": (best := evaluation.results.predictor) and asdict(best),
        "versions": versions("lightning"),
    }
    for name in (SUSPECTS, GROUPS, LABELS):
        (folder / name).unlink(missing_ok=True)  # of earlier results
    if evaluation.cross_fit is not None:
        with Terminal().status("Ranking the images"):
            about["suspects"] = answer_folder(folder, benchmark, features, leaks, evaluation.results, vocabulary)
    (folder / REPORT).unlink(missing_ok=True)  # of earlier results
    write_results(folder, evaluation.results, about | {"calibration": calibration(config, evaluation)}, benchmark)
    results = read_results(folder)
    draw(folder, config, benchmark, trainer.loggers)
    return results


def split_of(config: Config, data: EvaluationData) -> dict[str, Any]:
    """Returns how the ID images were divided.

    This is whether another seed draws other test images out of those that this one trains on, and the numbers of readable images,
    before any draw of them (per_class, bank_per_class).
    """
    counts = {"train": "train", "val": "val", "test": "id_test"}
    sizes = {name: len(data.tables[part]) for name, part in counts.items()}
    redrawn = config.data.id.images is not None and bool(sizes["test"])
    return {"redrawn": redrawn} | sizes


def make_trainer(
    config: Config, folder: Path, evaluation: OODEvaluation, trains: bool, validates: bool = False
) -> Trainer:
    """Makes the one Trainer that extracts, trains (and then keeps the last step) and evaluates.

    With `validates`, it looks at ID val after every epoch.
    """
    every = config.evaluation.every_n_epochs
    last = ModelCheckpoint(
        folder / "checkpoints", filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )  # save_last would keep nothing before the end
    own = make_callbacks(config.trainer)
    ours = {
        "max_epochs": getattr(config.method.settings, "epochs", 1),
        "callbacks": [*([last, StoppedEarly(), Throughput()] if trains else []), evaluation, *own],
        "enable_checkpointing": trains or any(isinstance(each, Checkpoint) for each in own),
        "plugins": [WholeCheckpoints()],
        "logger": make_loggers(config.trainer, folder, label(config, folder)),
        "default_root_dir": folder,  # Lightning looks there for what it saved when SLURM ended a job
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1 if validates else every or 1,
        "limit_val_batches": 1.0 if every or validates or not trains else 0,
        "reload_dataloaders_every_n_epochs": int(validates and every > 1),  # ID val in most epochs, otherwise all sets
        "gradient_clip_val": getattr(config.method.settings, "clip_gradient", None),
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return new_trainer(ours, config.trainer)


def calibration(config: Config, evaluation: OODEvaluation) -> dict[str, Any] | None:
    """Returns what results.json states of the thresholds, or None if there are no ID images to calibrate on.

    The default is the first detector that detect.py can use; `on` is the role of the ID images; `flagged` are the numbers of images of
    each OOD set below the thresholds, by detector.
    """
    found = evaluation.results.calibrations
    if not found:
        return None
    saved = [name for name, detector in evaluation.suite.detectors.items() if detector.portable]
    on = next(role for role in ("val", "train") if role in evaluation.results.roles.values())
    stated = summary(found, config.evaluation.accept) | {"on": on} | ({"default": saved[0]} if saved else {})
    return stated | {"flagged": evaluation.results.flagged(stated["thresholds"] or {})}


def plan_steps(trainer: Trainer, settings: FineTune, images: int) -> None:
    """Checks the steps of fine-tuning before an image is read, and adds the averaging of weights over them.

    Raises as `decay_of` does.
    """
    decay = decay_of(settings, images, trainer.world_size, trainer.accumulate_grad_batches)
    if decay is not None:  # it comes first, so that the other callbacks see the averaged weights
        trainer.callbacks.insert(0, MovingAverage(decay, trainer.strategy.root_device))


def decay_of(settings: FineTune, images: int, devices: int, accumulated: int) -> float | None:
    """Returns the decay of the weights' average in a fine-tuning on this many images, or None for no averaging.

    Raises: UserError for a batch size that does not fit, and for an average that is longer than the run.
    """
    from clip_ood.datamodules.image_data import check_batch

    check_batch(settings, images, devices, accumulated)
    return settings.averaging(settings.epochs * (images // settings.batch_size))


def encoder_name(config: Config) -> str:
    """Returns the encoder's name in the table."""
    encoder = config.backbone
    weights = encoder.pretrained or ("" if ":" in encoder.model else "random weights")
    name = encoder.label or " ".join(part for part in (encoder.model, weights) if part)
    return name if encoder.text is None else f"{name}, texts by {encoder.text.model}"
