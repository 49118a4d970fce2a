"""Names and folders of a config, checked before torch, Lightning or an encoder library is imported."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from clip_ood.backbones.names import check_model
from clip_ood.detectors.names import read_specs
from clip_ood.wordnet import find_words
from configs.errors import ConfigError, nearest
from configs.schema import Config, ImageSet

OURS = {
    "enable_checkpointing": "the last step is kept",
    "max_epochs": "set method.<name>.epochs instead",
    "callbacks": "the run sets its own",
    "logger": "the run logs to TensorBoard in its folder",
    "default_root_dir": "set runs_root and name instead",
    "use_distributed_sampler": "every loader divides its rows among devices itself, unpadded",
    "limit_val_batches": "set evaluation.every_n_epochs instead",
    "check_val_every_n_epoch": "set evaluation.every_n_epochs instead",
}


def check_names(config: Config) -> None:
    """Raises ConfigError for an unknown model, pretrained tag, detector or Trainer key, naming the nearest valid ones,
    and for a run that would lie in runs_root itself or above it."""
    if not config.name.strip("."):
        raise ConfigError(f"name: {config.name!r} must be the name of a folder below runs_root")
    try:
        check_model(config.backbone)
        read_specs(config.detectors)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    valid = trainer_keys() - OURS.keys()
    for key in config.trainer:
        if key in OURS:
            raise ConfigError(f"trainer.{key} is not for configs: {OURS[key]}.")
        if key not in valid:
            raise ConfigError(f"Lightning's Trainer has no key {key!r} (trainer.{key}).{nearest(key, valid)}")
    if (precision := str(config.trainer.get("precision"))).endswith("-true") and precision != "32-true":
        raise ConfigError(
            f"trainer.precision: {precision} would change stored features as well. Set backbone.precision for the encoder, "
            "and here bf16-mixed, 16-mixed or 32-true for the head."
        )


def trainer_keys() -> set[str]:
    """The arguments of the installed Lightning's Trainer, read from its source: importing it takes seconds."""
    package = next(iter(find_spec("lightning").submodule_search_locations))
    tree = ast.parse(Path(package, "pytorch", "trainer", "trainer.py").read_text(encoding="utf-8"))
    trainer = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Trainer")
    init = next(node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return {argument.arg for argument in init.args.kwonlyargs + init.args.args} - {"self"}


def image_sets(config: Config) -> dict[str, ImageSet]:
    """Every named image set of a config: the ID parts as id, id.train, …, then csid and OOD sets."""
    data = config.data
    parts = {"id": data.id.images, "id.train": data.id.train, "id.val": data.id.val, "id.test": data.id.test}
    return {name: part for name, part in parts.items() if part is not None} | data.csid | data.ood


def check_folders(config: Config) -> None:
    """Raises ConfigError for the first image set whose folder or list is not there, and for negative words that are
    not: which, where, how to get it."""
    for name, part in image_sets(config).items():
        if part.torchvision is not None:
            continue
        path = config.data.root / (part.folder if part.folder is not None else part.list)
        wanted = "folder" if part.folder is not None else "image list"
        if not (path.is_dir() if part.folder is not None else path.is_file()):
            hint = f" Where to get it: {part.source}" if part.source else ""
            raise ConfigError(f"Image set {name}: there is no {wanted} {path}.{hint}")
    if config.data.negative_words is not None:
        try:
            find_words(config.data.negative_words)
        except FileNotFoundError as error:
            raise ConfigError(f"data.negative_words: {error}") from None
