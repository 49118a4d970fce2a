"""Where images come from: what each reader says of them, the stamps and identities that stores were written with, own readers."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import replica
import tiny_clip
import yaml
from PIL import Image
from tiny_clip import PROJECT

from clip_ood.config.checks import check_folders
from clip_ood.config.loading import validate
from clip_ood.config.schema import ImageSet
from clip_ood.data.corruptions import Corruption
from clip_ood.data.image_list import ImageList
from clip_ood.data.listing import list_images
from clip_ood.data.readers import Reader, Stamp, on_disk
from clip_ood.data.readers.arrays import Arrays
from clip_ood.data.readers.files import Files
from clip_ood.data.readers.on_disk import Place
from clip_ood.errors import ConfigError, UserError
from clip_ood.features.identity import pairs

PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)

# What stores were written with: figures of the code before there were readers


def test_a_file_is_known_as_it_always_was():
    state = SimpleNamespace(st_size=1234, st_mtime_ns=1700000000123456789, st_ctime_ns=1700000001123456789, st_ino=42)
    assert Place("/images/cat/a.png").known_by(state).hex() == "57ec3b3db8e06dc42118e1cc56719ed4"
    assert Place("/images/a.tar", 512, 700).known_by(state).hex() == "408a951fae282e26605f27bbe5819c27"


def test_images_are_told_apart_as_they_always_were(tmp_path):
    noise = Corruption("gaussian_noise", 3)
    arrays = ImageList.of("a", Path(), Arrays(PIXELS, ("x/0", "x/1")))
    assert arrays.identities().tolist() == [
        [7140458044780824027, 17538853994216396237],
        [15419080955713763112, 9227267031469561358],
    ]
    assert replace(arrays, corruption=noise).identities().tolist() == [
        [14578939249759963290, 17002761456748949],
        [1874663451814045490, 17661072485809673115],
    ]
    (tmp_path / "a.png").write_bytes(b"content of a file")
    loaded = replace(ImageList.of("f", tmp_path, Files(tmp_path, ("a.png",))), corruption=noise).load(0)
    assert loaded.content.hex() == "8e7bbb28f8e8d3f368da48d1e698573c"
    assert loaded.identity.hex() == "16b5e9777b7cf9a408cfea46da75dc0a"


# All readers


def files(folder: Path) -> ImageList:
    (folder / "id").mkdir()
    for index in range(3):
        Image.fromarray(PIXELS[0] + index).save(folder / "id" / f"{index}.png")
    return list_images("photos", ImageSet(folder="id"), folder, False, 0)


def shards(folder: Path) -> ImageList:
    place = replica.shards(folder, [0, 1, 2] * 3)
    return list_images("photos", ImageSet(shards=str(place / "photos-{000..002}.tar")), folder, False, 0)


@pytest.mark.parametrize("make", [files, shards])
def test_a_stamp_is_the_same_alone_with_others_and_while_reading(make, tmp_path):
    images = make(tmp_path)
    values, vague = images.stamps()
    reader = images.reader
    each = [reader.stamp(row) for row in images.rows]
    assert pairs(stamp.value for stamp in each).tolist() == values.tolist() and len(set(each)) == len(images)
    assert [stamp.vague for stamp in each] == vague.tolist()
    assert [reader.load(row)[1] for row in images.rows] == each
    assert images.stamps(np.array([2, 0])).values.tolist() == values[[2, 0]].tolist()
    some = images.subset([2, 1])
    assert some.stamps().values.tolist() == values[[2, 1]].tolist() and some.names == (images.names[2], images.names[1])
    assert images.identities() is None


def test_a_shard_is_looked_at_once_for_all_its_images(tmp_path, monkeypatch):
    images = shards(tmp_path)
    looked, real = [], on_disk.os.stat
    monkeypatch.setattr(on_disk.os, "stat", lambda path, **more: looked.append(str(path)) or real(path, **more))
    images.stamps()
    assert len([path for path in looked if path.endswith(".tar")]) == len(
        {Path(name).parts[0] for name in images.names}
    )


def test_a_subset_shares_the_pixels_of_all():
    images = ImageList.of("a", Path(), Arrays(PIXELS, ("0", "1"), np.array([0, 1]), ("cat", "dog")))
    some = images.subset([1])
    assert np.shares_memory(some.reader.pixels, PIXELS) and some.labels == (1,) and some.class_names == ("cat", "dog")
    assert some.read(0).tobytes() == PIXELS[1].tobytes()
    assert some.identities().tolist() == images.identities()[1:].tolist()


def test_a_list_equals_itself_alone():
    """What is known of a list is kept by the list, whose labels and rows need not be hashable."""
    one, other = (ImageList("a", Path(), Arrays(PIXELS, ("0", "1")), [0, 1]) for _ in range(2))
    assert {one: 1, other: 2} == {one: 1, other: 2} and one != other and len({one, other}) == 2


def test_images_in_memory_are_known_by_their_pixels_and_files_by_their_stamps(tmp_path):
    """As the attack tells whether its parts are of the same images."""
    arrays = ImageList.of("a", Path(), Arrays(PIXELS, ("0", "1")))
    assert arrays.known_by().tolist() == arrays.identities().tolist()
    images = files(tmp_path)
    assert images.known_by().tolist() == images.stamps().values.tolist()


# Own readers


class Mine(Reader):
    """Two images in memory; `changes` replaces what it says."""

    def __init__(self, path=None, **changes):
        self.names, self.labels, self.class_names = ["a", "b"], [0, 1], ["cat", "dog"]
        self.given, self.answer, self.known = path, PIXELS[0], None
        if changes.pop("fails", False):
            raise OSError("no such host")
        for key, value in changes.items():
            setattr(self, key, value)

    def open(self, index):
        if isinstance(self.answer, str) and self.answer == "lost":
            raise OSError("no such host")
        return self.answer

    def stamp(self, index):
        return self.known


class Half(Reader):
    names = ("a",)


class Strict(Mine):
    def __init__(self, path, size):
        super().__init__(path)


def mine(reader="test_readers.Mine", path=None, **options) -> ImageList:
    return list_images("photos", ImageSet(reader=reader, path=path, options=options), Path("root"), True, 0)


def test_an_own_reader_gives_names_labels_and_images():
    images = mine(path="x")
    assert images.names == ("a", "b") and images.labels == (0, 1) and images.class_names == ("cat", "dog")
    assert images.reader.given == Path("root/x") and images.read(1).tobytes() == PIXELS[0].tobytes()
    assert mine(class_names=None, labels=np.array([0, 3])).labels == (0, 3)
    assert mine(labels=None, class_names=None).labels is None


@pytest.mark.parametrize(
    "reader, options, message",
    [
        ("my_nowhere.Mine", {}, "my_nowhere.Mine: there is no module 'my_nowhere' on the Python path"),
        ("test_readers.Mime", {}, r"test_readers has no class 'Mime'\. Did you mean Mine"),
        ("test_readers.mine", {}, "is no reader: expected a subclass of clip_ood.data.readers.Reader"),
        ("test_readers.Half", {}, r"Half has no open\(self, index\), which gives the bytes of an image file"),
        (
            "test_readers.Strict",
            {"size": 3},
            r"is made with \(path, size\), and the config gives size: missing .* 'path'",
        ),
        ("test_readers.Mine", {"fails": True}, "Mine cannot be made: OSError: no such host"),
        ("test_readers.Mine", {"names": None}, "has no names: expected a text for each image"),
        ("test_readers.Mine", {"names": ["a", 3]}, "names holds 3; expected a text"),
        ("test_readers.Mine", {"names": ["a", "a"]}, "names holds 'a' twice; expected distinct ones"),
        ("test_readers.Mine", {"names": [], "labels": [], "class_names": []}, "holds no images"),
        ("test_readers.Mine", {"names": [], "labels": [], "class_names": None}, "holds no images"),
        ("test_readers.Mine", {"labels": np.array([[0], [1]])}, r"labels holds array\(\[0\]\); expected class indices"),
        ("test_readers.Mine", {"labels": [0]}, "has 1 labels for 2 names; expected one an image"),
        ("test_readers.Mine", {"labels": [0, 2]}, r"labels holds 2; expected class indices 0 … 1, of 2 class names"),
        ("test_readers.Mine", {"labels": [0, -2]}, r"labels holds -2; expected class indices 0 … 1"),
        ("test_readers.Mine", {"labels": [0, 0.5]}, r"labels holds 0\.5; expected class indices"),
        ("test_readers.Mine", {"labels": [0, 0]}, "no image has label 1, the class 'dog'"),
        ("test_readers.Mine", {"labels": None}, "has class_names and no labels"),
        ("test_readers.Mine", {"class_names": ["cat", 2]}, "class_names must be texts"),
        ("test_readers.Mine", {"known": b"x"}, r"stamp\(0\) gave b'x'; expected None, or a Stamp of 16 bytes"),
        ("test_readers.Mine", {"known": Stamp(b"x")}, "expected None, or a Stamp of 16 bytes"),
        (
            "test_readers.Mine",
            {"answer": None},
            r"Mine.open\(0\) gave a NoneType; expected the bytes of an image file, or",
        ),
        ("test_readers.Mine", {"answer": "a.png"}, r"Mine.open\(0\) gave a str; expected the bytes"),
        ("test_readers.Mine", {"answer": PIXELS[0] / 255}, r"gave an array \(4, 4, 3\) of float64; expected"),
        ("test_readers.Mine", {"answer": PIXELS[0].T}, r"gave an array \(3, 4, 4\) of uint8; expected"),
    ],
)
def test_each_way_an_own_reader_can_be_wrong_is_one_line(reader, options, message):
    spec = ImageSet(reader=reader).model_copy(update={"options": options})
    with pytest.raises(UserError, match=message) as told:
        list_images("photos", spec, Path("root"), True, 0)
    assert str(told.value).startswith("Image set photos: ") and "\n" not in str(told.value)


def test_an_image_that_an_own_reader_cannot_have_is_told_with_its_set():
    images = mine(answer="lost")
    with pytest.raises(ConfigError, match=r"Image set photos: an image cannot be had \(no such host\)"):
        images.identities()


def test_a_fault_inside_an_own_reader_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "my_broken.py").write_text("import my_missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="my_missing_dependency"):
        mine("my_broken.Mine")


def test_keys_of_own_readers_are_checked_with_the_config(tmp_path):
    config = {"name": "x", "method": {"zero_shot": {}}, "backbone": {"model": "ViT-B-32"}}
    for keys, message in (
        ({"reader": "Mine"}, "takes one of npz, or the path of a class, as my_module.MyReader, and not 'Mine'"),
        ({"reader": "npzz"}, r"not 'npzz'\. Did you mean npz"),
        ({"folder": "x", "path": "y"}, "path and options go with reader, not with folder"),
        ({"reader": "my.Mine", "folder": "x"}, "needs exactly one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(config | {"data": {"id": {"images": keys}}})
    same = {"reader": "my.Mine", "path": "x.npz"}
    data = {"root": str(tmp_path), "id": {"images": same | {"options": {"split": "a"}}}}
    with pytest.raises(ConfigError, match=f"there is no file or folder {tmp_path}/x.npz"):
        check_folders(validate(config | {"data": data}))
    (tmp_path / "x.npz").touch()
    (tmp_path / "y.npz").symlink_to(tmp_path / "x.npz")
    check_folders(validate(config | {"data": data | {"ood": {"o": same | {"options": {"split": "b"}}}}}))
    again = same | {"options": {"split": "a"}, "path": "y.npz"}
    with pytest.raises(ConfigError, match=r"data.id and data.ood.o name the same images \(my.Mine, y.npz\)"):
        check_folders(validate(config | {"data": data | {"ood": {"o": again}}}))


def test_a_shipped_reader_is_named_by_a_word(tmp_path):
    labels = np.array([1, 0])
    np.savez(tmp_path / "photos.npz", images=PIXELS, labels=labels)
    np.savez(tmp_path / "flat.npz", images=PIXELS)
    np.savez(tmp_path / "other.npz", pixels=PIXELS)

    def taken(path, **options):
        return list_images("photos", ImageSet(reader="npz", path=path, options=options), tmp_path, True, 0)

    images = taken("photos.npz", classes=["cat", "dog"])
    assert images.names == ("photos/000000", "photos/000001") and images.labels == (1, 0)
    assert images.class_names == ("cat", "dog") and images.read(1).tobytes() == PIXELS[1].tobytes()
    assert taken("flat.npz").labels is None
    (tmp_path / "cut.npz").write_bytes((tmp_path / "flat.npz").read_bytes()[:90])
    np.save(tmp_path / "alone.npy", PIXELS)
    for name, told in (
        ("other.npz", r"holds pixels \(2, 4, 4, 3\); expected images"),
        ("cut.npz", r"is no whole file of numpy\.savez"),
        ("alone.npy", r"holds an array \(2, 4, 4, 3\); expected images"),
    ):
        with pytest.raises(ConfigError, match=f"npz cannot be made: ValueError: .*{name} {told}"):
            taken(name)


def test_a_word_and_the_class_path_that_it_stands_for_are_one_place(tmp_path):
    (tmp_path / "x.npz").touch()
    images, odd = ({"reader": name, "path": "x.npz"} for name in ("npz", "clip_ood.data.readers.npz.Npz"))
    data = {"root": str(tmp_path), "id": {"images": images}, "ood": {"o": odd}}
    config = {"name": "x", "method": {"zero_shot": {}}, "backbone": {"model": "ViT-B-32"}, "data": data}
    with pytest.raises(ConfigError, match=r"data.id and data.ood.o name the same images"):
        check_folders(validate(config))


class Changing(Mine):
    count = 0

    def stamp(self, index):
        Changing.count += 1
        return Stamp(Changing.count.to_bytes(16, "little"))


def test_an_image_that_changes_while_an_own_reader_opens_it_is_not_taken():
    with pytest.raises(OSError, match="the image changes while it is read"):
        Changing().load(0)
    assert Mine(known=Stamp(bytes(16))).load(0)[1] == Stamp(bytes(16))


# The page of docs


def example() -> tuple[str, dict]:
    page = (PROJECT / "docs" / "extending.md").read_text().split("## A data source")[1].split("\n## ")[0]
    blocks = {kind: text for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)}
    return blocks["python"], yaml.safe_load(blocks["yaml"])["data"]


@pytest.mark.slow
def test_the_reader_of_the_docs_trains_scores_and_is_encoded_once(tmp_path, monkeypatch, capsys):
    import eval as scoring

    script, data = example()
    (tmp_path / "my_readers.py").write_text(script)
    monkeypatch.syspath_prepend(tmp_path)
    root = tiny_clip.make(tmp_path / "own")
    draws = np.random.default_rng(0)
    labels = np.arange(30) % 3
    np.save(root / "data" / "photos.npy", draws.integers(0, 256, (30, 8, 8, 3), np.uint8))
    np.save(root / "data" / "labels.npy", labels)
    np.save(root / "data" / "odd.npy", draws.integers(0, 99, (7, 8, 8, 3), np.uint8))
    data |= {"root": str(root / "data"), "batch_size": 8}
    for name in ("first", "second"):
        scoring.main(["--config", tiny_clip.config(root, name, {"zero_shot": {}}, data=data)])
    results = [tiny_clip.results(root / "runs" / name) for name in ("first", "second")]
    assert results[0]["rows"] == results[1]["rows"] and {row["ood"] for row in results[0]["rows"]} >= {"odd"}
    stored = sorted((root / "features").glob("*/images/*.safetensors"))
    assert len({path.stat().st_mtime_ns for path in stored}) == len(stored)
    sys.modules.pop("my_readers", None)
