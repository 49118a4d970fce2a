"""Conducts one experiment: images → features → training → table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.config.loading import dump
from clip_ood.config.resuming import FREE
from clip_ood.config.schema import Config, FineTune, Method
from clip_ood.data.benchmark import Benchmark
from clip_ood.detectors.names import DEFAULTS, UNLABELLED
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.cautions import too_few_to_calibrate
from clip_ood.experiments.checkpoints import check_checkpoint
from clip_ood.experiments.cross_fit import cross_fit, without_copies
from clip_ood.experiments.extraction import load_features, using_features, vocabulary_of, with_training_patches
from clip_ood.experiments.held_out import hold_out_classes
from clip_ood.experiments.image_numbers import image_numbers
from clip_ood.experiments.kept_decisions import as_kept, kept_in
from clip_ood.experiments.leaks import Leaks, find_leaks, without
from clip_ood.experiments.loggers import check_loggers, ending_trackers
from clip_ood.experiments.models import build, check_detectors, check_method
from clip_ood.experiments.negatives import write_words
from clip_ood.experiments.patches import fits_again
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
from clip_ood.experiments.run_facts import encoder_name, judges_by, learnt, made_with
from clip_ood.experiments.run_trainer import make_trainer, plan_steps
from clip_ood.experiments.saving import bank_images, detector_writer
from clip_ood.experiments.stream import scored_as_stream
from clip_ood.experiments.suspects import answer_folder
from clip_ood.features.stored_set import Features
from clip_ood.leaks.told import leaks_told
from clip_ood.process import stalls
from clip_ood.runs.results_files import write_results
from clip_ood.runs.run_folder import GROUPS, LABELS, REPORT, SUSPECTS, head_of, is_follower, read_results, started
from clip_ood.runs.stream_files import stream_content
from clip_ood.terminal.console import Terminal
from clip_ood.terminal.shown import say
from clip_ood.texts.vocabulary import Vocabulary
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
    started_anywhere = {"finetune": {"head": "random"}, "negprompt": {"positives": "text"}}.get(config.method.name)
    if checkpoint is None or started_anywhere is None:
        return config
    settings = config.method.settings.model_copy(update=started_anywhere)
    return config.model_copy(update={"method": Method(**{config.method.name: settings})})


def with_detectors(config: Config, benchmark: Benchmark) -> Config:
    """Returns the config with the detectors of a cross-fitted run that names none: those without labels and, with classes, all others."""
    if config.detectors is not None or config.evaluation.cross_fit is None:
        return config
    has_classes = benchmark.labelled or benchmark.class_names is not None
    others = [name for name in DEFAULTS if name not in UNLABELLED] if has_classes else []
    return config.model_copy(update={"detectors": [*UNLABELLED, *others]})


def _run(config: Config, folder: Path, checkpoint: Path | None, benchmark: Benchmark) -> dict[str, Any]:
    """Conducts an experiment whose images are listed; all processes call it together, and the first one returns the results."""
    config = with_detectors(scoring(config, checkpoint), benchmark)
    check_method(config, benchmark)
    trains = config.method.settings.trains and checkpoint is None
    validates = trains and benchmark.labelled and bool(benchmark.parts["val"].rows)
    every = config.evaluation.every_n_epochs
    evaluation = OODEvaluation(config.detectors, every_n_epochs=every if trains else 1, accept=config.evaluation.accept)
    trainer = make_trainer(config, folder, evaluation, trains, validates)
    quiet = not trainer.is_global_zero
    if trains and isinstance(config.method.settings, FineTune):
        plan_steps(trainer, config.method.settings, len(benchmark.parts["train"].rows))
    features, text = load_features(config, benchmark, trainer, folder)
    vocabulary = named_by(config, quiet)
    check_alike(benchmark, trainer)
    keep_contents(config, folder, checkpoint, benchmark, features, quiet)
    leaks = find_leaks(config, benchmark, features, trainer.strategy.root_device, quiet)
    numbers, benchmark = image_numbers(benchmark, features), without(benchmark, leaks.out)
    if not quiet:
        show_leaks(leaks, folder)
    if config.method.settings.patches is not None and (trains or fits_again(config)):
        features = with_training_patches(config, benchmark, features, trainer)
    if config.evaluation.cross_fit is not None:
        benchmark, copy_of = without_copies(benchmark, leaks, features)
        evaluation.cross_fit = cross_fit(config, benchmark, features, text, copy_of, leaks, quiet)
    check_widths(config, benchmark, features)
    held_out = None
    if config.evaluation.hold_out_classes is not None:
        held_out = hold_out_classes(config, benchmark, features, text, leaks, quiet)
    module, data = build(config, benchmark, features, text)
    evaluation.tables, evaluation.images = data.evaluated, numbers
    data.evaluate_every = every if validates else 1
    if config.evaluation.save_detector:
        images = bank_images(benchmark, features, evaluation.cross_fit)
        trainer.callbacks.append(detector_writer(config, folder, evaluation, images, vocabulary, features))
    fit_and_test(trainer, module, data, head_of(folder) if trains else None, checkpoint)
    if quiet:
        return {}
    remove_earlier(folder)
    suspects = None
    if evaluation.cross_fit is not None:
        with Terminal().status("Ranking the images"):
            suspects = answer_folder(folder, benchmark, features, leaks, evaluation.results, vocabulary)
    stream = scored_as_stream(config, data, module, trainer.strategy.root_device)
    about = {
        **made_with(config, folder.name, data),
        **learnt(module),
        "negative_words": write_words(folder, {} if text is None else text.negatives),
        **leaks.about(),
        "suspects": suspects,
        "held_out": held_out,
        **judges_by(config, evaluation),
        "stream": None if stream is None else stream_content(stream),
        "versions": versions("lightning"),
    }
    write_results(folder, evaluation.results, about, benchmark)
    results = read_results(folder)
    draw(folder, config, benchmark, trainer.loggers)
    return results


def named_by(config: Config, quiet: bool) -> Vocabulary | None:
    """Returns the vocabulary whose words name the images, and says if an encoder that reads no text rules it out."""
    vocabulary = vocabulary_of(config)
    if vocabulary is None and config.data.vocabulary is not None and not quiet:
        say(f"No words name the images (data.vocabulary): {encoder_name(config)} reads no text", flush=True)
    return vocabulary


def keep_contents(
    config: Config,
    folder: Path,
    checkpoint: Path | None,
    benchmark: Benchmark,
    features: Mapping[str, Features],
    quiet: bool,
) -> None:
    """Records the contents of the images in `folder`.

    Raises: ConfigError if the run in it, or the head in `checkpoint`, was trained on others.
    """
    now = contents_of(config, benchmark, features)
    check_contents(folder, now)
    if checkpoint is not None:
        check_head_contents(checkpoint, config, now)
    if not quiet:
        record_contents(folder, now)


def show_leaks(leaks: Leaks, folder: Path) -> None:
    """Writes leaks.csv, and says which sets have images in common."""
    leaks.write(folder)
    for line in leaks_told(leaks.about()):
        say(line, flush=True)


def check_widths(config: Config, benchmark: Benchmark, features: Mapping[str, Features]) -> None:
    """Raises as `check_detectors` does, if the widths of the features are known; those of a tuned encoder are not until it is loaded."""
    first = next(iter(features.values()))
    if first.features is not None:
        joint = None if first.embeddings is None else first.embeddings.width
        check_detectors(config, benchmark, first.features.width, joint)


def fit_and_test(
    trainer: Trainer, module: LightningModule, data: LightningDataModule, last: Path | None, checkpoint: Path | None
) -> None:
    """Trains, if there is a place `last` for the last checkpoint, and goes on from what lies there; then tests this head or `checkpoint`."""
    if last is not None:
        trainer.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
    trainer.test(module, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)


def remove_earlier(folder: Path) -> None:
    """Removes the files of earlier results that these results may lack."""
    for name in (SUSPECTS, GROUPS, LABELS, REPORT):
        (folder / name).unlink(missing_ok=True)
