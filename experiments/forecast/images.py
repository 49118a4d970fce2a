"""Looks at the image sets of a config one by one: what is found, how many images there should be, and what would be downloaded."""

from __future__ import annotations

from dataclasses import dataclass

from clip_ood.config.checks import check_there, image_sets, is_there, named_sets
from clip_ood.config.schema import Config, ImageSet
from clip_ood.config.sets import Entry, catalogue
from clip_ood.data.benchmark import list_set
from clip_ood.data.datasets_library import NotDownloaded
from clip_ood.data.image_list import ImageList
from clip_ood.errors import ConfigError, UserError


@dataclass(frozen=True)
class FoundSet:
    """One image set of a config.

    images: its list as the run would take it (None: the run would not begin, or would download it first); found: how many images
    are there; published: how many there should be (None: not known); problem: why the run would stop.
    """

    key: str
    images: ImageList | None = None
    found: int = 0
    published: int | None = None
    problem: str = ""
    download: str = ""

    @property
    def state(self) -> str:
        """Its state in a word or two."""
        if self.download:
            return "is downloaded"
        if self.images is not None:
            return "incomplete" if self.published is not None and self.found != self.published else "there"
        if not self.found:
            return "missing"
        return "wrong count" if self.published is not None and self.found != self.published else "cannot be taken"

    @property
    def count(self) -> int:
        """The number of images that a run would take, as far as it is known."""
        return self.published or self.found if self.images is None else len(self.images)


def sets_of(config: Config) -> dict[str, tuple[ImageSet, ImageSet]]:
    """The image sets of a config by key, as it names each and as its first layout that is there; but for those that are made of
    another one by a corruption."""
    named = named_sets(config.data)
    return {key: (named[key], spec) for key, spec in image_sets(config.data).items() if spec.corruption is None}


def find_set(config: Config, key: str, named: ImageSet, spec: ImageSet) -> FoundSet:
    """What is there of one of a config's `sets_of`."""
    root, published = config.data.root, spec.count
    if spec.torchvision is not None:
        source, published = _of_torchvision(spec)
        if not is_there(spec, root):
            size = " + ".join(file.size for file in source.files)
            told = f"{spec.torchvision} would be downloaded to {root}: {size}, {source.licence}, {source.source}"
            return FoundSet(key, None, 0, published, download=told)
    try:
        check_there(key, named, root)
        images = list_set(config.data, key, spec, config.seed, download=False)
    except NotDownloaded as error:
        return FoundSet(key, None, 0, published or error.images, download=str(error))
    except UserError as error:
        return FoundSet(key, None, _count(config, key, spec), published, str(error))
    known = published is not None and not config.data.allow_partial  # of which some a class may be taken
    return FoundSet(key, images, published if known else len(images), published)


def _count(config: Config, key: str, spec: ImageSet) -> int:
    """Returns how many images there are in a set that the run would not take."""
    data = config.data.model_copy(update={"allow_partial": True})
    try:
        return len(list_set(data, key, spec, config.seed, download=False))
    except (UserError, OSError):  # it has been reported already
        return 0


def _of_torchvision(spec: ImageSet) -> tuple[Entry, int]:
    """Returns the catalogue's entry of a set that torchvision downloads, and the number of its images."""
    wanted = spec.torchvision, spec.split or "test"
    for each in catalogue().values():
        for split in each.splits.values():
            if any((layout.get("torchvision"), layout.get("split")) == wanted for layout in split.layouts):
                return each, split.images
    raise ConfigError(f"torchvision's {' '.join(wanted)} is not in the catalogue")
