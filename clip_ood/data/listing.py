"""Lists the image sets of a config, each as an `ImageList` made by the reader that its keys name."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from clip_ood.config.data_schema import ImageSet
from clip_ood.config.misnamed import tars_in
from clip_ood.config.shard_names import shard_paths
from clip_ood.data import torchvision_sets
from clip_ood.data.class_folders import by_number, from_folder, say_passed_over
from clip_ood.data.class_order import check_no_splits, in_order
from clip_ood.data.class_selection import named, selected
from clip_ood.data.comparability import of_count
from clip_ood.data.datasets_library import read_dataset
from clip_ood.data.every_page import every_page
from clip_ood.data.feature_files import read_features
from clip_ood.data.image_list import ImageList, balanced
from clip_ood.data.index_files import read_index
from clip_ood.data.label_files import read_labels
from clip_ood.data.parquet_files import read_parquet
from clip_ood.data.path_lists import from_list
from clip_ood.data.readers.own import own_reader
from clip_ood.data.readers.shards import read_shards
from clip_ood.errors import ConfigError
from clip_ood.files.pictures import SUFFIXES
from clip_ood.files.remote.address import Address, is_address
from clip_ood.files.remote.fetched import local


def list_images(
    name: str,
    spec: ImageSet,
    root: Path | Address,
    labelled: bool,
    seed: int,
    partial: bool = False,
    download: bool = True,
) -> ImageList:
    """Lists the images of a set; with `labelled`, class folders and list labels become labels.

    `partial` accepts an incomplete set whose number of images is known; `download` lets torchvision download what is missing.
    Raises: ConfigError for an empty set, another number than the set must have, an empty class folder, images beside
    class folders, a folder that cannot be read, wrong lines of a list, and listed classes that are not there.
    """
    try:
        return _listed(name, spec, root, labelled, seed, partial, download)
    except OSError as error:
        if not is_address(str(error.filename)):
            raise
        raise ConfigError(f"Image set {name}: {error.filename}: {error.strerror}") from None


def _listed(
    name: str, spec: ImageSet, root: Path | Address, labelled: bool, seed: int, partial: bool, download: bool
) -> ImageList:
    where = _place(spec, root)
    selects = spec.keep_classes is not None or spec.drop_classes is not None
    labelled = labelled or selects or spec.label_names is not None
    if spec.reader is not None:
        images = ImageList.of(name, where, own_reader(name, spec, root))
        with suppress(OSError):  # an image that cannot be read is reported later, with all others
            if len(images):
                images.content(0)  # a wrong result of a reader is reported before any encoding
    elif spec.torchvision is not None:
        if isinstance(root, Address):
            raise ConfigError(
                f"Image set {name}: torchvision keeps its sets in a folder of this machine, and data.root is {root}"
            )
        arrays = torchvision_sets.load(name, spec.torchvision, spec.split or "test", root, download)
        images = ImageList.of(name, root, arrays)
    elif spec.shards is not None:
        shards = read_shards(name, [local(path) for path in shard_paths(where)])
        if shards.passed_over:
            say_passed_over(name, list(shards.passed_over))
        images = ImageList.of(name, where.parent, shards)
    elif spec.parquet is not None:
        rows = read_parquet(name, shard_paths(where), spec.image, spec.label, labelled, spec.split)
        images = ImageList.of(name, where, rows)
    elif spec.dataset is not None:
        images = ImageList.of(name, where, read_dataset(name, spec.dataset, root, labelled, download))
    elif spec.features is not None:
        images = ImageList.of(name, where, read_features(name, spec.features, root))
    elif spec.list is not None:
        images = from_list(name, local(where), root / spec.images_root, partial, None if selects else spec.count)
    elif spec.labels is not None:
        images = _from_labels(name, where, local(root / spec.labels), partial)
    elif spec.index is not None:
        images = _from_index(name, where, local(root / spec.index), spec.split, partial)
    elif spec.nested:
        images = _nested(from_folder(name, where, labelled=False))
    else:
        images = from_folder(name, where, labelled)
        if images.class_names is not None:
            check_no_splits(name, spec.folder, images)
        if spec.numbered and images.class_names is not None:
            images = by_number(images)
    if not len(images):
        hint = tars_in(where) if spec.folder is not None and isinstance(where, Path) else ""
        raise ConfigError(
            f"Image set {name}: {where} holds no images (looked for {', '.join(sorted(SUFFIXES))}).{hint}"
        )
    if spec.pages == "all":
        images = every_page(images)
    if spec.label_names is not None:
        images = named(images, spec, root)
    if selects:
        images = selected(images, spec, root, partial)
    _check_count(images, spec, where, labelled, partial)
    if spec.per_class is not None:
        if images.labels is None:
            raise ConfigError(f"Image set {name}: per_class needs classes, and {where} has none")
        images = images.subset(balanced(images, spec.per_class, seed))
    return images


def _place(spec: ImageSet, root: Path | Address) -> Path | Address:
    if spec.features is not None:
        return root / spec.features.file
    return root / (spec.folder or spec.list or spec.shards or spec.parquet or spec.path or "")


def _check_count(images: ImageList, spec: ImageSet, where: Path, labelled: bool, partial: bool) -> None:
    """Raises ConfigError if the number of images or classes is not the one that the set must have."""
    way_out = "Complete it, or run on what is there with --data.allow_partial=true"
    if spec.count is not None and len(images) != spec.count and not (partial and len(images) < spec.count):
        raise ConfigError(
            f"Image set {images.name}: {where} holds {len(images):,} images, and the set has {spec.count:,}. "
            f"{of_count(len(images), spec.count)}. {way_out}"
        )
    if not labelled or spec.classes is None:
        return
    if images.labels is None:
        raise ConfigError(
            f"Image set {images.name}: {where} does not say which of the {spec.classes} classes an image belongs to: move "
            "the images into a folder a class, or name a file of labels (data.….labels)"
        )
    found = len(set(images.labels) - {-1})
    if found != spec.classes and not (partial and found < spec.classes):
        raise ConfigError(
            f"Image set {images.name}: {where} holds {found} classes, and the set has {spec.classes}. {way_out}"
        )


def _from_labels(name: str, folder: Path, path: Path, partial: bool) -> ImageList:
    """Returns images of a folder, at any depth, with the classes that a file gives them."""
    images = from_folder(name, folder, labelled=False)
    path, labels = read_labels(name, path)
    labels = {normalize("NFC", stem): label for stem, label in labels.items()}
    stems = [normalize("NFC", Path(image).stem) for image in images.names]
    if unknown := next((image for image, stem in zip(images.names, stems, strict=True) if stem not in labels), None):
        raise ConfigError(f"Image set {name}: {path} has no line for {folder / unknown}")
    called: dict[str, str] = {}
    for image, stem in zip(images.names, stems, strict=True):
        if called.setdefault(stem, image) != image:
            raise ConfigError(
                f"Image set {name}: {path}, line {labels[stem].line}: {stem} may be {called[stem]} or {image} in {folder}: take out those "
                "that are not meant"
            )
    if (missing := labels.keys() - set(stems)) and not partial:
        missing = min(missing, key=lambda stem: labels[stem].line)
        raise ConfigError(f"Image set {name}: {path}, line {labels[missing].line}: there is no {missing} in {folder}")
    classes = in_order({labels[stem].name for stem in stems})
    number = {label: index for index, label in enumerate(classes)}
    return replace(images, labels=tuple(number[labels[stem].name] for stem in stems), class_names=tuple(classes))


def _from_index(name: str, folder: Path, path: Path, split: str | None, partial: bool) -> ImageList:
    """Returns the images of a folder that a publisher's file lists, with their classes."""
    listed = {normalize("NFC", image): each for image, each in read_index(name, path, split).items()}
    files = from_folder(name, folder, labelled=False)
    there = {normalize("NFC", file): file for file in files.names}
    by_stem: dict[str, list[str]] = defaultdict(list)
    for file in files.names:
        by_stem[normalize("NFC", str(Path(file).with_suffix("")))].append(file)
    found = {}
    for image, each in listed.items():
        written = normalize("NFC", each.written)
        alike = [there[written]] if written in there else by_stem[image]
        if len(alike) > 1:
            raise ConfigError(
                f"Image set {name}: {path}, line {each.line}: {written} may be {' or '.join(alike)} in {folder}: take out those that "
                "are not meant"
            )
        if alike:
            found[image] = alike[0]
    if (missing := [image for image in listed if image not in found]) and not partial:
        raise ConfigError(
            f"Image set {name}: {path}, line {listed[missing[0]].line}: there is no {missing[0]} in {folder}. "
            f"{of_count(len(listed) - len(missing), len(listed))}"
        )
    names = [(found[image], each.label or _folder_of(image)) for image, each in listed.items() if image in found]
    return _with_classes(files, sorted(names))


