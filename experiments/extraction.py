"""Opens the features that an experiment needs from the store, after making those that are missing."""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.callbacks.feature_writer import FeatureWriter
from clip_ood.callbacks.time_left import TimeLeft
from clip_ood.config.given import GIVEN
from clip_ood.config.schema import BackboneConfig, Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.data.image_list import ImageList
from clip_ood.datamodules.extraction import ExtractionData
from clip_ood.detectors.build import inside
from clip_ood.errors import UserError
from clip_ood.experiments.given_features import given_features
from clip_ood.experiments.negatives import choose, pools, word_sets
from clip_ood.experiments.patches import PATCHES, patched_images, token_arrays, training_rows
from clip_ood.experiments.trainer import predict
from clip_ood.experiments.vocabulary import vocabulary_words
from clip_ood.features.known_files import FILES
from clip_ood.features.store import FeatureStore, TextEmbeddings, folder_of
from clip_ood.features.stored_set import Features, StoredSet
from clip_ood.files.unreadable import Tolerance, TooManyUnreadable, first_of
from clip_ood.files.writing import written_text
from clip_ood.files.written_names import path_cell, text_cell
from clip_ood.lightning_modules.feature_extractor import FeatureExtractor
from clip_ood.outputs import Inside
from clip_ood.process.locks import sharing
from clip_ood.runs.run_folder import UNREADABLE, is_follower
from clip_ood.terminal.console import Terminal
from clip_ood.terminal.shown import say
from clip_ood.texts.negative_words import Pool
from clip_ood.texts.prompts import Phrases, fill
from clip_ood.texts.vocabulary import Vocabulary

START = "the start of the head"
STARTING = 1024  # images whose features tell how long projected features are
SMALL, SMALL_BLOCK = "vit_small_patch32_224.augreg_in21k", "backbones/in21k_vit_s32.yaml"  # an encoder for a CPU
PATIENCE = 900  # seconds that an extraction may take before a smaller encoder is named
VISIBLE_AFTER = 60  # seconds, on any file system that runs on several nodes use

warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero")  # nothing is missing


@contextmanager
def using_features(config: Config) -> Iterator[None]:
    """Prevents, meanwhile, that anybody removes what is stored of the config's encoders (`clip-ood features remove`)."""
    encoders = [each for each in (config.backbone, config.backbone.text_spec) if each is not None]
    root = config.features_root
    with ExitStack() as using:
        if not is_follower():
            for place in {root / FILES, *(folder_of(root, _fingerprint(config, each)) for each in encoders)}:
                using.enter_context(sharing(place))
        yield


def load_features(
    config: Config, benchmark: Benchmark, trainer: Trainer, folder: Path
) -> tuple[dict[str, Features], TextEmbeddings | None]:
    """Returns stored features by image set, and the embeddings of the filled prompts with the negative labels.

    The embeddings are None without classes or text encoder; the negative labels are those that the config's detectors ask for.
    If the method tunes the encoder, the store only knows which images can be read (`Features.features` is None), and under
    `START` the features of the images from which its head starts.
    The predict loop always runs, so that all processes agree on what is missing; the encoder is loaded only if
    something must be encoded. Unreadable images are listed in `folder`/unreadable.csv. Features that are given are taken as they are.
    Raises: TooManyUnreadable when more images of a set cannot be read than data.max_unreadable allows.
    """
    if config.backbone.library == GIVEN:
        return given_features(config, benchmark), None
    store = _store(config, config.backbone)
    texts = store if config.backbone.text_spec is None else _texts_store(config)
    stored = stored_sets(config, store, benchmark.images)
    start = starting_images(config, benchmark)
    stored_start = {key: store.image_set(images.name, images, arrays_of(config)) for key, images in start.items()}
    patched, rows_of = patched_images(config, benchmark)
    sets_of_patches = _sets_of_patches(config, benchmark, store, patched)
    strings, chosen_from = texts_of(config, benchmark)
    words = words_of(config, chosen_from)
    stored_words = {name: texts.word_set(name, phrases) for name, phrases in words.items()}
    with Terminal(quiet=not trainer.is_global_zero).status("Looking up the images in the feature store"):
        if trainer.is_global_zero:
            store.merge()  # a killed run may have left small segments
        for each in [*stored.values(), *stored_start.values(), *sets_of_patches.values()]:
            each.missing()  # every process knows the files as they are now
            if trainer.is_global_zero:
                each.check_files()
    if trainer.is_global_zero:
        _say_old(config.features_root)
    tolerance, listed = Tolerance(config.data.max_unreadable), folder / UNREADABLE
    try:
        _check_readable(stored, tolerance)  # by what an earlier run has found
        # what the first set wants of an image is made
        everything = sets_of_patches | stored_start | stored | stored_words
        _extract(config, patched | start | benchmark.images, trainer, texts, everything, strings, words)
        _check_readable(stored, tolerance)
    except TooManyUnreadable as error:
        _look_again(stored, texts)
        write_unreadable(listed, stored)
        raise TooManyUnreadable(f"{error}\nAll that were found are listed in {listed}") from None
    for each in {store, texts}:
        each.touch()
    features = {name: each.open() for name, each in (stored | stored_start).items()}
    for key, each in sets_of_patches.items():
        of = key.removeprefix(PATCHES)
        features[of] = features[of].with_tokens(each.open(), rows_of[key])
    if trainer.is_global_zero and (lines := write_unreadable(listed, stored)):
        _tell_unreadable(listed, lines)
    if not strings:
        return features, None
    chosen_words = {name: stored_words[name].open().features for name in word_sets(chosen_from)}
    negatives = choose(chosen_from, chosen_words, trainer, benchmark, features)
    return features, replace(texts.texts_of(strings), negatives=negatives)


