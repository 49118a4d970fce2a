"""The keys of `data`: image sets, splits, prompts. The text under a key is what `--help` prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from clip_ood.config.prompt_sets import with_sets
from clip_ood.config.section import Fraction, Place, Positive, Section, Untyped
from clip_ood.errors import UserError
from clip_ood.naming import fault, twins

TAKEN = ("bank", "id_test", "mean", "ood_val", "val")  # in results: the project's own sets, and the mean over OOD sets
PLACES = ("catalog", "folder", "list", "shards", "torchvision", "reader", "corruption")
CorruptionName = Literal[
    "gaussian_noise",
    "shot_noise",
    "gaussian_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "saturate",
    "jpeg",
    "pixelate",
]


class ImageSet(Section):
    """One set of images: exactly one of `catalog`, `folder`, `list`, `shards`, `torchvision`, `reader`, `corruption`. A bare
    path means `folder`."""

    bare = "folder"

    catalog: str | None = None
    """A named set: `clip-ood catalog` lists them. Brings layout, count, group and source."""
    folder: Place | None = None
    """Folder of images: one sub-folder a class, or all images in one (flat). Relative to data.root."""
    labels: Place | None = None
    """With `folder`: what says each image's class, relative to data.root: TinyImageNet's val_annotations.txt, Kaggle's
    LOC_val_solution.csv, or the unpacked folder ILSVRC2012_devkit_t12 (needs scipy)."""
    numbered: bool = False
    """With `folder`: sub-folders are named by label number (ImageNet-V2: 0 … 999), not by class."""
    list: Place | None = None
    """OpenOOD-style text file, a line "relative/path label" an image (labels count from 0; -1: no label). Relative to data.root."""
    images_root: Place = Path()
    """With `list`: the folder that its paths start from. Relative to data.root."""
    shards: Place | None = None
    """Uncompressed tar files in webdataset's layout (x.jpg beside x.cls, its label number; a sample's name ends at its first
    dot, and it has one image); {000..009} counts through them. Relative to data.root."""
    torchvision: Literal["CIFAR10", "CIFAR100", "SVHN", "MNIST"] | None = None
    """A data set that torchvision downloads into data.root."""
    reader: str | None = None
    """The class path of a reader of your own (my_module.MyReader), a subclass of clip_ood.data.readers.Reader: docs/extending.md."""
    path: Place | None = None
    """With `reader`: the file or folder that it reads, its first argument. Relative to data.root."""
    options: Untyped = {}
    """With `reader`: what else it is made with, by the names of its arguments."""
    corruption: CorruptionName | None = None
    """Under data.ood alone: the ID test images corrupted so, made while they are read (clip_ood/data/corruptions.py)."""
    severity: Annotated[int, Field(ge=1, le=5)] | None = None
    """With `corruption`: how strong it is, 1 to 5."""
    split: str | None = None
    """With `catalog`: which split (default: the only one, or test). With `torchvision`: train or test (the default)."""
    per_class: Positive | None = None
    """Keep a seeded draw of this many images a class (default: all images)."""
    count: Positive | None = None
    """The number of images the set must have, before per_class; another one is an error unless data.allow_partial."""
    classes: Positive | None = None
    """The number of classes an ID set must have; another one is an error unless data.allow_partial."""
    group: str | None = None
    """OOD sets: the group that the table shows them in (near, far, …; default: the catalogue's, shift for a corruption,
    or ood)."""
    source: str = ""
    """Where to get the images: shown when the folder is missing."""

    @model_validator(mode="after")
    def _one_place(self) -> ImageSet:
        named = [key for key in PLACES if getattr(self, key) is not None]
        if len(named) != 1:
            raise UserError(f"needs exactly one of {', '.join(PLACES)}; got {named or 'none'}")
        if self.folder is None and (self.labels is not None or self.numbered):
            raise UserError(f"labels and numbered go with folder, not with {named[0]}")
        if self.labels is not None and self.numbered:
            raise UserError("either labels or numbered says what the classes are, not both")
        if self.reader is None and (self.path is not None or self.options):
            raise UserError(f"path and options go with reader, not with {named[0]}")
        if self.reader is not None and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", self.reader):
            raise UserError(f"reader takes the path of a class, as my_module.MyReader, and not {self.reader!r}")
        if self.split is not None and named[0] not in ("catalog", "torchvision"):
            raise UserError(f"split goes with catalog or torchvision, not with {named[0]}")
        if self.torchvision is not None and self.split not in (None, "train", "test"):
            raise UserError(f"split of a torchvision set is train or test, not {self.split!r}")
        if (self.corruption is None) != (self.severity is None):
            raise UserError("corruption and severity (1 to 5) go together")
        given = (key for key, field in ImageSet.model_fields.items() if getattr(self, key) != field.default)
        if self.corruption is not None and (other := sorted({*given} - {"corruption", "severity", "group"})):
            raise UserError(f"beside corruption only severity and group are meant, not {', '.join(other)}")
        return self


def _of_its_own(images: ImageSet) -> ImageSet:
    if images.corruption is not None:
        raise UserError("a corruption makes an OOD set of the ID test images: name it under data.ood")
    return images


Images = Annotated[ImageSet, AfterValidator(_of_its_own)]


def _names(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    if value is None or isinstance(value, str | Path):
        return value
    raise UserError("takes a list of names, as [cat, dog], a text file, or imagenet")


ClassNames = Annotated[list[str] | Place | Literal["imagenet"] | None, BeforeValidator(_names)]


class IDSet(Section):
    """The in-distribution images: `images`, split by data.splits, or `train` and `test` as published. A bare path means
    `images`."""

    bare = "images"

    images: Images | None = None
    """All ID images; data.splits divides them into train, val and test, stratified by class and seeded."""
    train: Images | None = None
    """Training images of a set with a split of its own; data.splits.val of them are held out as val."""
    val: Images | None = None
    """Held-out images of a set with a split of its own (default: drawn from train)."""
    test: Images | None = None
    """Test images of a set with a split of its own."""
    class_names: ClassNames = None
    """Names for the prompts: a list in label order, a text file relative to data.root (a name a line in label order, or
    lines "folder<tab>name, other names" as TinyImageNet's words.txt), or `imagenet` (open_clip's 1000 distinct names, by
    wnid). Folders are in label order by name, or by number where all are numbers; their own names may stand in any order.
    Default: the folders' names, underscores as spaces."""

    @model_validator(mode="after")
    def _one_way(self) -> IDSet:
        if (self.images is None) == (self.train is None and self.test is None):
            raise UserError("needs either images (split by data.splits) or train and test")
        if self.images is None and (self.train is None or self.test is None):
            raise UserError("needs both train and test")
        if self.images is not None and self.val is not None:
            raise UserError(
                "val comes from data.splits when `images` is given; name train and test as well, or drop val"
            )
        return self


