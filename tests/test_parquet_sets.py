"""Parquet files as sets: the images and labels of the same files in folders, by the columns of Hugging Face and of others."""

from __future__ import annotations

import json
import os
from multiprocessing import get_context
from pathlib import Path

import judged_run
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import replica
import tiny_clip
from replica import listed

import eval as evaluation
from clip_ood.config.checks import check_folders
from clip_ood.config.loading import load_config
from clip_ood.config.schema import ImageSet
from clip_ood.data.inputs import sources
from clip_ood.data.listing import list_images
from clip_ood.data.readers import parquet_rows
from clip_ood.data.readers.parquet_rows import Row, place_of
from clip_ood.errors import ConfigError
from clip_ood.files.pictures import UnreadableImage

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ANIMALS = ["cat", "big_dog", "unused"]


def features(**columns) -> dict[bytes, bytes]:
    """The metadata that Hugging Face's datasets write."""
    kinds = {"image": {"_type": "Image"}, "label": {"names": ANIMALS, "_type": "ClassLabel"}}
    told = {name: kinds.get(kind, {"_type": "Value"}) for name, kind in columns.items()}
    return {b"huggingface": json.dumps({"info": {"features": told}}).encode()}


def written(path: Path, group: int = 3, /, *, metadata: dict | None = None, **columns) -> Path:
    """A parquet file of these columns, with row groups of `group` rows."""
    table = pa.table(
        {name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in columns.items()}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)
    return path


def pictures(count: int) -> list[bytes]:
    return [replica.picture(number) for number in range(count)]


def hugging_face(path: Path, count: int = 8, **columns) -> Path:
    cells = pa.array([{"bytes": content, "path": f"{row}.png"} for row, content in enumerate(pictures(count))], HF)
    return written(
        path,
        image=cells,
        label=[row % 2 for row in range(count)],
        metadata=features(image="image", label="label"),
        **columns,
    )


def test_images_labels_and_classes_are_those_of_hugging_face(tmp_path):
    hugging_face(tmp_path / "x.parquet")
    images = listed(tmp_path, parquet="x.parquet")
    assert images.names[:2] == ("x.parquet/000000", "x.parquet/000001") and len(images) == 8
    assert images.class_names == ("big dog", "cat") and images.labels == (1, 0) * 4
    order = [7, 0, 3, 2, 2, 6, 1]  # forth, back, again, within and between row groups
    assert [images.reader.open(row) for row in order] == [replica.picture(row) for row in order]
    assert len(np.unique(images.stamps().values, axis=0)) == 8
    assert images.load(4).stamp == images.reader.stamp(4).value
    assert listed(tmp_path, False, parquet="x.parquet").labels is None
    assert list_images("x", ImageSet.model_validate("x.parquet"), tmp_path, True, 0).names == images.names


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pytest.param(pa.binary_view() if hasattr(pa, "binary_view") else pa.binary(), id="view"),
        pa.struct([("bytes", pa.binary())]),
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
    ],
)
def test_bytes_are_read_from_columns_of_every_kind(kind, tmp_path):
    cells = [{"bytes": each} for each in pictures(5)] if pa.types.is_struct(kind) else pictures(5)
    written(tmp_path / "x.parquet", picture=pa.array(cells, kind), label=["dog", "cat", None, "dog", "cat"])
    images = listed(tmp_path, parquet="x.parquet")
    assert [images.reader.open(row) for row in range(5)] == pictures(5)
    assert images.labels == (1, 0, -1, 1, 0) and images.class_names == ("cat", "dog")


def test_paths_lead_from_the_folder_of_the_file(tmp_path):
    for row in range(4):
        replica.put(tmp_path / "in" / "photos" / f"{row}.png", row)
    paths = [f"photos/{row}.png" for row in range(4)]
    written(tmp_path / "in" / "x.parquet", file=paths, species=[5, 0, -1, None])
    images = listed(tmp_path, parquet="in/x.parquet", image="file", label="species")
    assert [images.reader.open(row) for row in range(4)] == [replica.picture(row) for row in range(4)]
    assert images.labels == (5, 0, -1, -1) and images.class_names is None
    before = images.stamps().values
    os.utime(tmp_path / "in" / "photos" / "2.png", (1, 1))
    assert (before != images.stamps().values).any(axis=1).tolist() == [False, False, True, False]
    mixed = [{"bytes": replica.picture(9), "path": "a.png"}, {"bytes": None, "path": "photos/1.png"}, None]
    written(tmp_path / "in" / "y.parquet", image=pa.array(mixed, HF))
    some = listed(tmp_path, parquet="in/y.parquet")
    assert [some.reader.open(row) for row in (1, 0)] == [replica.picture(1), replica.picture(9)]
    with pytest.raises(OSError, match="the row holds no image"):
        some.read(2)
    with pytest.raises(UnreadableImage, match="the row holds no image"):  # a run counts it, and goes on
        some.load(2).picture()


