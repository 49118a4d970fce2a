"""Checks names and folders of a config before torch, Lightning or an encoder library is imported."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from os import stat
from os.path import realpath
from pathlib import Path

from clip_ood.backbones.names import check_model
from clip_ood.config.class_lists import classes_of
from clip_ood.config.data_schema import Data, ImageSet
from clip_ood.config.given import check_given
from clip_ood.config.misnamed import STREAM, advice
from clip_ood.config.reader_names import class_path
from clip_ood.config.schema import Config
from clip_ood.config.set_keys import called, key_of, may_share, option_of
from clip_ood.config.sets import entry
from clip_ood.config.shard_names import shard_paths
from clip_ood.config.trainer_keys import check_trainer
from clip_ood.detectors.names import read_specs
from clip_ood.errors import ConfigError, UserError
from clip_ood.files.archive_names import exists, is_file, is_folder
from clip_ood.files.hidden import is_hidden
from clip_ood.files.regular_file import no_file, special
from clip_ood.files.remote.address import Address, is_address, place_at
from clip_ood.files.remote.ahead import ahead
from clip_ood.files.remote.fetched import local
from clip_ood.files.text_files import LONGEST_LIST, NotText, check_size, read_text
from clip_ood.review.decisions import Decisions
from clip_ood.review.decisions_file import FILE, read_decisions
from clip_ood.stream.names import read_methods
from clip_ood.texts.wordnet import find_words, lexicographer_files

SELECTION = ("keep_classes", "drop_classes")
TORCHVISION = {  # files that lie under data.root once a set is there
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "SVHN": "{split}_32x32.mat",
    "MNIST": "MNIST/raw",
}


def check_names(config: Config) -> None:
    """Raises ConfigError for an unknown model, pretrained tag, image set, detector or Trainer key, and names the nearest ones.

    It also raises for a run that would lie in runs_root itself or above it.
    """
    if not config.name.strip("."):
        raise ConfigError(f"name: {config.name!r} must be the name of a folder below runs_root")
    specs = read_specs(config.detectors)
    for spec in named_sets(config.data).values():
        layouts(spec)
    check_given(config, named_sets(config.data))
    if config.data.ood_val is None and (among := next((spec for spec in specs if spec.chosen_as), None)):
        raise ConfigError(
            f"detectors: {among.name} has several values to choose from, and there is nothing to choose by: name OOD images "
            "for it (data.ood_val), or give one value"
        )
    if config.evaluation.stream is not None:
        read_methods(config.evaluation.stream.methods)
    check_trainer(config.trainer)
    check_model(config.backbone)  # comes last, because it may have to import the encoder's library


def image_sets(data: Data) -> dict[str, ImageSet]:
    """Returns every image set by its key: the ID parts as id, id.train, …, csid and OOD sets (see `key_of`), and ood_val.

    A set of the catalogue is the first of its layouts that is there.
    """
    root = data.root
    found = {}
    for key, spec in named_sets(data).items():
        known = layouts(spec)
        found[key] = next((layout for layout in known if is_there(layout, root)), known[0])
    return found


def named_sets(data: Data) -> dict[str, ImageSet]:
    """Returns every image set as the config names it, by its key (see `image_sets`)."""
    parts = {"id": data.id.images, "id.train": data.id.train, "id.val": data.id.val, "id.test": data.id.test}
    return (
        {name: part for name, part in parts.items() if part is not None}
        | {key_of(role, name): spec for role in ("csid", "ood") for name, spec in getattr(data, role).items()}
        | ({} if data.ood_val is None else {"ood_val": data.ood_val})
    )


def layouts(spec: ImageSet) -> list[ImageSet]:
    """Returns the layouts that an image set may come in: those in the catalogue, or the set itself.

    Raises: ConfigError for an unknown set or split.
    """
    if spec.catalog is None:
        return [spec.model_copy(update={"group": spec.group or ("shift" if spec.corruption else "ood")})]
    known = entry(spec.catalog)
    split = known.split(spec.split)
    group = spec.group or split.group or known.group or "ood"
    same = {"per_class": spec.per_class, "group": group, "source": spec.source or known.source}
    own = {key: value for key in SELECTION if (value := getattr(spec, key)) is not None}
    if own and any(key in layout for key in SELECTION for layout in split.layouts):
        raise ConfigError(
            f"{spec.catalog} {spec.split} is a selection of classes, and {next(iter(own))} would select among them again: name a whole "
            f"split of {spec.catalog}, or leave the key out"
        )
    published = (None, None) if own else (split.images, split.classes or known.classes)
    same |= own | {"count": spec.count or published[0], "classes": spec.classes or published[1]}
    return [ImageSet(**layout, **same) for layout in split.layouts]


def is_there(spec: ImageSet, root: Path) -> bool:
    """Says whether the files that an image set names are under `root`; torchvision's sets are recognised by what they unpack to."""
    return not missing_places(spec, root)


