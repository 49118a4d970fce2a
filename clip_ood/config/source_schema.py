"""The keys of image sets that have keys of their own: Hugging Face's data sets, and features that are given."""

from __future__ import annotations

from typing import ClassVar

from clip_ood.config.section import Anywhere, Place, Section


class DatasetSource(Section):
    """A data set that Hugging Face's `datasets` loads (pip install 'clip-ood[datasets]'). A bare text means `name`."""

    bare: ClassVar[str | None] = "name"

    name: str
    """A data set of the hub (uoft-cs/cifar10), a folder below data.root that `datasets` can load or has saved, or a format: parquet,
    imagefolder, webdataset, arrow."""
    config: str | None = None
    """Configuration of a data set that has several."""
    data_dir: Place | None = None
    """Goes with a format: the folder of the files. Relative to data.root."""
    data_files: Place | None = None
    """Goes with a format: the file or pattern (train-*.parquet). Relative to data.root."""
    revision: str | None = None
    """Version of a data set of the hub: a branch, tag or commit (default: the newest)."""
    split: str | None = None
    """The split, or a part of it (train[:10%]); default: the only one."""
    image: str | None = None
    """Column of images (default: the only one)."""
    label: str | None = None
    """Column of labels (default: the only one of class labels, or else label)."""


class FeatureFile(Section):
    """Features that are given, a row an image: no encoder is loaded (backbone.library: given). A bare path means `file`."""

    bare: ClassVar[str | None] = "file"

    file: Anywhere
    """An array (N, D) of floats: .npy, .npz, .safetensors or .parquet (a column of lists). Relative to data.root."""
    array: str | None = None
    """Name of the array in a .npz or .safetensors file, or of the column in a parquet file (default: features, or the only one of
    floats)."""
    labels: str | None = None
    """Name of the labels (N,) in the same file: whole numbers from 0, -1 for none, or texts (default: labels or label, if there is one).
    Beside .npy: another .npy file, relative to data.root."""