@pytest.mark.parametrize("name", ["{}.parquet", "default/{}/0000.parquet"])
def test_splits_that_files_or_folders_are_called_by_are_no_single_set(name, tmp_path):
    for split in ("train", "test"):
        written(tmp_path / "in" / name.format(split), image=pictures(2))
    with pytest.raises(ConfigError, match=r"holds several splits, 'test', 'train': name one"):
        listed(tmp_path, parquet="in")
    names = listed(tmp_path, parquet="in", split="train").names
    assert names == tuple(f"{name.format('train')}/{row:06d}" for row in range(2))


def test_files_of_one_name_in_two_folders_keep_apart(tmp_path):
    for folder in ("a", "b"):
        written(tmp_path / "in" / folder / "0.parquet", image=pictures(1))
    assert listed(tmp_path, parquet="in").names == ("a/0.parquet/000000", "b/0.parquet/000000")


def test_a_file_with_one_large_row_group_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "AT_ONCE", 2 * len(replica.picture(0)))
    written(tmp_path / "x.parquet", 1000, image=pictures(40))
    reader = listed(tmp_path, parquet="x.parquet").reader
    assert [reader.open(row) for row in (0, 39, 17, 18)] == [replica.picture(row) for row in (0, 39, 17, 18)]
    assert len(parquet_rows._latest.cells) < 5


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_other_processes_read_them_too(start, tmp_path):
    hugging_face(tmp_path / "x.parquet")
    reader = listed(tmp_path, parquet="x.parquet").reader
    assert reader.open(1) == replica.picture(1)  # its place is kept, and must not be shared with a forked process
    with get_context(start).Pool(2) as pool:
        assert pool.map(reader.open, range(8)) == pictures(8)


def test_a_folder_of_files_is_one_set_and_a_split_is_named(tmp_path):
    for number in range(2):
        hugging_face(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", 3)
    assert len(listed(tmp_path, parquet="data")) == 6
    assert len(listed(tmp_path, parquet="data/train-{00000..00001}-of-00002.parquet")) == 6
    hugging_face(tmp_path / "data" / "test-00000-of-00001.parquet", 2)
    with pytest.raises(ConfigError, match=r"holds several splits, 'test', 'train': name one \(key split\)"):
        listed(tmp_path, parquet="data")
    assert len(listed(tmp_path, parquet="data", split="test")) == 2
    with pytest.raises(ConfigError, match="has no split val; it has test, train"):
        listed(tmp_path, parquet="data", split="val")
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ConfigError, match="holds 1 of 2 files, as train-00000-of-00002"):
        listed(tmp_path, parquet="data", split="train")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="holds no images"):
        listed(tmp_path, parquet="none")


