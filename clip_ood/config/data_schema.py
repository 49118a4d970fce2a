"""The keys of `data`: image sets, splits and prompts. `--help` prints the text under a key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from clip_ood.config.reader_names import READERS, class_path
from clip_ood.config.section import Anywhere, Fraction, Place, Positive, Section, Untyped
from clip_ood.config.source_schema import DatasetSource, FeatureFile
from clip_ood.errors import UserError, nearest
from clip_ood.files.remote.address import place_at
from clip_ood.naming import fault, twins
from clip_ood.prompt_sets import with_sets

TAKEN = ("bank", "id_test", "mean", "ood_val", "val")  # in results: the project's own sets, and the mean over OOD sets
REJECTED = "rejected"  # the OOD set of the ID images that people rejected
PLACES = (
    "catalog",
    "folder",
    "list",
    "shards",
    "parquet",
    "dataset",
    "features",
    "torchvision",
    "reader",
    "corruption",
)


def _names(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    if value is None or isinstance(value, str | Path):
        return value
    quotes = (
        "; names that YAML takes for a number or a truth value stand in quotes, as ['1', 'no']"
        if isinstance(value, list)
        else ""
    )
    raise UserError(f"takes a list of names, as [cat, dog], a text file, or the name of a published list{quotes}")


ClassList = Annotated[list[str] | Place | None, BeforeValidator(_names)]
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
    """One set of images, given by exactly one of `catalog`, `folder`, `list`, `shards`, `parquet`, `dataset`, `features`, `torchvision`,
    `reader` and `corruption`. A bare path means `folder`, or `parquet` if it ends so."""

    bare = "folder"

    catalog: str | None = None
    """A named set, which sets layout, count, group and source. `clip-ood catalog` lists them."""
    folder: Anywhere | None = None
    """Folder of images, with one sub-folder for each class or with all images in it (flat); or an archive of such a folder (.zip, .tar,
    .tar.gz, .tar.bz2, .tar.xz), which is read as it is, or a folder in it: photos.zip/train. Relative to data.root, or an address, as are
    all places of images: s3://bucket/photos, https://example.org/photos.zip (docs/buckets.md)."""
    labels: Anywhere | None = None
    """Goes with `folder`: the file or folder that says each image's class, relative to data.root. It is TinyImageNet's
    val_annotations.txt, Kaggle's LOC_val_solution.csv, or the unpacked folder ILSVRC2012_devkit_t12 (needs scipy)."""
    index: Anywhere | None = None
    """Goes with `folder`: the publisher's file of the images that belong to a split, and of their classes, relative to data.root; other
    images of the folder are not in the set. It is CUB's train_test_split.txt or WaterBirds' metadata.csv (with `split`), or a list of
    one split, as those of Food-101, Oxford-IIIT Pet and FGVC-Aircraft: lines "class/image" or "image class"."""
    nested: bool = False
    """Goes with `folder`: an image's class is the folder that it lies in, however deep (ImageNet-ES), not the topmost one.
    A folder of images holds no other folders of images."""
    numbered: bool = False
    """Goes with `folder`: sub-folders are named by label number (ImageNet-V2: 0 … 999), not by class."""
    list: Anywhere | None = None
    """OpenOOD-style text file with a line "relative/path label" for each image (labels count from 0; -1 is no label), or with paths
    alone. Relative to data.root."""
    images_root: Anywhere = Path()
    """Goes with `list`: the folder, or archive, that its paths start from. Relative to data.root."""
    shards: Anywhere | None = None
    """Archives in webdataset's layout, mostly uncompressed tar files: x.cls beside x.jpg holds its label number. A sample's name ends at
    its first dot, and it has one image. {000..009} counts through the files. Relative to data.root."""
    parquet: Anywhere | None = None
    """A parquet file with a column of images (bytes, or {bytes, path} as Hugging Face's datasets write them) or of paths, or a folder of
    such files. {00000..00009} counts through files. Relative to data.root."""
    image: str | None = None
    """Goes with `parquet`: the column of images, or of paths that start from the file's folder (default: the only column of images)."""
    label: str | None = None
    """Goes with `parquet`: the column of labels, numbers or texts (default: the only one of class labels, or else label)."""
    dataset: DatasetSource | None = None
    """A data set of Hugging Face's hub, or one that `datasets` loads from files: {name: imagefolder, data_dir: photos, split: train}."""
    features: FeatureFile | None = None
    """Features of your own in the place of images: {file: train.npz}. All sets of a run have them, or none (backbone.library: given)."""
    torchvision: Literal["CIFAR10", "CIFAR100", "SVHN", "MNIST"] | None = None
    """A data set that torchvision downloads into data.root."""
    reader: str | None = None
    """npz, a file that numpy.savez wrote with `images` (N, H, W, 3) and, if they have classes, `labels` (N,); or the class path of a
    reader of your own (my_module.MyReader), a subclass of clip_ood.data.readers.Reader: docs/extending.md."""
    path: Anywhere | None = None
    """Goes with `reader`: the file or folder that it reads, which is its first argument. Relative to data.root."""
    options: Untyped = {}
    """With `reader`: what else it is made with, by the names of its arguments; of npz, `classes`, their names in label order."""
    pages: Literal["first", "all"] = "first"
    """Of .tif and .tiff files with several pages, the first is the image, or every page is an image of its own (all), called scan.tif#1,
    scan.tif#2, …; such files are then read when the set is listed."""
    corruption: CorruptionName | None = None
    """Only under data.ood: the ID test images with this corruption, made while they are read (clip_ood/data/corruptions.py)."""
    severity: Annotated[int, Field(ge=1, le=5)] | None = None
    """Goes with `corruption`: how strong it is, from 1 to 5."""
    split: str | None = None
    """Split of a `catalog` set (default: the only one, or test), of a `torchvision` set (train or test; default: test), of an `index`
    that lists several (train, val or test), or of a folder of `parquet` files that holds several."""
    label_names: ClassList = None
    """What label numbers 0, 1, … are called, where the source has numbers alone (`list`, `shards`, `numbered`, a reader): a list of names,
    a text file relative to data.root with a name on each line, or the name of a published list (clip_ood/config/class_lists). A source
    without label numbers is refused, under data.ood too."""
    keep_classes: ClassList = None
    """Only images of these classes are in the set. Given as `label_names`; classes are called as the source calls them (a folder's name,
    a wnid), or by their numbers where it has numbers alone. An unknown class is an error unless data.allow_partial is true."""
    drop_classes: ClassList = None
    """Images of these classes are not in the set: with the list of another set's `keep_classes`, the set of all other classes."""
    per_class: Positive | None = None
    """Keep a seeded draw of this many images of each class (default: all images)."""
    count: Positive | None = None
    """Number of images that the set must have, after keep_classes and drop_classes and before per_class. Any other number is an error
    unless data.allow_partial is true."""
    classes: Positive | None = None
    """Number of classes that an ID set must have. Any other number is an error unless data.allow_partial is true."""
    group: str | None = None
    """Group in which the table shows an OOD set: near, far, … (default: the catalogue's; shift for a corruption; otherwise ood)."""
    source: str = ""
    """Says where to get the images; it is shown if the folder is missing."""

    @model_validator(mode="before")
    @classmethod
    def _bare_parquet(cls, given: Any) -> Any:
        is_bare = isinstance(given, str | Path) and place_at(given).name.lower().endswith(".parquet")
        return {"parquet": given} if is_bare else given

    @model_validator(mode="after")
    def _one_place(self) -> ImageSet:
        named = [key for key in PLACES if getattr(self, key) is not None]
        if len(named) != 1:
            raise UserError(f"needs exactly one of {', '.join(PLACES)}; got {named or 'none'}")
        ways = [key for key in ("labels", "index", "nested", "numbered") if getattr(self, key)]
        if self.folder is None and ways:
            goes = "goes" if len(ways) == 1 else "go"
            raise UserError(f"{' and '.join(ways)} {goes} with folder, not with {named[0]}: leave out one or the other")
        if len(ways) > 1:
            raise UserError(
                f"{' and '.join(ways)} each say what the classes are: keep one of them, and leave out the others"
            )
        if self.reader is None and (self.path is not None or self.options):
            raise UserError(f"path and options go with reader, not with {named[0]}")
        if self.reader is not None and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", class_path(self.reader)):
            raise UserError(
                f"reader takes one of {', '.join(READERS)}, or the path of a class, as my_module.MyReader, and not {self.reader!r}."
                f"{nearest(self.reader, READERS)}"
            )
        if self.pages == "all" and named[0] not in ("folder", "list", "shards"):
            raise UserError(f"pages goes with folder, list or shards, not with {named[0]}")
        if self.split is not None and named[0] not in ("catalog", "torchvision", "parquet") and self.index is None:
            raise UserError(f"split goes with catalog, torchvision, parquet or index, not with {named[0]}")
        if self.parquet is None and (self.image is not None or self.label is not None):
            raise UserError(f"image and label name columns of parquet, and do not go with {named[0]}")
        if self.keep_classes is not None and self.drop_classes is not None:
            raise UserError("either keep_classes or drop_classes selects classes, not both")
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


