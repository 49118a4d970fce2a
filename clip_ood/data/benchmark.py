"""Image sets and the parts they play in an experiment: bank, val, id_test, covariate-shifted ID, OOD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clip_ood.config.checks import image_sets
from clip_ood.config.data_schema import REJECTED, Data, ImageSet
from clip_ood.config.set_keys import called as name_of
from clip_ood.config.set_keys import key_of
from clip_ood.data.class_names import called, find_classes
from clip_ood.data.comparability import of_count
from clip_ood.data.corruptions import Corruption
from clip_ood.data.decided import Decided, kept, relabelled
from clip_ood.data.image_list import ImageList, balanced
from clip_ood.data.label_numbers import numbered, trained_on
from clip_ood.data.listing import list_images
from clip_ood.data.readers.joined import Joined
from clip_ood.data.shared_images import check_apart
from clip_ood.data.splits import split
from clip_ood.errors import ConfigError
from clip_ood.files.regular_file import no_file
from clip_ood.files.text_files import not_utf8, read_names
from clip_ood.process.ranks import say_once

BANK = 0  # the loader of the images that detectors are fitted on; those that are scored come after it


@dataclass(frozen=True)
class Part:
    """Some rows of an image set and what they are for.

    Attributes: role is bank, train, val, id, csid, ood or ood_val; rows are positions in the image set with the key `images`.
    """

    name: str
    role: str
    group: str
    images: str
    rows: list[int]

    @property
    def key(self) -> str:
        """What tells the part from all others, whatever sets are called."""
        return key_of(self.role, self.name) if self.role in ("csid", "ood") else self.name


@dataclass(frozen=True)
class Benchmark:
    """The images of an experiment, listed and checked; no image is read.

    Attributes: images, the lists that features are extracted from, and parts, both by key; parts in the order of evaluation:
    bank, id_test, csid…, ood…, then train and val; class_names, None for ID images without classes; called, the names of each
    class in prompts; scores_train, whether the training images are scored too: only then may id_test have no images; decided, the
    decisions about ID images that were carried out (data.decisions).
    """

    images: dict[str, ImageList]
    parts: dict[str, Part]
    class_names: tuple[str, ...] | None
    called: tuple[tuple[str, ...], ...] | None = None
    scores_train: bool = False
    decided: Decided | None = None

    @property
    def labelled(self) -> bool:
        """Whether the ID training images have class labels."""
        return self.images[self.parts["train"].images].labels is not None

    @property
    def evaluated(self) -> list[Part]:
        """[bank, val, ood_val, train, id_test, csid…, ood…]: val and id_test where they have images, ood_val where detectors are
        chosen by it, train where it is scored."""
        bank, *tested = (part for part in self.parts.values() if part.role in ("bank", "id", "csid", "ood"))
        held_out = [part for name in ("val", "ood_val") if (part := self.parts.get(name)) and part.rows]
        train = [self.parts["train"]] if self.scores_train else []
        return [bank, *held_out, *train, *(part for part in tested if part.role != "id" or part.rows)]

    @property
    def reported(self) -> dict[str, Part]:
        """The parts that results speak of, by name: all that are evaluated but the bank."""
        return {part.name: part for part in self.evaluated[1:]}

    def labels(self, part: Part) -> list[int]:
        """The true class of each row of a part, -1 where it has none."""
        known = self.images[part.images].labels
        return (
            [-1] * len(part.rows)
            if known is None or part.role in ("ood", "ood_val")
            else [known[row] for row in part.rows]
        )


def list_set(data: Data, key: str, spec: ImageSet, seed: int, download: bool = True) -> ImageList:
    """Lists the images of one of the `image_sets` of `data` that is no corruption. Raises as `list_images`."""
    labelled = key not in _ood_keys(data) or spec.per_class is not None
    return list_images(name_of(key), spec, data.root, labelled, seed, data.allow_partial, download)


def arrange(
    data: Data,
    images: dict[str, ImageList],
    seed: int,
    reads_text: bool = True,
    bank_per_class: int | None = None,
    bank_without: Path | None = None,
    scores_train: bool = False,
    decided: Decided | None = None,
) -> Benchmark:
    """Divides listed image sets, each as `list_set` gives it, into the parts of a benchmark.

    `reads_text`: class names must mean something to a text encoder; `bank_per_class` and `bank_without`: which training images
    detectors are fitted on; `scores_train`: whether these are scored too, so that no other ID images are needed; `decided`: the ID
    images that are no ID images, or have another class, which changes the part of no other image. Raises: ConfigError for sets that
    share files, leave a part empty, or have other classes or names than there must be.
    """
    specs, ood = image_sets(data), _ood_keys(data)
    _say_partial(images, specs)
    first = next(iter(images.values()))  # the training images, or those that are divided
    known = find_classes(data, first, reads_text)
    by_wnid = data.id.class_names == "imagenet" and first.class_names is not None  # of which an ID set may have some
    trained = trained_on(first, known, data.allow_partial or by_wnid)
    images = {key: listed if key in ood else numbered(listed, known, trained, first) for key, listed in images.items()}
    check_apart(images)
    id_parts = _id_parts(data, images, seed, ("train",) if scores_train else ("train", "id_test"))
    rejected: list[Part] = []
    if decided is not None:
        was, images = images, relabelled(decided, images, trained)
        id_parts = {
            name: replace(part, rows=kept(decided, part, was[part.images], images[part.images]))
            for name, part in id_parts.items()
        }
        images, rejected = _rejected(decided, images)
    train, id_test = id_parts["train"], id_parts["id_test"]
    images |= _corrupted(images[id_test.images].subset(id_test.rows), specs)
    bank = _without(bank_without, images[train.images], train.rows)
    if bank_per_class is not None:
        if images[train.images].labels is None:
            raise ConfigError("evaluation.bank_per_class needs classes, and the ID images are a flat folder")
        listed = images[train.images].subset(bank)
        bank = [bank[i] for i in balanced(listed, bank_per_class, seed)]
    parts = [Part("bank", "bank", "", train.images, bank), id_test]
    for role, sets in (("csid", data.csid), ("ood", data.ood)):
        keys = {name: key_of(role, name) for name in sets}
        parts += [Part(name, role, specs[key].group, key, list(range(len(images[key])))) for name, key in keys.items()]
    parts += [*rejected, train, id_parts["val"]]
    if data.ood_val is not None:
        parts.append(Part("ood_val", "ood_val", "", "ood_val", list(range(len(images["ood_val"])))))
        if not id_parts["val"].rows:
            raise ConfigError("data.ood_val stands against ID val, which has no images: raise data.splits.val")
    names = None if trained is None else trained.names
    return Benchmark(
        images, {part.key: part for part in parts}, names, called(data.lemmas, trained), scores_train, decided
    )


def _rejected(decided: Decided, images: dict[str, ImageList]) -> tuple[dict[str, ImageList], list[Part]]:
    """Returns the image sets, and the OOD set of the rejected images, if there are any."""
    of = {key: rows for key in decided.of if (rows := decided.rows(key, "reject"))}
    if len(of) < 2:
        return images, [Part(REJECTED, "ood", "ood", key, rows) for key, rows in of.items()]
    joined = Joined([images[key].subset(rows) for key, rows in of.items()])
    key = key_of("ood", REJECTED)
    part = Part(REJECTED, "ood", "ood", key, list(range(len(joined.names))))
    return images | {key: ImageList.of(REJECTED, next(iter(images.values())).root, joined)}, [part]


def _ood_keys(data: Data) -> set[str]:
    return {*(key_of("ood", name) for name in data.ood), "ood_val"}


def _without(path: Path | None, images: ImageList, rows: list[int]) -> list[int]:
    """The rows of images that the file at `path` does not list."""
    if path is None:
        return rows
    if not path.is_file():
        raise ConfigError(f"evaluation.bank_without: there is no file {path}{no_file(path)}")
    left_out = {line for line in read_names(path) if line.strip()}
    if unknown := left_out.difference(images.names[row] for row in rows):
        encoding = ". The name is not UTF-8: save the file as UTF-8" if not_utf8(min(unknown)) else ""
        raise ConfigError(
            f"evaluation.bank_without: {path} names {min(unknown)}, which is no ID training image{encoding}"
        )
    if not (kept := [row for row in rows if images.names[row] not in left_out]):
        raise ConfigError(f"evaluation.bank_without: {path} names every ID training image; leave some in the bank")
    return kept


def _id_parts(data: Data, images: dict[str, ImageList], seed: int, needed: Sequence[str]) -> dict[str, Part]:
    """train, val and id_test: of one set divided by the shares, or as published with val held out of train; the `needed` ones have
    images."""
    shares = data.splits
    if data.id.images is not None:
        rows = split(images["id"], {"id_test": shares.test, "val": shares.val}, "train", seed)
        source = dict.fromkeys(rows, "id")
    else:
        source = {"train": "id.train", "val": "id.train", "id_test": "id.test"}
        rows = {"id_test": list(range(len(images["id.test"])))}
        if "id.val" in images:
            source["val"] = "id.val"
            rows |= {"train": list(range(len(images["id.train"]))), "val": list(range(len(images["id.val"])))}
        else:
            rows |= split(images["id.train"], {"val": shares.val}, "train", seed)
    for name in needed:
        if not rows[name]:
            raise ConfigError(
                f"The ID images ({len(images[source[name]])}) leave none for {name}: add images or change data.splits"
            )
    role = {"train": "train", "val": "val", "id_test": "id"}
    return {name: Part(name, role[name], "", source[name], rows[name]) for name in role}


def _corrupted(tested: ImageList, specs: dict[str, ImageSet]) -> dict[str, ImageList]:
    """The ID test images as each corruption makes them, by key. Raises: ConfigError if there are none."""
    made = [key for key, spec in specs.items() if spec.corruption is not None]
    if made and not len(tested):
        raise ConfigError(
            f"{name_of(made[0])} is made of the ID test images, and there are none: hold some out (data.splits.test)"
        )
    return {
        key: replace(tested, name=name_of(key), corruption=Corruption(spec.corruption, spec.severity))
        for key, spec in specs.items()
        if spec.corruption is not None
    }


def _say_partial(images: dict[str, ImageList], specs: dict[str, ImageSet]) -> None:
    for key, spec in specs.items():
        if spec.count is not None and spec.per_class is None and len(images[key]) != spec.count:
            told = f"{len(images[key]):,} of {spec.count:,} images (data.allow_partial)"
            if spec.list is None:  # of a list, its reader has said what that means
                told += f". {of_count(len(images[key]), spec.count)}"
            say_once(f"Image set {name_of(key)}: {told}")