def with_training_patches(
    config: Config, benchmark: Benchmark, features: dict[str, Features], trainer: Trainer
) -> dict[str, Features]:
    """Returns the features with the patch tokens of the training images that the method learns from, after making those that are missing.

    The images are those of its draw, which is known once it is known which images can be read. All processes call this together.
    """
    key, store = benchmark.parts["train"].images, _store(config, config.backbone)
    rows = training_rows(config, benchmark, features)
    images = benchmark.images[key].subset(rows.tolist())
    wanted = Inside(tokens=(config.method.settings.patches,)).arrays
    stored = {PATCHES + key: store.image_set(images.name, images, (*arrays_of(config), *wanted))}
    _extract(config, {PATCHES + key: images}, trainer, store, stored, [], {})
    return features | {key: features[key].with_tokens(stored[PATCHES + key].open(), rows)}


def arrays_of(config: Config) -> tuple[str, ...]:
    """Returns the names of the arrays that are stored of every image: g, h and the layers that detectors ask for."""
    joint = ("features", "embeddings") if config.backbone.reads_text else ("features",)
    return (*joint, *Inside(layers=inside(config.detectors).layers).arrays)


def stored_patches(config: Config, benchmark: Benchmark) -> dict[str, Features]:
    """Returns what is stored of images whose patches were looked at, by the key of their set, with the rows of the set.

    Raises: FileNotFoundError if some of it is not there.
    """
    patched, rows_of = patched_images(config, benchmark)
    sets = _sets_of_patches(config, benchmark, _store(config, config.backbone), patched)
    return {
        key.removeprefix(PATCHES): each.open().spread(rows_of[key], len(benchmark.images[key.removeprefix(PATCHES)]))
        for key, each in sets.items()
    }


def _sets_of_patches(
    config: Config, benchmark: Benchmark, store: FeatureStore, patched: Mapping[str, ImageList]
) -> dict[str, StoredSet]:
    wanted = (*arrays_of(config), *token_arrays(config, benchmark))
    return {key: store.image_set(images.name, images, wanted) for key, images in patched.items()}


def stored_sets(config: Config, store: FeatureStore, images: Mapping[str, ImageList]) -> dict[str, StoredSet]:
    """Returns what a store holds of image sets, by the same keys.

    These are features, or only which images can be read if the method tunes the encoder, which then gives other features,
    and no near copies are sought.
    """
    needless = config.method.settings.tunes_encoder and config.evaluation.leaks == "exact"
    wanted = () if needless else arrays_of(config)
    return {key: store.image_set(each.name, each, wanted) for key, each in images.items()}


def texts_of(config: Config, benchmark: Benchmark) -> tuple[list[str], dict[str, Pool]]:
    """Returns the filled prompts, and what negative labels are chosen from; both are empty without classes or a text encoder."""
    if not config.backbone.reads_text or benchmark.class_names is None:
        return [], {}
    strings = fill(config.data.prompts, [name for names in benchmark.called for name in names])
    return strings, pools(config, benchmark)


def words_of(config: Config, chosen_from: dict[str, Pool]) -> dict[str, Phrases]:
    """Returns all words that must be encoded, by set: those of negative labels, which are chosen from pools, and the vocabulary."""
    return word_sets(chosen_from) | vocabulary_words(config)


def vocabulary_of(config: Config) -> Vocabulary | None:
    """Returns the vocabulary of a config whose features were loaded; None without one."""
    for name, phrases in vocabulary_words(config).items():
        rows = _texts_store(config).word_set(name, phrases).open().features
        return Vocabulary(phrases.words, rows.take(torch.arange(len(rows))))
    return None


def starting_images(config: Config, benchmark: Benchmark) -> dict[str, ImageList]:
    """Returns the first training images if fine-tuning starts its head from texts, and otherwise none."""
    if not (config.method.settings.tunes_encoder and config.method.settings.head == "text"):
        return {}
    train = benchmark.parts["train"]
    return {START: benchmark.images[train.images].subset(train.rows[:STARTING])}


def _texts_store(config: Config) -> FeatureStore:
    return _store(config, config.backbone.text_spec or config.backbone)


def _store(config: Config, encoder: BackboneConfig) -> FeatureStore:
    return FeatureStore(config.features_root, _fingerprint(config, encoder))


def _fingerprint(config: Config, encoder: BackboneConfig) -> dict[str, Any]:
    return fingerprint(encoder, config.features_root / "hashes.json")