ClassNames = Annotated[list[str] | Place | Literal["imagenet"] | None, BeforeValidator(_names)]


class IDSet(Section):
    """The in-distribution images: either `images`, which data.splits divides, or `train` and `test` as published. A bare path means
    `images`."""

    bare = "images"

    images: Images | None = None
    """All ID images; data.splits divides them into train, val and test, stratified by class and seeded."""
    train: Images | None = None
    """Training images of a set that has its own split. A share data.splits.val of them is held out as val."""
    val: Images | None = None
    """Held-out images of a set that has its own split (default: drawn from train)."""
    test: Images | None = None
    """Test images of a set that has its own split."""
    class_names: ClassNames = None
    """Class names for the prompts. They are a list in label order; a text file relative to data.root, with one name on each line in
    label order, or lines "folder<tab>name, other names" as TinyImageNet's words.txt; or `imagenet` (open_clip's 1000 distinct names,
    by wnid). Label order is the folders' order by name, or by number if all are numbers. A list that repeats the folders' own names
    may be in any order. Default: the folders' names, with underscores as spaces."""

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
    """Shares of the ID images; those that are left after val and test are train."""

    val: Fraction = 0.2
    """Share held out for thresholds and choices; it is never trained on."""
    test: Fraction = 0.3
    """Share scored in the table; it is used only if the ID set has no test images of its own."""

    @model_validator(mode="after")
    def _leaves_train(self) -> Splits:
        if self.val + self.test >= 1:
            raise UserError(
                f"val + test = {self.val + self.test:g} leaves no training images; both must sum to below 1"
            )
        return self


