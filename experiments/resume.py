"""Decides whether a run's folder may be continued: with the same config, the same images, and the same division of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clip_ood.backbones.fingerprint import digest, fingerprint
from clip_ood.config.loading import load_config
from clip_ood.config.resuming import FREE, differences
from clip_ood.config.schema import Config
from clip_ood.errors import ConfigError, UserError
from clip_ood.files.records import Damaged
from clip_ood.files.writing import write_text
from clip_ood.runs.run_folder import CONFIG, CONTENTS, IMAGES, head_of, seed_folder

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from clip_ood.data.benchmark import Benchmark
    from clip_ood.features.stored_set import Features

WAY_OUT = "Give the settings that it was begun with, or start anew: with --overwrite, or under another --name"


def begun_with(folder: Path) -> Config:
    """Reads the config that the run in `folder` was begun with. Raises: ConfigError for one that this version cannot read."""
    try:
        return load_config(str(folder / CONFIG))
    except UserError as error:
        raise unreadable(folder, error) from error


def unreadable(folder: Path, error: UserError) -> ConfigError:
    """Returns the error for a run whose config is damaged, or of another version."""
    return ConfigError(
        f"{folder / CONFIG}, which the run was begun with, has keys or values that are none any more: {error}\n"
        "Mend that file, or start anew: with --overwrite, or under another --name"
    )


def check_resumed(config: Config, folder: Path, free: Collection[str] = FREE) -> None:
    """Raises ConfigError if `folder` holds a run that was begun with other settings than `config`, except those in `free`,
    or a checkpoint whose settings are unknown.
    """
    if (folder / CONFIG).is_file():
        check_same(folder, differences(begun_with(folder), config, free))
    elif head_of(folder).is_file():
        raise ConfigError(
            f"{head_of(folder)} was trained by a run whose {CONFIG} is gone, so that nobody knows under which settings: remove "
            f"{folder}, or take another --name"
        )


def check_same(folder: Path, found: list[str]) -> None:
    """Raises ConfigError if there are differences between the settings of the run in `folder` and the requested ones."""
    if found:
        raise ConfigError(f"{folder} was begun with other settings ({'; '.join(found)}). {WAY_OUT}")


def record_images(folder: Path, benchmark: Benchmark) -> None:
    """Writes which images the run in `folder` trains on and scores."""
    write_text(folder / IMAGES, json.dumps(_described(benchmark), indent=1))


def check_images(folder: Path, benchmark: Benchmark, parts: Collection[str] | None = None) -> None:
    """Raises ConfigError if the run in `folder` was begun with other images, or other labels, in one of these parts (None:
    all). A whole OOD or csid set more or less is no other image: the config names it, or not.
    """
    if not all((folder / name).is_file() for name in (CONFIG, IMAGES)):
        return  # there is no run, or its version did not record them
    from clip_ood.runs.files import read_images

    with _undamaged():
        was = read_images(folder / IMAGES)
    now = _described(benchmark)
    known = {name for name in was.keys() | now.keys() if "/" not in name} | (was.keys() & now.keys())
    changed = [name for name in known if was.get(name) != now.get(name)]
    if changed := sorted(name for name in changed if parts is None or name in parts):
        told = ", ".join(f"{name} had {_count(was, name)} images and has {_count(now, name)}" for name in changed)
        raise ConfigError(
            f"{folder} was begun with other images or labels ({told}), so that images which were trained on may be test images "
            "now. Put the images back, or train on these: a new run, with --overwrite or under another --name"
        )


def check_alike(benchmark: Benchmark, trainer: Trainer) -> None:
    """Raises ConfigError in a process whose images or labels are others than those of the first process; all call it together."""
    own = digest(_described(benchmark))
    if trainer.strategy.broadcast(own) != own:
        raise ConfigError(
            "Two processes of this run know different images: their folder, or what data.decisions says, was changed while they "
            "started. Start the run again"
        )


def contents_of(config: Config, benchmark: Benchmark, features: dict[str, Features]) -> dict[str, str]:
    """Returns identifiers of the encoder, whatever its precision, and of the images of each part, whatever their names."""
    from clip_ood.features.identity import identity_of  # imports numpy, which is not needed before

    encoder = fingerprint(config.backbone, config.features_root / "hashes.json")
    found = {"encoder": digest({key: value for key, value in encoder.items() if key != "precision"})}
    for key, part in benchmark.parts.items():
        if (identities := features[part.images].identities) is not None:
            found[key] = identity_of(identities[part.rows].tobytes()).hex()
    return found


def check_contents(folder: Path, now: dict[str, str], parts: Collection[str] | None = None) -> None:
    """Raises ConfigError if the run in `folder` knew other weights of the encoder, or other images under the same names, in one
    of these parts (None: all).
    """
    if not (folder / CONTENTS).is_file():
        return  # the run got no further, or its version did not record them
    from clip_ood.runs.files import read_contents

    with _undamaged():
        was = read_contents(folder / CONTENTS)
    changed = [key for key in now if was.get(key, now[key]) != now[key] and (parts is None or key in parts)]
    if changed:
        told = ", ".join("the encoder's weights" if key == "encoder" else f"the images of {key}" for key in changed)
        raise ConfigError(
            f"{folder} was begun with others under the same names: {told}. Put back what was there, or train anew: with "
            "--overwrite, or under another --name"
        )


def record_contents(folder: Path, now: dict[str, str]) -> None:
    """Writes what `contents_of` has returned."""
    write_text(folder / CONTENTS, json.dumps(now, indent=1))


@contextmanager
def _undamaged() -> Iterator[None]:
    """Wraps the reading of what a run has recorded. Raises: ConfigError for a damaged file."""
    try:
        yield
    except Damaged as error:
        raise ConfigError(f"{error}. Start the run anew: with --overwrite") from error


def check_heads(run: Path, config: Config) -> None:
    """Raises ConfigError if a run, or one of its seeds, holds no trained head, or one that was trained on another division of
    the images.
    """
    for folder, seed in [(seed_folder(run, seed), seed) for seed in config.seeds] or [(run, config.seed)]:
        if not head_of(folder).is_file():
            raise ConfigError(f"{folder} holds no trained head ({head_of(folder)})")
        check_division(folder, config.model_copy(update={"seed": seed}))
        check_settings(folder, config)


def check_settings(run: Path, config: Config) -> None:
    """Raises ConfigError if the head of a run was trained by another method, or on another encoder, than `config` names."""
    found = [each for each in differences(begun_with(run), config, {"backbone.label", "backbone.precision"})]
    if found := [each for each in found if each.startswith(("method", "backbone"))]:
        raise ConfigError(
            f"{run} trained its head under other settings ({'; '.join(found)}), and it is that head which is scored: leave these "
            "keys as they are, or train another run"
        )


def check_division(run: Path, config: Config) -> None:
    """Raises ConfigError if the head of a run may have seen images that are val or test images of `config`."""
    theirs = begun_with(run)
    if config.data.id.val is None and (theirs.seed, theirs.data.splits) != (config.seed, config.data.splits):
        raise ConfigError(
            f"{run} divided the images by seed {theirs.seed} and {theirs.data.splits!r}, so its head may have seen images that "
            f"are val or test ones here, under seed {config.seed} and {config.data.splits!r}: train it with the seed and "
            "data.splits of this run, or keep its own"
        )
    if config.data.drop_duplicates == "bank" and theirs.data.drop_duplicates != "bank":
        raise ConfigError(
            f"data.drop_duplicates: bank takes images out of the training set, and the head of {run} was trained on them: train a head "
            "without them, or take out copies of tested images (tested)"
        )


def check_head_images(head: Path, config: Config, benchmark: Benchmark) -> None:
    """Raises ConfigError if images were added or removed since the run of a checkpoint divided the same ID set into train and
    test.
    """
    if _same_set(head, config):
        check_images(head.parents[1], benchmark, ["train"])


def check_head_contents(head: Path, config: Config, now: dict[str, str]) -> None:
    """Raises ConfigError if the run of a checkpoint knew other weights of its encoder, or trained on other images under the same
    names of the same ID set.
    """
    check_contents(head.parents[1], now, ["encoder", "train"] if _same_set(head, config) else ["encoder"])


def _same_set(head: Path, config: Config) -> bool:
    theirs = begun_with(head.parents[1]).data
    return (theirs.id, theirs.root.resolve()) == (config.data.id, config.data.root.resolve())


def _described(benchmark: Benchmark) -> dict[str, dict[str, int | str]]:
    found = {}
    for name, part in benchmark.parts.items():
        names = benchmark.images[part.images].names
        listed = [(names[row], label) for row, label in zip(part.rows, benchmark.labels(part), strict=True)]
        found[name] = {"images": len(listed), "digest": digest(listed)}
    return found


def _count(described: dict[str, dict[str, int | str]], name: str) -> int:
    return described.get(name, {"images": 0})["images"]