def missing_places(spec: ImageSet, root: Path) -> list[str]:
    """Returns in words the folders and files that an image set names and that are not under `root`.

    Raises: ConfigError for a server that refuses or does not answer.
    """
    try:
        return _missing_places(spec, root)
    except OSError as error:
        if not is_address(str(error.filename)):
            raise
        raise ConfigError(f"{error.filename}: {error.strerror}") from None


def _missing_places(spec: ImageSet, root: Path | Address) -> list[str]:
    if spec.torchvision is not None:
        if isinstance(root, Address):
            return [f"folder of this machine at {root}, where torchvision keeps its sets"]
        place = root / TORCHVISION[spec.torchvision].format(split=spec.split or "test")
        return [] if place.exists() else [f"file {place}" if place.suffix else f"folder {place}"]
    if spec.shards is not None:
        paths = shard_paths(root / spec.shards)
        ask = ahead if isinstance(paths[0], Address) else map
        lacking = [path for path, there in zip(paths, ask(is_file, paths), strict=True) if not there]
        more = f" (nor {len(lacking) - 1:,} more of {len(paths):,})" if len(lacking) > 1 else ""
        return [f"shard {lacking[0]}{more}"] if lacking else []
    if spec.parquet is not None:
        lacking = [path for path in shard_paths(root / spec.parquet) if not exists(path)]
        return [f"parquet file {lacking[0]}"] if lacking else []
    if spec.dataset is not None:
        folder, files = (value and root / value for value in (spec.dataset.data_dir, spec.dataset.data_files))
        if isinstance(folder, Address) or isinstance(files, Address):
            return [f"folder of this machine at {root}, where `datasets` finds its files"]
        return [] if folder is None or folder.is_dir() else [f"folder {folder}"]
    if spec.features is not None:
        return [] if is_file(root / spec.features.file) else [f"file of features {root / spec.features.file}"]
    missing = []
    if spec.folder is not None and not is_folder(root / spec.folder):
        missing.append(f"folder {root / spec.folder}")
    if spec.labels is not None and not exists(root / spec.labels):
        missing.append(f"label file {root / spec.labels}")
    if spec.index is not None and not is_file(root / spec.index):
        missing.append(f"index {root / spec.index}")
    if spec.path is not None and not exists(root / spec.path):
        missing.append(f"file or folder {root / spec.path}")
    if spec.list is not None and not is_file(root / spec.list):
        missing.append(f"image list {root / spec.list}")
    return missing