class Splits(Section):
    """Shares of the ID images; what is left after val and test is train."""

    val: Fraction = 0.2
    """Held out for thresholds and choices, never trained on."""
    test: Fraction = 0.3
    """Scored in the table; used only where the ID set has no test images of its own."""

    @model_validator(mode="after")
    def _leaves_train(self) -> Splits:
        if self.val + self.test >= 1:
            raise UserError(
                f"val + test = {self.val + self.test:g} leaves no training images; both must sum to below 1"
            )
        return self


class Data(Section):
    """Where the images are."""

    root: Place = Path("data")
    """Folder that relative paths of image sets start from."""
    id: IDSet
    """The in-distribution images. A bare path means `images`."""
    csid: dict[str, Images] = {}
    """Covariate-shifted ID sets by name: positives of the full_spectrum setting, absent from the standard one."""
    ood: dict[str, ImageSet] = {}
    """OOD sets by name, any but bank, id_test, mean, ood_val and val, as of csid; {} is allowed: scores, no AUROC. No image may
    be one of ID, csid or ood_val as well; OOD sets may share images."""
    ood_val: Images | None = None
    """OOD images to choose parameters of detectors by, against ID val: {name: knn, k: [1, 5, 10]} under `detectors` needs
    them. They are in no table, and must not be those of a test set."""
    allow_partial: bool = False
    """Run on what is there of sets whose published number of images is known: fewer images, fewer classes. Tables carry
    the real numbers."""
    splits: Splits = Splits()
    """How ID images are divided where the set has no split of its own."""
    prompts: Annotated[list[str], AfterValidator(with_sets)] = Field(
        default=[
            "a photo of a {}.",
            "a blurry photo of a {}.",
            "a photo of many {}.",
            "a photo of the large {}.",
            "a photo of the small {}.",
        ],
        min_length=1,
    )
    """Templates for the text encoder; {} stands for the class name. Their embeddings are averaged. Or openai_80, openai_7:
    CLIP's own for ImageNet."""
    lemmas: Literal["given", "first", "all"] = "given"
    """What prompts call a class: its given name; the first lemma of its WordNet synset; or every lemma, embeddings averaged.
    The synset is that of the class folder's wnid, else the first sense of the given name; a class that WordNet does not
    know keeps its name, and the run says so. WordNet: clip-ood demo wordnet, or Debian's wordnet-base."""
    negative_words: Literal["wordnet"] | Place | None = None
    """What NegLabel and CSP choose negative labels from: `wordnet` (found in data/wordnet or /usr/share/wordnet), a
    folder with its index.noun and index.adj or with the authors' noun.*.txt and adj.*.txt, or a text file with one noun a line
    (default: none, both are left out)."""
    max_negative_words: Positive | None = None
    """Take a fixed draw of this many of these words (default: all; WordNet's 136,000 are a million prompts for CSP)."""
    negative_classes: Literal["dropped", "kept"] = "dropped"
    """Whether the names of the ID classes may be negative labels (kept, as in the authors' code) or not (dropped)."""
    negative_averages: Literal["unit", "raw"] = "unit"
    """What CSP averages over prompts: unit-norm embeddings, or what the text tower gives (raw, as in the authors' code)."""
    csp_without: list[str] = []
    """Of a folder with noun.*.txt and adj.*.txt: files whose words CSP leaves out, as the authors do with
    [noun.person, noun.quantity, noun.group, adj.pert]."""
    batch_size: Positive = 256
    """Images a forward pass and device in feature extraction."""
    num_workers: int | None = Field(default=None, ge=0, le=1024)
    """Processes that decode images, a device (default: 8 at most with a GPU, none without)."""
    max_unreadable: Fraction = 0.01
    """Largest share of a set's images that may be unreadable before the run stops; 5 may be in any set. They are left out, and
    listed in unreadable.csv of the run."""

    @model_validator(mode="after")
    def _placeholders(self) -> Data:
        if wrong := [prompt for prompt in self.prompts if prompt.count("{}") != 1]:
            raise UserError(f"prompts: {wrong[0]!r} must hold {{}} once, where the class name goes")
        names = [*self.csid, *self.ood]
        if wrong := [name for name in names if fault(name)]:
            raise UserError(f"the name of a set, {wrong[0]!r}, {fault(wrong[0])}: call it otherwise")
        if twice := sorted(set(TAKEN) & (self.ood.keys() | self.csid.keys()) | self.ood.keys() & self.csid.keys()):
            raise UserError(
                f"set names must be distinct, and none of {', '.join(TAKEN)}, which results use themselves: rename "
                f"{', '.join(twice)}"
            )
        if same := twins(names):
            raise UserError(
                f"the sets {same[0]!r} and {same[1]!r} differ in case, blanks or Unicode's form alone: no reader could tell them "
                "apart; rename one"
            )
        if same := [name for name, images in (self.csid | self.ood).items() if _place(images) == _place(self.ood_val)]:
            raise UserError(f"ood_val: {same[0]} is reported on; nothing may be chosen on it. Name other images")
        return self


def _place(images: ImageSet | None) -> dict[str, Any] | None:
    return None if images is None else images.model_dump(exclude={"group", "source", "per_class"})
