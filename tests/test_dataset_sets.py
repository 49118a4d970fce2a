"""Hugging Face's data sets as sets: the images and labels of the same files in folders, by parquet, imagefolder and save_to_disk."""

from __future__ import annotations

import importlib.util
import io
from multiprocessing import get_context
from types import SimpleNamespace

import judged_run
import numpy as np
import pytest
import replica
from PIL import Image

from clip_ood.config.checks import check_folders
from clip_ood.config.loading import load_config
from clip_ood.config.schema import ImageSet
from clip_ood.data import datasets_library
from clip_ood.data.listing import list_images
from clip_ood.errors import ConfigError
from clip_ood.experiments.forecast.images import find_set, sets_of
from clip_ood.files.remote.address import place_at

datasets = pytest.importorskip("datasets", reason="needs datasets: pip install -e '.[test]'")
pytestmark = pytest.mark.slow

NAMES = ["cat", "big_dog", "unused"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own, and no hub."""
    folder = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def rows(count: int = 8, **columns) -> datasets.Dataset:
    """Eight pictures of two of three classes."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    content = {
        "image": [{"bytes": replica.picture(row), "path": None} for row in range(count)],
        "label": [row % 2 for row in range(count)],
    }
    for name, (feature, values) in columns.items():
        features[name], content[name] = feature, values
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def listed(root, labelled: bool = True, **source):
    return list_images("x", ImageSet(dataset=source), root, labelled, 0)


def check_eight(images, split: str) -> None:
    assert images.names[:2] == (f"{split}/000000", f"{split}/000001") and len(images) == 8
    assert images.class_names == ("big dog", "cat") and images.labels == (1, 0) * 4
    assert [images.reader.open(row) for row in (7, 0, 3, 3)] == [replica.picture(row) for row in (7, 0, 3, 3)]
    assert len(np.unique(images.stamps().values, axis=0)) == 8


def test_parquet_files_and_saved_data_sets_give_their_images_and_classes(tmp_path):
    rows().to_parquet(str(tmp_path / "test.parquet"))
    check_eight(listed(tmp_path, name="parquet", data_files="test.parquet"), "train")
    rows().save_to_disk(str(tmp_path / "one"))
    check_eight(listed(tmp_path, name="one"), "all")
    datasets.DatasetDict({"train": rows(), "test": rows(3)}).save_to_disk(str(tmp_path / "two"))
    assert len(listed(tmp_path, name="two", split="test")) == 3
    assert listed(tmp_path, False, name="one").labels is None


def test_selected_rows_of_a_saved_data_set_are_those_that_were_selected(tmp_path):
    rows().select([5, 2]).save_to_disk(str(tmp_path / "some"))
    images = listed(tmp_path, name="some")
    assert [images.reader.open(row) for row in range(2)] == [replica.picture(5), replica.picture(2)]


def test_stamps_are_the_same_in_another_run_and_others_for_other_rows(tmp_path):
    rows().save_to_disk(str(tmp_path / "one"))
    first, again = (listed(tmp_path, name="one").stamps().values for _ in range(2))
    assert (first == again).all()
    rows(8).map(lambda row: {"label": 1 - row["label"]}).save_to_disk(str(tmp_path / "other"))
    assert not (listed(tmp_path, name="other").stamps().values == first).any()


def test_a_folder_of_images_gives_files_that_are_read_as_files(root, tmp_path):
    images = listed(root / "data", name="imagefolder", data_dir="id", split="train")
    assert len(images) == 46 and images.class_names == ("cat", "dog", "fox")
    paths = [images.reader.path(row) for row in range(46)]
    assert all(path.endswith(".png") for path in paths)
    with open(paths[3], "rb") as file:
        assert images.reader.open(3) == file.read()
    assert images.class_names[images.labels[3]] == paths[3].split("/")[-2]


def test_a_bare_name_and_keys_on_the_command_line(tmp_path):
    assert ImageSet(dataset="org/name").dataset.name == "org/name"