def check_places(config: Config) -> None:
    """Raises ConfigError if two keys name the same images, however they are written.

    These are a folder, list, shard, or split of a torchvision set, by any link; or a folder inside another one's.
    """
    seen: dict[Hashable, str] = {}
    folders: dict[Hashable, tuple[str, str]] = {}
    for key, spec in image_sets(config.data).items():
        for shown, place in _places(spec, config.data.root):
            if (other := seen.setdefault(place, key)) != key:
                raise ConfigError(
                    f"{option_of(other)} and {option_of(key)} name the same images ({shown}): an image that is scored as one must not be "
                    "taken for the other. Name other images, or leave one of the keys out"
                )
            if spec.folder is not None:
                folders[_identity(place_at(shown))] = key, shown
    for inner, shown in folders.values():
        for above in place_at(shown).parents:
            outer, whole = folders.get(_identity(above), (inner, ""))
            if outer == inner or may_share(inner, outer) or is_hidden(shown.removeprefix(str(above))):
                continue
            raise ConfigError(
                f"{option_of(inner)} ({shown}) lies in {option_of(outer)} ({whole}): an image that is scored as one must not be taken for "
                f"the other. Move it out, or name the folders of {whole} that are meant"
            )


def _places(spec: ImageSet, root: Path) -> list[tuple[str, Hashable]]:
    """Returns what an image set is read from, as shown and as an identity; nothing for a set that is made of another.

    Parts of one folder or list, by their classes or by an index, are several places.
    """
    keys = SELECTION if spec.index is None and spec.parquet is None else ("index", "split", "image", *SELECTION)
    part = [f"{key}={value}" for key in keys if (value := getattr(spec, key)) is not None]
    if spec.torchvision is not None:
        place = f"{spec.torchvision}, {spec.split or 'test'}, in {_shown(root)}"
        return [(place, (place, *part))]
    if spec.reader is not None:
        options = json.dumps(spec.options, default=str, sort_keys=True)
        where = None if spec.path is None else _identity(root / spec.path)
        return [(f"{spec.reader}, {spec.path or options}", (class_path(spec.reader), where, options, *part))]
    if spec.dataset is not None:
        folder = root / spec.dataset.name
        name = folder.resolve() if isinstance(folder, Path) and folder.is_dir() else spec.dataset.name
        place = spec.dataset.model_copy(update={"name": str(name), "label": None})
        return [(f"dataset {spec.dataset.name}", (place.model_dump_json(), *part))]
    if spec.features is not None:
        path = root / spec.features.file
        return [(_shown(path), (_identity(path), spec.features.array, *part))]
    pattern = spec.shards or spec.parquet
    paths = shard_paths(root / pattern) if pattern is not None else [spec.list or spec.folder]
    places = [root / path for path in paths if path is not None]
    return [(_shown(each), (_identity(each), *part)) for each in places]


def _shown(place: Path | Address) -> str:
    return str(place) if isinstance(place, Address) else realpath(place)


def _identity(path: str | Path | Address) -> Hashable:
    """Identifies a file or folder, by whatever name and in whatever case; a missing one is identified by its path, and one elsewhere by its
    address."""
    if isinstance(path, Address):
        return str(path)
    try:
        found = stat(path)
    except OSError:
        return realpath(path)
    return found.st_dev, found.st_ino


def check_folders(config: Config) -> None:
    """Raises ConfigError for the first image set that is not there, for two keys that name the same images, and for negative
    words that are not there; it says which, where, and how to get it.
    """
    for key, spec in named_sets(config.data).items():
        for listed in ("label_names", *SELECTION):
            if (value := getattr(spec, listed)) is not None:
                classes_of(value, config.data.root, f"{option_of(key)}.{listed}")
        check_there(key, spec, config.data.root)
    check_places(config)
    check_texts(config)


def check_there(key: str, spec: ImageSet, root: Path) -> None:
    """Raises ConfigError for an image set, as the config names it, that is not there; torchvision's sets need not be.

    The run downloads these itself.
    """
    name, known = called(key), layouts(spec)
    if known[0].torchvision is not None or any(is_there(layout, root) for layout in known):
        return
    lacking = [" and no ".join(missing_places(layout, root)) for layout in known]
    if spec.catalog is None:
        hint = f" Where to get it: {spec.source}" if spec.source else _advice(key, spec, root)
        raise ConfigError(f"Image set {name}: there is no {lacking[0]}.{hint}")
    raise ConfigError(
        f"Image set {name}: {spec.catalog} is not under {root}: there is no {'; nor '.join(lacking)}. "
        f"Where to get it: {entry(spec.catalog).advice(root)}"
    )