def _folder_of(image: str) -> str:
    """The folder that an image lies in, as a class is called.

    >>> _folder_of("l1/red_fox/7.jpg"), _folder_of("7.jpg")
    ('red fox', '')
    """
    return Path(image).parent.name.replace("_", " ")


def _nested(images: ImageList) -> ImageList:
    """Returns the images of a folder with the class of the folder that each lies in, however deep.

    Raises: ConfigError for an image beside class folders.
    """
    if loose := next((image for image in images.names if "/" not in image), None):
        raise ConfigError(
            f"Image set {images.name}: {images.root / loose} lies in no class folder (key nested). Move it into one"
        )
    folders = {image.rpartition("/")[0]: image for image in images.names}
    above = {str(each): folder for folder in folders for each in PurePosixPath(folder).parents}
    if beside := next((folder for folder in folders if folder in above), None):
        raise ConfigError(
            f"Image set {images.name}: {images.root / folders[beside]} lies beside class folders, as {images.root / above[beside]} (key "
            "nested). Move it into one, or take it out"
        )
    return _with_classes(images, [(image, _folder_of(image)) for image in images.names])


def _with_classes(images: ImageList, wanted: list[tuple[str, str]]) -> ImageList:
    """Returns some images of a list, which are given as pairs of a name and a class, in that order."""
    classes = in_order({label for _, label in wanted})
    number = {label: index for index, label in enumerate(classes)}
    row = {image: index for index, image in enumerate(images.names)}
    labels = tuple(number[label] for _, label in wanted)
    return replace(images.subset([row[image] for image, _ in wanted]), labels=labels, class_names=tuple(classes))