def test_other_processes_read_the_same(tmp_path):
    rows().save_to_disk(str(tmp_path / "one"))
    reader = listed(tmp_path, name="one").reader
    with get_context("spawn").Pool(1) as pool:
        assert pool.map(reader.open, [4, 1]) == [replica.picture(4), replica.picture(1)]


def odd(tmp_path, **columns):
    rows(**columns).save_to_disk(str(tmp_path / "odd"))
    return tmp_path


def test_what_has_no_images_or_several_is_refused(tmp_path):
    twice = odd(tmp_path, other=(datasets.Image(), [{"bytes": b"x", "path": None}] * 8))
    with pytest.raises(ConfigError, match="several columns of images, image, other: name the one that is meant"):
        listed(twice, name="odd")
    assert len(listed(twice, name="odd", image="image")) == 8
    with pytest.raises(ConfigError, match=r"no column 'imgae' \(image\). Did you mean image"):
        listed(twice, name="odd", image="imgae")
    with pytest.raises(ConfigError, match="column label holds int64, and no images"):
        listed(twice, name="odd", image="label")
    rows().remove_columns("image").save_to_disk(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"no column of images: name the one .* It has label \(int64\)"):
        listed(tmp_path, name="none")


def test_a_column_of_paths_is_refused_with_a_way_out(tmp_path):
    paths = odd(tmp_path, file=(datasets.Value("string"), [f"{row}.png" for row in range(8)]))
    with pytest.raises(
        ConfigError, match=r"column file holds texts, and nothing says which folder they start from .*list"
    ):
        listed(paths, name="odd", image="file")


def test_labels_may_be_numbers_and_texts_and_nothing_else(tmp_path):
    more = {
        "kind": (datasets.Value("string"), ["b", "a"] * 4),
        "share": (datasets.Value("float32"), [0.5] * 8),
        "second": (datasets.ClassLabel(names=NAMES), [0] * 8),
    }
    place = odd(tmp_path, **more)
    assert listed(place, name="odd", label="kind").class_names == ("a", "b")
    with pytest.raises(ConfigError, match="column share holds float32; labels are whole numbers or texts"):
        listed(place, name="odd", label="share")
    with pytest.raises(ConfigError, match=r"no column 'knid' \(label\).*kind"):
        listed(place, name="odd", label="knid")
    assert listed(place, name="odd").labels is not None  # the column called label


def test_a_root_at_an_address_is_refused_only_where_a_folder_of_it_is_needed(tmp_path):
    def checked(dataset: str) -> None:
        check_folders(
            load_config("own_images.yaml", ["--data.root=s3://photos", f"--data.id={{images: {{dataset: {dataset}}}}}"])
        )

    checked("uoft-cs/cifar10")
    checked(f"{{name: imagefolder, data_dir: {tmp_path}}}")
    for key in ("data_dir: photos", "data_files: a.parquet"):
        with pytest.raises(ConfigError, match="no folder of this machine at s3://photos"):
            checked(f"{{name: parquet, {key}}}")
    rows().save_to_disk(str(tmp_path / "one"))
    check_eight(listed(place_at("s3://photos"), name=str(tmp_path / "one")), "all")
    with pytest.raises(ConfigError, match="dataset nobody/nothing cannot be had"):
        listed(place_at("s3://photos"), name="nobody/nothing")


def test_a_plan_says_that_a_data_set_of_the_hub_is_downloaded(tmp_path, monkeypatch):
    splits = {"train": SimpleNamespace(num_examples=50), "test": SimpleNamespace(num_examples=10)}
    info = SimpleNamespace(download_size=2e6, splits=splits)
    builder = SimpleNamespace(cache_dir=str(tmp_path / "none"), info=info)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)
    config = load_config("own_images.yaml", ["--data.id={images: {dataset: {name: org/name, split: test}}}"])
    found = find_set(config, "id", *sets_of(config)["id"])
    assert (found.state, found.count, found.problem) == ("is downloaded", 10, "")
    told = f"dataset org/name would be downloaded from the Hugging Face hub into {tmp_path}/none, 2 MB"
    assert found.download.endswith(told)