def _advice(key: str, spec: ImageSet, root: Path) -> str:
    option = "data." + ("id.images" if key == "id" else key.replace("/", "."))
    if spec.labels is not None and is_folder(root / spec.folder):
        return no_file(root / spec.labels).replace(": it", " It", 1)
    if spec.index is not None and is_folder(root / spec.folder):
        return no_file(root / spec.index).replace(": it", " It", 1)
    if spec.reader is not None or spec.dataset is not None or spec.features is not None:
        return ""
    kind = next(kind for kind in ("folder", "list", "shards", "parquet") if getattr(spec, kind) is not None)
    place = getattr(spec, kind)
    if isinstance(root / place, Address):
        return ""
    told = advice(option, kind, place if STREAM.match(str(place)) else root / place)
    return told and f" {told}"


def _check_left_out(names: Sequence[str], words: Path | None) -> None:
    known = {} if words is None else lexicographer_files(words)
    if not known:
        raise ConfigError(
            "data.csp_without names files of a folder with noun.*.txt and adj.*.txt, and data.negative_words is no such folder: name "
            "one, or drop data.csp_without"
        )
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"data.csp_without: {words} has no {unknown[0]}.txt; it has {', '.join(known)}")


def decisions_of(data: Data) -> Decisions:
    """Reads data.decisions. Raises: ConfigError for a file that is not there, or that holds something else."""
    if special(data.decisions) is not None or not data.decisions.is_file():
        raise ConfigError(
            f"data.decisions: there is no file {data.decisions}{no_file(data.decisions)}. `clip-ood review --run DIR` writes decisions to "
            f"{FILE} in the folder of a run"
        )
    try:
        return read_decisions(data.decisions)
    except UserError as error:
        raise ConfigError(f"data.decisions: {error}") from None


def check_texts(config: Config) -> None:
    """Raises ConfigError for class names, words or decisions that are not there or are not text, and for lists that are too large."""
    found, names = {}, config.data.id.class_names
    lists = {option_of(key): config.data.root / spec.list for key, spec in image_sets(config.data).items() if spec.list}
    if config.evaluation.bank_without is not None:
        lists["evaluation.bank_without"] = config.evaluation.bank_without
    for key, path in lists.items():
        if isinstance(path, Address):
            continue  # is fetched when the set is listed
        if not path.is_file():
            raise ConfigError(f"{key}: there is no file {path}{no_file(path)}")
        try:
            check_size(path, LONGEST_LIST)
        except NotText as error:
            raise ConfigError(f"{key}: {error}") from None
    if config.data.decisions is not None:
        decisions_of(config.data)
    if isinstance(names, Path):
        found["data.id.class_names"] = local(config.data.root / names)
    for key in ("vocabulary", "negative_words"):
        source = getattr(config.data, key)
        if source is not None and source != "imagenet":
            try:
                found[f"data.{key}"] = find_words(source)
            except FileNotFoundError as error:
                raise ConfigError(f"data.{key}: {error}") from None
    if config.data.vocabulary is not None and config.method.settings.tunes_encoder:
        raise ConfigError(
            "data.vocabulary names images by what the text encoder was trained together with, and fine-tuning changes the image encoder "
            "alone: leave data.vocabulary out, or take another method"
        )
    if config.data.csp_without:
        _check_left_out(config.data.csp_without, found.get("data.negative_words"))
    for key, path in found.items():
        if special(path) is not None or not path.exists():
            raise ConfigError(f"{key}: there is no file {path}{no_file(path)}")
        try:
            if path.is_file():  # words may be a folder of WordNet's
                read_text(path)
        except NotText as error:
            raise ConfigError(f"{key}: {error}") from None
