"""Names and folders of a config, checked before torch, Lightning or an encoder library is imported."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from os.path import realpath
from pathlib import Path

from clip_ood.backbones.names import check_model
from clip_ood.detectors.names import read_specs
from clip_ood.text_files import NotText, read_text
from clip_ood.wordnet import find_words
from configs.errors import ConfigError, nearest
from configs.misnamed import STREAM, advice
from configs.schema import Config, ImageSet
from datamodules.catalog.entries import entry

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
MOST_SHARDS = 1_000_000
TORCHVISION = {  # what lies under data.root once a set is there
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "SVHN": "{split}_32x32.mat",
    "MNIST": "MNIST/raw",
}


def check_names(config: Config) -> None:
    """Raises ConfigError for an unknown model, pretrained tag, image set, detector or Trainer key, naming the nearest valid ones,
    and for a run that would lie in runs_root itself or above it."""
    if not config.name.strip("."):
        raise ConfigError(f"name: {config.name!r} must be the name of a folder below runs_root")
    try:
        check_model(config.backbone)
        specs = read_specs(config.detectors)
        for spec in _named(config).values():
            layouts(spec)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.data.ood_val is None and (among := next((spec for spec in specs if spec.chosen_as), None)):
        raise ConfigError(
            f"detectors: {among.name} has several values to choose from, and there is nothing to choose by: name OOD images "
            "for it (data.ood_val), or give one value"
        )
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
    """Every image set of a config by its key: the ID parts as id, id.train, …, then csid and OOD sets (see `key_of`), then
    ood_val; those of the catalogue as the first of their layouts that is there."""
    root = config.data.root
    found = {}
    for key, spec in _named(config).items():
        known = layouts(spec)
        found[key] = next((layout for layout in known if is_there(layout, root)), known[0])
    return found


def key_of(role: str, name: str) -> str:
    """What a run knows a set under data.csid or data.ood by: no key of the project's own (id, train, …) has a slash, so that
    a set may be called as one of them.

    >>> key_of("ood", "train")
    'ood/train'
    """
    return f"{role}/{name}"


def called(key: str) -> str:
    """What people call the set with this key."""
    return key.partition("/")[2] or key


def _named(config: Config) -> dict[str, ImageSet]:
    data = config.data
    parts = {"id": data.id.images, "id.train": data.id.train, "id.val": data.id.val, "id.test": data.id.test}
    return (
        {name: part for name, part in parts.items() if part is not None}
        | {key_of(role, name): spec for role in ("csid", "ood") for name, spec in getattr(data, role).items()}
        | ({} if data.ood_val is None else {"ood_val": data.ood_val})
    )


def layouts(spec: ImageSet) -> list[ImageSet]:
    """The layouts that an image set may come in: those the catalogue knows, or itself.

    Raises: ConfigError for an unknown set or split.
    """
    if spec.catalog is None:
        return [spec.model_copy(update={"group": spec.group or ("shift" if spec.corruption else "ood")})]
    known = entry(spec.catalog)
    split = known.split(spec.split)
    group = spec.group or known.group or "ood"
    same = {"per_class": spec.per_class, "group": group, "source": spec.source or known.source}
    same |= {"count": spec.count or split.images, "classes": spec.classes or known.classes}
    return [ImageSet(**layout, **same) for layout in split.layouts]


def is_there(spec: ImageSet, root: Path) -> bool:
    """Whether the files that an image set names are under `root`; torchvision's sets by what they unpack to."""
    return not missing_places(spec, root)


def missing_places(spec: ImageSet, root: Path) -> list[str]:
    """The folders and files that an image set names and that are not under `root`, in words."""
    if spec.torchvision is not None:
        place = root / TORCHVISION[spec.torchvision].format(split=spec.split or "test")
        return [] if place.exists() else [f"file {place}" if place.suffix else f"folder {place}"]
    if spec.shards is not None:
        paths = shard_paths(root / spec.shards)
        lacking = [path for path in paths if not path.is_file()]
        more = f" (nor {len(lacking) - 1:,} more of {len(paths):,})" if len(lacking) > 1 else ""
        return [f"shard {lacking[0]}{more}"] if lacking else []
    missing = []
    if spec.folder is not None and not (root / spec.folder).is_dir():
        missing.append(f"folder {root / spec.folder}")
    if spec.labels is not None and not (root / spec.labels).exists():
        missing.append(f"label file {root / spec.labels}")
    if spec.list is not None and not (root / spec.list).is_file():
        missing.append(f"image list {root / spec.list}")
    return missing