class Data(Section):
    """The image sets, and how they are split and read."""

    root: Anywhere = Path("data")
    """Folder that the relative paths of image sets start from, or its address."""
    id: IDSet
    """The in-distribution images. A bare path means `images`."""
    csid: dict[str, Images] = {}
    """Covariate-shifted ID sets by name. They are positives in the full_spectrum setting and do not appear in the standard one."""
    ood: dict[str, ImageSet] = {}
    """OOD sets by name. Neither these nor csid sets may be called bank, id_test, mean, ood_val or val. {} is allowed and gives scores
    without AUROC. No image may also be in ID, csid or ood_val, but OOD sets may share images."""
    ood_val: Images | None = None
    """OOD images by which, against ID val, parameters of detectors are chosen; {name: knn, k: [1, 5, 10]} under `detectors` needs
    them. They appear in no table, and must not be the images of a test set."""
    allow_partial: bool = False
    """Run even if a set has fewer images or classes than were published. Tables show the real numbers."""
    splits: Splits = Splits()
    """How ID images are divided if the set has no split of its own."""
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
    """Templates for the text encoder, in which {} stands for the class name; their embeddings are averaged. openai_80 and openai_7
    stand for CLIP's own templates for ImageNet."""
    lemmas: Literal["given", "first", "all"] = "given"
    """What prompts call a class: its given name, the first lemma of its WordNet synset, or every lemma (with embeddings averaged).
    The synset is the one of the class folder's wnid, or else the first sense of the given name. A class that WordNet does not know
    keeps its name, and the run says so. WordNet comes from clip-ood demo wordnet, or from Debian's wordnet-base."""
    vocabulary: Literal["imagenet", "wordnet"] | Place | None = None
    """Words by which images are named, with an encoder that reads text: of each image that the run ranks, and of new ones with
    detect.py --words, the nearest are said. `imagenet` stands for the names of ImageNet's 1,000 classes, and `wordnet` for WordNet's
    nouns; all else is as for data.negative_words (default: none)."""
    negative_words: Literal["wordnet"] | Place | None = None
    """Words from which NegLabel, CSP and EOE choose negative labels: `wordnet` (found in data/wordnet or /usr/share/wordnet), a
    folder with WordNet's index.noun and index.adj or with the authors' noun.*.txt and adj.*.txt, or a text file with one noun on
    each line (default: none; all three are left out)."""
    max_negative_words: Positive | None = None
    """Take a fixed draw of this many of these words (default: all; WordNet's 136,000 words make a million prompts for CSP)."""
    negative_choice: Literal["farthest", "nearest_and_farthest", "farthest_from_images", "given"] = "farthest"
    """Which of these words are negative labels: the 15 % that are farthest from the ID classes, as NegLabel and CSP choose; as many,
    half of them the nearest and half the farthest, as CLIPScope chooses; the 15 % that are farthest from labelled training images, as
    InterNeg chooses; or all of them, `given`, which is for a list of your own."""
    negative_classes: Literal["dropped", "kept"] = "dropped"
    """Whether the names of the ID classes may be chosen as negative labels (kept, as in the authors' code) or not (dropped)."""
    negative_averages: Literal["unit", "raw"] = "unit"
    """What CSP averages over its prompts: unit-norm embeddings, or the outputs of the text tower (raw, as in the authors' code)."""
    csp_without: list[str] = []
    """If data.negative_words is a folder with noun.*.txt and adj.*.txt: the files whose words CSP leaves out. The authors leave out
    [noun.person, noun.quantity, noun.group, adj.pert]."""
    batch_size: Positive = 256
    """Number of images in a forward pass of feature extraction, on each device."""
    num_workers: int | None = Field(default=None, ge=0, le=1024)
    """Number of processes that decode images for each device (default: at most 8 with a GPU, none without one)."""
    drop_duplicates: Literal["tested", "bank", "none"] = "none"
    """Exact copies that are taken out. `tested`: from each tested set, the images that are also trained on, chosen by, or in a tested
    set of another kind. `bank`: from the training images, and so from the bank, those that are also in any other set. Of equal images
    in one of these sets the first one stays. Copies in two OOD sets, or in two csid sets, stay in both. `none`: copies are only
    reported."""
    decisions: Place | None = None
    """A file of what people decided about ID images, as `clip-ood review` writes it: decisions.csv in a run's folder (docs/review.md).
    Rejected images leave train, val, test and bank, and are an OOD set named rejected; relabelled ones get the class that was decided
    on. Images are found by their content, whatever their files are called by now. The run goes by what the file says when it begins
    (default: none)."""
    max_unreadable: Fraction = 0.01
    """Largest share of a set's images that may be unreadable before the run stops; 5 images may be unreadable in any set. Unreadable
    images are left out and listed in the run's unreadable.csv."""

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
        if self.decisions is not None and REJECTED in names:
            raise UserError(
                f"with data.decisions, {REJECTED} is the set of the images that people rejected: call your own set otherwise"
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