@pytest.mark.parametrize(
    "columns, spec, told",
    [
        (
            {"a": pictures(2), "b": pictures(2)},
            {},
            r"it has several columns of images, a, b: name the one that is meant \(image: COLUMN, ",
        ),
        ({"url": ["a.png", "b.png"]}, {}, r"it has no column of images: name the one .* It has url \(string\)"),
        ({"image": pictures(2)}, {"image": "imgae"}, r"it has no column 'imgae' \(image\)\. .*image"),
        (
            {"image": pictures(2), "n": [1, 2]},
            {"image": "n"},
            "its column n holds int64, and no images, bytes or paths",
        ),
        (
            {"image": pictures(2), "label": [0.5, 1.0]},
            {},
            "its column label holds double; labels are whole numbers or texts",
        ),
        ({"image": pictures(2), "label": ["", "cat"]}, {}, "it has the label '' as a text, which is no class"),
        ({"image": pictures(2), "label": ["cat", "-1"]}, {}, "it has the label '-1' as a text, .* -1 is none"),
        ({"image": pictures(2), "label": [-2, 1]}, {}, "it has the label -2; labels count from 0, and -1 is none"),
        (
            {"image": pictures(2), "label": [0, 3], "metadata": features(label="label")},
            {},
            "it has the label 3, and names 3 classes",
        ),
        (
            {
                "image": pictures(2),
                "fine": [0, 1],
                "coarse": [0, 0],
                "metadata": features(fine="label", coarse="label"),
            },
            {},
            r"it has several columns of labels, fine, coarse: name the one that is meant \(label: COLUMN, ",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named(columns, spec, told, tmp_path):
    written(tmp_path / "x.parquet", **columns)
    with pytest.raises(ConfigError, match=rf"Image set x: .*x\.parquet: {told}"):
        listed(tmp_path, parquet="x.parquet", **spec)


@pytest.mark.parametrize(
    "harm, told",
    [
        (lambda content: b"", "it is empty"),
        (lambda content: b"<html>Sign in", "it is a web page, and no parquet file"),
        (lambda content: content[: len(content) // 2], "it is no whole parquet file"),
        (lambda content: content[:-100] + bytes(92) + content[-8:], "it is no whole parquet file"),
    ],
)
def test_a_damaged_file_is_refused(harm, told, tmp_path):
    path = hugging_face(tmp_path / "x.parquet")
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ConfigError, match=rf"x\.parquet: {told}"):
        listed(tmp_path, parquet="x.parquet")
    (found,) = sources([str(path)])
    assert told in found.reason


def test_a_damaged_or_changed_row_group_is_told_by_its_images(tmp_path):
    path = written(tmp_path / "x.parquet", 2, image=pictures(6))
    images, content = listed(tmp_path, parquet="x.parquet"), path.read_bytes()
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    path.write_bytes(content[: place + 1] + bytes(60) + content[place + 61 :])
    assert images.read(0).size and images.read(5).size
    with pytest.raises(OSError, match="the parquet file is damaged"):
        images.read(2)
    written(path, 2, image=pictures(2))
    assert images.reader.open(1) == replica.picture(1)
    with pytest.raises(OSError):
        images.reader.open(5)


def test_a_run_on_parquet_scores_as_one_on_folders(tmp_path):
    tiny_clip.make(tmp_path)
    data = tmp_path / "data"
    for name in ("id", "near"):
        files = sorted((data / name).rglob("*.png"))
        labels = {"label": [each.parent.name for each in files]} if name == "id" else {}
        written(data / f"{name}.parquet", 10, image=[each.read_bytes() for each in files], **labels)
    rows = {}
    split = {"val": 0.0, "test": 0.0}  # parts are drawn by the names of images, which are others here
    for name, sets in {"plain": ("id", "near"), "packed": ("id.parquet", "near.parquet")}.items():
        keys = {
            "root": str(data),
            "id": {"train": sets[0], "test": "id2"},
            "ood": {"near": sets[1]},
            "batch_size": 8,
            "splits": split,
        }
        (data / "id2").is_dir() or _copied(data / "id", data / "id2")
        config = tiny_clip.config(tmp_path, name, {"zero_shot": {}}, data=keys)
        evaluation.main(["--config", config, f"--features_root={tmp_path}/features_{name}", "--data.num_workers=2"])
        rows[name] = tiny_clip.results(tmp_path / "runs" / name)["rows"]
    assert rows["plain"] == rows["packed"] and rows["plain"]


def _copied(source: Path, target: Path) -> None:
    """Other images of the same classes."""
    for number, each in enumerate(sorted(source.rglob("*.png"))):
        replica.put(target / each.relative_to(source), 1000 + number)


def test_predictions_of_a_parquet_file_are_those_of_its_files(tmp_path):
    run = judged_run.make(tiny_clip.make(tmp_path), "judged")
    files = sorted((tmp_path / "data" / "near").glob("*.png"))
    path = written(tmp_path / "near.parquet", 4, image=[*[each.read_bytes() for each in files], None, b"no picture"])
    judged_run.judged("--run", run, *files, "--out", tmp_path / "files.csv")
    judged_run.judged(
        "--run",
        run,
        path,
        "--out",
        tmp_path / "rows.csv",
        "--copy-ood",
        tmp_path / "odd",
        "--accept",
        0.95,
        "--workers",
        2,
    )
    plain, rows = judged_run.read(tmp_path / "files.csv"), judged_run.read(tmp_path / "rows.csv")
    assert [row["path"] for row in rows] == [f"{path}/{number:06d}" for number in range(len(files))]
    assert [row | {"path": ""} for row in rows] == [row | {"path": ""} for row in plain]
    lost = judged_run.read(tmp_path / "rows.csv.unreadable.csv")
    assert [(each["path"].rsplit("/")[-1], each["reason"][:20]) for each in lost] == [
        (f"{len(files):06d}", "the row holds no ima"),
        (f"{len(files) + 1:06d}", "UnidentifiedImageErr"),
    ]
    flagged = {
        f"{number:06d}": file.read_bytes()
        for number, (row, file) in enumerate(zip(plain, files, strict=True))
        if row["is_ood"] == "true"
    }
    assert {each.name: each.read_bytes() for each in (tmp_path / "odd").rglob("*") if each.is_file()} == flagged


def test_a_place_comes_back_out_of_a_file():
    for place in (
        Row("x.parquet", 0, 1, "image"),
        parquet_rows.Place("a.png"),
        parquet_rows.Place("a.zip", 1, 2, 3, 4),
    ):
        assert place_of(*json.loads(json.dumps(place))) == place


def test_configs_name_them_by_path_or_key(tmp_path):
    hugging_face(tmp_path / "x.parquet")
    text = (
        "data: {id: x.parquet, ood: {a: {parquet: y.parquet}}}\nbackbone: {model: ViT-B-32}\nmethod: {zero_shot: {}}\n"
    )
    (tmp_path / "run.yaml").write_text(text)

    def checked(*options):
        config = load_config(str(tmp_path / "run.yaml"), [f"--data.root={tmp_path}", *options])
        check_folders(config)
        return config

    with pytest.raises(ConfigError, match=r"there is no parquet file .*y\.parquet"):
        checked()
    with pytest.raises(ConfigError, match="name the same images"):
        checked("--data.ood={a: x.parquet}")
    hugging_face(tmp_path / "y.parquet")
    assert checked().data.id.images.parquet == Path("x.parquet")
    with pytest.raises(ConfigError, match=r"name it as --data\.ood\.a='\{parquet: .*y\.parquet"):
        checked("--data.ood={a: {folder: y.parquet}}")
    with pytest.raises(ConfigError, match="image and label name columns of parquet"):
        checked("--data.ood={a: {folder: y, image: b}}")


def test_a_column_may_hold_each_value_once_as_a_dictionary(tmp_path):
    images = pa.array([replica.picture(0), replica.picture(1), replica.picture(0)]).dictionary_encode()
    path = written(tmp_path / "x.parquet", image=images, label=pa.array(["b", "a", "b"]).dictionary_encode())
    found = listed(tmp_path, parquet="x.parquet")
    assert [found.reader.open(row) for row in range(3)] == [replica.picture(row % 2) for row in range(3)]
    assert list(found.labels) == [1, 0, 1]
    assert [each.place.read() for each in sources([str(path)])] == [replica.picture(row % 2) for row in range(3)]


@pytest.mark.parametrize("column", ["path", "File_Name", "image"])
def test_the_only_column_that_is_called_paths_holds_the_images(column, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(replica.picture(number))
    path = written(tmp_path / "x.parquet", **{column: ["1.png", "0.png"], "caption": ["a cat", "a dog"]})
    found = list(sources([str(path)]))
    assert [each.path for each in found] == [str(tmp_path / "1.png"), str(tmp_path / "0.png")]
    assert [each.place.read() for each in found] == [replica.picture(1), replica.picture(0)]
    assert listed(tmp_path, parquet="x.parquet").reader.open(0) == replica.picture(1)


def test_two_columns_of_one_name_are_told(tmp_path):
    images = pa.array(pictures(2))
    pq.write_table(pa.Table.from_arrays([images, images], ["image", "image"]), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="it has several columns image: rename all but one"):
        listed(tmp_path, parquet="x.parquet")


@pytest.mark.parametrize(("names", "labels"), [(5, [0, 1]), ([1, 2], [0, 1]), (ANIMALS, ["cat", "dog"])])
def test_names_that_are_not_of_these_labels_are_passed_over(names, labels, tmp_path):
    told = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    metadata = {b"huggingface": json.dumps(told).encode()}
    written(tmp_path / "x.parquet", image=pictures(2), label=labels, metadata=metadata)
    images = listed(tmp_path, parquet="x.parquet")
    assert images.labels == (0, 1) and images.class_names == (None if labels == [0, 1] else ("cat", "dog"))


def test_a_file_without_rows_is_told(tmp_path):
    (found,) = sources([str(written(tmp_path / "x.parquet", image=pa.array([], pa.binary())))])
    assert found.reason == "it has no rows"