def _extract(
    config: Config,
    images: dict[str, ImageList],
    trainer: Trainer,
    texts: FeatureStore,
    stored: dict[str, StoredSet],
    strings: list[str],
    words: dict[str, Phrases],
) -> None:
    missing = texts.missing_texts(strings) if trainer.is_global_zero else []
    encoder = cache(lambda: create_backbone(config.backbone))
    reading = (lambda: encoder().transform, config.data.batch_size, config.data.num_workers)
    data = ExtractionData(images, stored, missing, *reading, words)
    arrays = {name: each.arrays for name, each in stored.items() if name in images}
    extractor = FeatureExtractor(encoder, lambda: data.needs_encoder, arrays)
    writer = FeatureWriter(texts, stored, missing, Tolerance(config.data.max_unreadable))
    told = (
        [TimeLeft(lambda: data.images_of_this_process, partial(_tell_left, config, trainer))]
        if trainer.is_global_zero
        else []
    )
    predict(trainer, extractor, data, writer, *told)
    if data.is_missing:
        device = trainer.strategy.root_device
        written = trainer.strategy.reduce(torch.tensor(float(writer.written), device=device), reduce_op="sum")
        trainer.strategy.barrier("features")
        if trainer.is_global_zero:
            for store in {texts, *(each.store for each in stored.values())}:
                store.merge()
        trainer.strategy.barrier("merged")
        _look_again(stored, texts)
        if round(float(written)) < len(data.parts) + bool(data.strings):  # strings are one part
            return  # a process has not made all of its parts, which opening reports
    _wait_until_visible(stored, texts, strings)


def _tell_left(config: Config, trainer: Trainer, images: int, seconds: float) -> None:
    """Says how long the images that are left take and, without a GPU, what would take less time."""
    minutes = max(1, round(seconds / 60))
    each = "" if trainer.world_size == 1 else " by this process"
    say(
        f"{images:,} images are left to encode{each}, which takes about {minutes:,} {'minute' if minutes == 1 else 'minutes'} at this pace. "
        "What was encoded is kept, even if the run is stopped",
        flush=True,
    )
    small = trainer.strategy.root_device.type == "cpu" and config.backbone.model != SMALL
    if small and seconds > PATIENCE:
        say(
            f"Without a GPU, --backbone={SMALL_BLOCK} takes an eighth of the time that a ViT-B/16 takes. It reads images only, so that "
            "class names mean nothing to it",
            flush=True,
        )


def _look_again(stored: dict[str, StoredSet], texts: FeatureStore) -> None:
    texts.texts.refresh()
    for each in stored.values():
        each.refresh()


def _wait_until_visible(stored: dict[str, StoredSet], texts: FeatureStore, strings: list[str]) -> None:
    """Waits until everything that any process has written is seen, which may take a while on a network file system.

    Raises: ValueError for files that were changed after the run had listed them: their features are those of the earlier content,
    or are not there.
    """
    for _ in range(VISIBLE_AFTER):
        missing = {name: rows for name, each in stored.items() if len(rows := each.missing())}
        if not missing and not texts.missing_texts(strings):
            return
        changed = {name: stored[name].changed(rows) for name, rows in missing.items()}
        if name := next((name for name, names in changed.items() if names), None):
            others = f" and {len(changed[name]) - 1} others" if len(changed[name]) > 1 else ""
            raise UserError(
                f"Image set {stored[name].name}: {changed[name][0]}{others} changed while the run was reading images. Run again "
                "once nothing writes to the set any more; all other images are kept"
            )
        time.sleep(1)
        _look_again(stored, texts)


def _say_old(root: Path) -> None:
    """Says once in a run that an older version's features are not read, and what to do with them."""
    if old := {path.parents[1] for path in root.glob("*/*/manifest.json")}:
        say(
            f"{root} holds features in the format of an older version ({len(old)} encoders), which are not read: "
            f"clip-ood features remove --old --root {root} removes them (--dry-run shows them)"
        )


def write_unreadable(path: Path, stored: dict[str, StoredSet]) -> list[tuple[str, str, str]]:
    """Writes set, path and reason of every image that could not be read, and returns them; no file when all could."""
    lines = [(each.name, *found) for each in stored.values() for found in each.unreadable()]
    path.unlink(missing_ok=True)
    if lines:
        with written_text(path) as file:
            found = ((text_cell(name), path_cell(place), text_cell(reason)) for name, place, reason in lines)
            csv.writer(file).writerows([("set", "path", "reason"), *found])
    return lines


def _tell_unreadable(path: Path, lines: list[tuple[str, str, str]]) -> None:
    images = "image could not be read and is" if len(lines) == 1 else "images could not be read and are"
    told = first_of([(f"{name}: {place}", reason) for name, place, reason in lines])
    say("\n".join([f"{len(lines):,} {images} left out:", *told, f"All of them: {path}"]), flush=True)


def _check_readable(stored: dict[str, StoredSet], tolerance: Tolerance) -> None:
    for each in stored.values():
        tolerance.check(f"Image set {each.name}", len(each.images), each.unreadable())