def shard_paths(pattern: Path) -> list[Path]:
    """The files that `name-{000..009}.tar` stands for: one range at most, digits as wide as its first number.

    >>> [path.name for path in shard_paths(Path("a-{08..10}.tar"))]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern.name)
    if found is None:
        return [pattern]
    before, first, last, after = found.groups()
    if int(first) > int(last):
        raise ConfigError(f"shards: {pattern} counts down from {first} to {last}; write the smaller number first")
    if int(last) - int(first) >= MOST_SHARDS:
        raise ConfigError(f"shards: {pattern} stands for more than {MOST_SHARDS:,} files")
    return [pattern.with_name(f"{before}{number:0{len(first)}d}{after}") for number in range(int(first), int(last) + 1)]


def check_places(config: Config) -> None:
    """Raises ConfigError where two keys name the same images, however they spell it: a folder, list, shard, or split of a
    torchvision set, links resolved."""
    seen: dict[str, str] = {}
    for key, spec in image_sets(config).items():
        option = "data." + key.replace("/", ".")
        for place in _places(spec, config.data.root):
            if (other := seen.setdefault(place, option)) != option:
                raise ConfigError(
                    f"{other} and {option} name the same images ({place}): an image that is scored as one must not be taken for "
                    "the other. Name other images, or leave one of the keys out"
                )


def _places(spec: ImageSet, root: Path) -> list[str]:
    """What an image set is read from; nothing for one that is made of another."""
    if spec.torchvision is not None:
        return [f"{spec.torchvision}, {spec.split or 'test'}, in {realpath(root)}"]
    if spec.shards is not None:
        return [realpath(path) for path in shard_paths(root / spec.shards)]
    return [realpath(root / path) for path in (spec.list or spec.folder,) if path is not None]


def check_folders(config: Config) -> None:
    """Raises ConfigError for the first image set that is not there, for two keys that name the same images, and for negative
    words that are not there: which, where, how to get it."""
    root = config.data.root
    for key, spec in _named(config).items():
        name, known = called(key), layouts(spec)
        if known[0].torchvision is not None or any(is_there(layout, root) for layout in known):
            continue  # torchvision's sets are downloaded by the run
        lacking = [" and no ".join(missing_places(layout, root)) for layout in known]
        if spec.catalog is None:
            hint = f" Where to get it: {spec.source}" if spec.source else _advice(key, spec, root)
            raise ConfigError(f"Image set {name}: there is no {lacking[0]}.{hint}")
        raise ConfigError(
            f"Image set {name}: {spec.catalog} is not under {root}: there is no {'; nor '.join(lacking)}. "
            f"Where to get it: {entry(spec.catalog).advice(root)}"
        )
    check_places(config)
    _check_texts(config)


def _advice(key: str, spec: ImageSet, root: Path) -> str:
    option = "data." + ("id.images" if key == "id" else key.replace("/", "."))
    kind = next(kind for kind in ("folder", "list", "shards") if getattr(spec, kind) is not None)
    place = getattr(spec, kind)
    told = advice(option, kind, place if STREAM.match(str(place)) else root / place)
    return told and f" {told}"


def _check_texts(config: Config) -> None:
    """Raises ConfigError for class names or words that are not there or are not text."""
    found, names = {}, config.data.id.class_names
    if isinstance(names, Path):
        found["data.id.class_names"] = config.data.root / names
    if config.data.negative_words is not None:
        try:
            found["data.negative_words"] = find_words(config.data.negative_words)
        except FileNotFoundError as error:
            raise ConfigError(f"data.negative_words: {error}") from None
    for key, path in found.items():
        if not path.exists():
            raise ConfigError(f"{key}: there is no file {path}")
        try:
            if path.is_file():  # words may be a folder of WordNet's
                read_text(path)
        except NotText as error:
            raise ConfigError(f"{key}: {error}") from None
