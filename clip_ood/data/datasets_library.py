"""Lists the images of a data set that Hugging Face's `datasets` loads."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_ood.config.source_schema import DatasetSource
from clip_ood.data.parquet_files import classes_of
from clip_ood.data.parquet_table import WrongTable
from clip_ood.data.readers.dataset_rows import DatasetRows
from clip_ood.errors import ConfigError, UserError, nearest
from clip_ood.files.remote.address import Address
from clip_ood.process.ranks import say_once

if TYPE_CHECKING:
    from datasets import Dataset

SAVED = (
    "state.json"  # lies in a folder that `Dataset.save_to_disk` wrote, and dataset_dict.json in one of several splits
)
LONGEST = 400  # characters of an error that are shown


class NotDownloaded(ConfigError):
    """A data set of the hub, with this number of `images` (None: not known), is not on this machine, and may not be downloaded now."""

    def __init__(self, told: str, images: int | None) -> None:
        super().__init__(told)
        self.images = images


def read_dataset(
    set_name: str, source: DatasetSource, root: Path | Address, labelled: bool, download: bool
) -> DatasetRows:
    """Lists the images of a data set, called "split/row"; no image is read.

    Data sets of the hub are downloaded into the cache of `datasets` if they are not there and `download` allows it.
    Raises: ConfigError for a data set that cannot be had, another split, and columns that hold no images or labels.
    """
    where = f"Image set {set_name}: dataset {source.name}"
    if find_spec("datasets") is None:
        raise ConfigError(f"{where} is read with the package datasets: pip install 'clip-ood[datasets]'")
    rows = _loaded(where, source, root, download).with_format(None)
    if rows._indices is not None:  # rows in another order than in the table
        rows = rows.flatten_indices()
    try:
        image = _image_column(rows, source.image)
        labels = _labels(rows, source.label) if labelled or source.label is not None else (None, None)
    except WrongTable as error:
        raise ConfigError(f"{where}: {error}") from None
    split = str(rows.split or source.split or "all")
    names = tuple(f"{split}/{row:06d}" for row in range(len(rows)))
    rows = _undecoded(rows.select_columns([image]), image)
    return DatasetRows(rows, image, names, _files(rows, image), *labels)


def _loaded(where: str, source: DatasetSource, root: Path | Address, download: bool) -> Dataset:
    """Returns one split. Raises: ConfigError."""
    import datasets

    folder = root / source.name
    is_below = isinstance(folder, Path) and folder.is_dir()
    try:
        if is_below and any((folder / name).is_file() for name in (SAVED, "dataset_dict.json")):
            found = datasets.load_from_disk(str(folder))
        else:
            found = _prepared(where, source, str(folder) if is_below else source.name, root, download)
    except UserError:
        raise
    except Exception as error:  # of any of the many formats and of the hub
        told = " ".join(str(error).split())[:LONGEST]
        raise ConfigError(f"{where} cannot be had: {type(error).__name__}: {told}") from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if source.split is None and len(found) == 1:
        return next(iter(found.values()))
    if source.split not in found:
        asked = "several splits" if source.split is None else f"no split {source.split!r}"
        raise ConfigError(f"{where} has {asked}, but {', '.join(found)}: name one (split)")
    return found[source.split]


def _prepared(where: str, source: DatasetSource, place: str, root: Path | Address, download: bool) -> Any:
    import datasets

    below = {
        key: str(root / value) for key in ("data_dir", "data_files") if (value := getattr(source, key)) is not None
    }
    how = datasets.DownloadConfig(local_files_only=not download)
    given = {"name": source.config, "revision": source.revision, "download_config": how, **below}
    builder = datasets.load_dataset_builder(place, **given)
    is_local = bool(below) or place != source.name
    if not Path(builder.cache_dir).is_dir() and not is_local:
        size, splits = builder.info.download_size, builder.info.splits or {}
        about = "of a size that the hub does not tell" if size is None else f"{size / 1e6:,.0f} MB"
        come = f"downloaded from the Hugging Face hub into {builder.cache_dir}, {about}"
        if not download:
            split = splits.get(source.split) if len(splits) > 1 else next(iter(splits.values()), None)
            raise NotDownloaded(f"{where} would be {come}", split and split.num_examples)
        say_once(f"{where} is {come}")
    builder.download_and_prepare(download_config=how)
    known = list(builder.info.splits or {})
    if source.split is None or (source.split.isidentifier() and source.split not in known):
        return builder.as_dataset()
    return builder.as_dataset(split=source.split)


def _image_column(rows: Dataset, column: str | None) -> str:
    """Returns the column of images. Raises: WrongTable."""
    fitting = [name for name in rows.column_names if _holds_images(rows.features[name])]
    has = ", ".join(f"{name} ({_kind(feature)})" for name, feature in rows.features.items())[:LONGEST]
    if column is None and len(fitting) == 1:
        return fitting[0]
    if column is None:
        found = f"several columns of images, {', '.join(fitting)}" if fitting else "no column of images"
        raise WrongTable(f"it has {found}: name the one that is meant (image: COLUMN). It has {has}")
    if column not in rows.column_names:
        raise WrongTable(f"it has no column {column!r} (image).{nearest(column, rows.column_names)} It has {has}")
    if _kind(rows.features[column]) in ("string", "large_string"):
        raise WrongTable(
            f"its column {column} holds texts, and nothing says which folder they start from if they are paths: name the files as a "
            "list (list, images_root), or make them images (cast_column with datasets.Image) and save that (save_to_disk)"
        )
    if column not in fitting:
        raise WrongTable(f"its column {column} holds {_kind(rows.features[column])}, and no images. It has {has}")
    return column


def _holds_images(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    content = feature.get("bytes") if isinstance(feature, dict) else feature
    return _kind(content) in ("binary", "large_binary")


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def _undecoded(rows: Dataset, column: str) -> Dataset:
    """Returns rows whose images are the content of files, which this project decodes as it does all others."""
    import datasets

    if isinstance(rows.features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _files(rows: Dataset, column: str) -> dict[int, str]:
    """Returns the paths of those images that are files of their own, by row."""
    found, first = {}, 0
    for cells in rows.data.column(column).chunks:
        if hasattr(cells.type, "get_field_index") and cells.type.get_field_index("path") >= 0:
            absent = cells.field("bytes").is_null().to_numpy(zero_copy_only=False)
            paths = cells.field("path")
            found |= {
                first + row: path for row in np.flatnonzero(absent).tolist() if (path := paths[row].as_py()) is not None
            }
        first += len(cells)
    return found


def _labels(rows: Dataset, column: str | None) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    """Returns labels as numbers, and the names of those classes that have images. Raises: WrongTable."""
    import datasets

    fitting = [name for name, each in rows.features.items() if isinstance(each, datasets.ClassLabel)]
    if column is None:
        column = fitting[0] if len(fitting) == 1 else "label" if "label" in rows.column_names else None
    if column is None and not fitting:
        return None, None
    if column is None:
        raise WrongTable(f"it has several columns of labels, {', '.join(fitting)}: name the one that is meant (label)")
    if column not in rows.column_names:
        raise WrongTable(
            f"it has no column {column!r} (label).{nearest(column, rows.column_names)} It has {', '.join(rows.column_names)}"
        )
    feature = rows.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if names is None and not (_kind(feature).startswith(("int", "uint")) or "string" in _kind(feature)):
        raise WrongTable(f"its column {column} holds {_kind(feature)}; labels are whole numbers or texts")
    return classes_of(rows.data.column(column).to_pylist(), names)