def test_splits_are_named(tmp_path):
    datasets.DatasetDict({"train": rows(), "test": rows(3)}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(ConfigError, match=r"several splits, but train, test: name one \(split\)"):
        listed(tmp_path, name="two")
    with pytest.raises(ConfigError, match="no split 'val', but train, test"):
        listed(tmp_path, name="two", split="val")
    rows().to_parquet(str(tmp_path / "a.parquet"))
    assert len(listed(tmp_path, name="parquet", data_files="a.parquet", split="train[:50%]")) == 4


def test_what_cannot_be_had_says_why(tmp_path):
    with pytest.raises(ConfigError, match="dataset nobody/nothing cannot be had"):
        listed(tmp_path, name="nobody/nothing")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="dataset parquet cannot be had"):
        listed(tmp_path, name="parquet", data_files="bad.parquet")


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(datasets_library, "find_spec", lambda name: None if name == "datasets" else real(name))
    with pytest.raises(ConfigError, match=r"pip install 'clip-ood\[datasets\]'"):
        listed(tmp_path, name="x")


def pictures_of(folder) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir(), key=lambda path: int(path.stem))]


def test_a_run_on_a_data_set_gives_the_scores_of_files(root, tmp_path):
    """With a row of no image, one that is empty, and one that is no picture, as unreadable images."""
    classes = ["cat", "dog", "fox"]
    cells = [
        (content, number) for number, name in enumerate(classes) for content in pictures_of(root / "data/id" / name)
    ]
    broken = io.BytesIO()
    Image.new("RGB", (9, 9)).save(broken, "PNG")
    near = [*pictures_of(root / "data/near"), b"no picture", broken.getvalue()[:40], None]
    for name, images, labels in (
        ("id", [cell for cell, _ in cells], [label for _, label in cells]),
        ("near", near, [0] * len(near)),
    ):
        told = {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
        content = {"image": [cell and {"bytes": cell, "path": None} for cell in images], "label": labels}
        made = datasets.Dataset.from_dict(content, features=datasets.Features(told))
        made.save_to_disk(str(root / "data" / f"hf_{name}"))
    splits = {"val": 0.0, "test": 0.0}
    keys = {"evaluation": {"figures": False, "report": False, "cross_fit": 2}}
    files = judged_run.make(root, "files", "zero_shot", data={"splits": splits}, **keys)
    data = {
        "splits": splits,
        "id": {"images": {"dataset": {"name": "hf_id"}}},
        "ood": {"near": {"dataset": {"name": "hf_near"}}},
    }
    ours = judged_run.make(root, "sets", "zero_shot", data=data | {"max_unreadable": 0.5}, **keys)
    one, two = (sorted(row["knn"] for row in judged_run.scores(run, "ood").values()) for run in (files, ours))
    assert np.allclose(one, two) and len(one) == 9
    listed = (ours / "unreadable.csv").read_text().splitlines()
    assert len(listed) == 4 and "the row holds no image" in "".join(listed)


def test_one_data_set_under_two_keys_is_refused(root, tmp_path):
    rows().save_to_disk(str(root / "data" / "twice"))
    import tiny_clip

    data = {
        "root": f"{root}/data",
        "id": "id",
        "ood": {"a": {"dataset": "twice"}, "b": {"dataset": {"name": "./twice"}}},
    }
    config = load_config(tiny_clip.config(root, "twice", {"zero_shot": {}}, data=data))
    with pytest.raises(ConfigError, match="name the same images"):
        check_folders(config)
    missing = {"name": "imagefolder", "data_dir": "nowhere"}
    config = load_config(
        tiny_clip.config(root, "gone", {"zero_shot": {}}, data=data | {"ood": {"a": {"dataset": missing}}})
    )
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        check_folders(config)
