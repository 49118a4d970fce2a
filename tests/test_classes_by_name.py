"""Which class is called what: names are matched by name, numbers by number, and nothing by a place that means another class."""

from __future__ import annotations

import tarfile
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from PIL import Image

import eval as evaluation
import train
from clip_ood.config.loading import validate
from clip_ood.errors import ConfigError
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.models import check_texts

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def fill(root, *folders, count=4):
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / folder / f"{index}.png").touch()
    return root


def benchmark(root, text=True, **data):
    """The images of a config, on an encoder with or without texts."""
    backbone = {"library": "open_clip", "model": "RN50"} if text else {"library": "timm", "model": "test_vit"}
    content = {"root": str(root), "ood": {}, **data}
    return load_benchmark(validate({"name": "x", "data": content, "backbone": backbone, "method": {"zero_shot": {}}}))


def called(found, key="id"):
    """What each top folder of a set (or each image of a list) is called."""
    images = found.images[key]
    return {
        name.split("/")[0]: found.class_names[label] for name, label in zip(images.names, images.labels, strict=True)
    }


# Folders that are numbers

COLOURS = ["red", "lime", "blue", "cyan", "pink", "gold", "grey", "navy", "plum", "teal", "brown", "olive"]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("digits", [1, 3])
@pytest.mark.parametrize("source", ["list", "file"])
def test_numbers_take_the_names_in_number_order(first, digits, source, tmp_path):
    folders = [f"{number + first:0{digits}d}" for number in range(12)]
    fill(tmp_path, *(f"id/{folder}" for folder in folders))
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    names = COLOURS if source == "list" else "names.txt"
    found = benchmark(tmp_path, id={"images": "id", "class_names": names})
    assert called(found) == dict(zip(folders, COLOURS, strict=True))


def test_a_list_beside_folders_of_numbers_gives_their_numbers(tmp_path):
    fill(tmp_path, *(f"train/{number}" for number in range(1, 12)), "test")
    lines = [("0.png", 11), ("1.png", 1), ("2.png", 2), ("3.png", -1)]
    (tmp_path / "test.txt").write_text("".join(f"{name} {label}\n" for name, label in lines))
    test = {"list": "test.txt", "images_root": "test"}
    images = benchmark(tmp_path, id={"train": "train", "test": test}).images["id.test"]
    assert [None if label < 0 else images.class_names[label] for label in images.labels] == ["11", "1", "2", None]
    (tmp_path / "test.txt").write_text("0.png 0\n")
    with pytest.raises(ConfigError, match=r"id\.test: label 0 is not among the 11 classes \(1 … 11\)"):
        benchmark(tmp_path, id={"train": "train", "test": test})


def test_names_that_are_numbers_are_no_labels_of_a_list(tmp_path):
    fill(tmp_path, "images")
    (tmp_path / "id.txt").write_text("0.png 0\n1.png 1\n2.png 1\n3.png 0\n")
    id_set = {"images": {"list": "id.txt", "images_root": "images"}, "class_names": ["7", "3"]}
    assert called(benchmark(tmp_path, id=id_set)) == {"0.png": "7", "1.png": "3", "2.png": "3", "3.png": "7"}


def test_a_label_file_with_numbers_counts_by_them(tmp_path):
    fill(tmp_path, "id", count=36)
    (tmp_path / "labels.txt").write_text("".join(f"{number}.png\t{number % 12}\n" for number in range(36)))
    id_set = {"images": {"folder": "id", "labels": "labels.txt"}, "class_names": COLOURS}
    assert called(benchmark(tmp_path, id=id_set)) == {f"{number}.png": COLOURS[number % 12] for number in range(36)}


def test_numbers_without_names_are_told(tmp_path, capsys):
    found = benchmark(fill(tmp_path, "id/0", "id/10", "id/9"), id="id")
    assert found.class_names == ("0", "9", "10")
    assert "Classes are called by numbers (0, 9, 10, …), in prompts too" in capsys.readouterr().out


def test_a_numbered_folder_must_be_plain_digits(tmp_path):
    fill(tmp_path, "id/0", "id/²")
    with pytest.raises(ConfigError, match="must be label numbers; got '²'"):
        benchmark(tmp_path, id={"images": {"folder": "id", "numbered": True}})


# Folders' own names, in whatever order and spelling


@pytest.mark.parametrize(
    "names",
    [
        ["disc", "bar", "star fish", "dots"],
        ["Disc", "BAR", "star_fish", "dots"],
        ["dots", "star  fish", " bar", "disc"],
    ],
)
@pytest.mark.parametrize("source", ["list", "file", "words"])
def test_the_folders_own_names_are_matched(names, source, tmp_path):
    fill(tmp_path, "id/bar", "id/disc", "id/dots", "id/star_fish")
    ending = "\tcalled {}, other" if source == "words" else ""
    (tmp_path / "names.txt").write_text("".join(f"{name}{ending.format(name.strip())}\n" for name in names))
    given = names if source == "list" else "names.txt"
    found = called(benchmark(tmp_path, id={"images": "id", "class_names": given}))
    plain = {folder: name.lower().removeprefix("called ").replace("_", " ").split() for folder, name in found.items()}
    assert plain == {folder: folder.replace("_", " ").split() for folder in ("bar", "disc", "dots", "star_fish")}


def test_unicode_forms_of_one_name_match(tmp_path):
    fill(tmp_path, f"train/{DECOMPOSED}", "train/bar", f"test/{COMPOSED}", "test/Bar")
    found = benchmark(tmp_path, id={"train": "train", "test": "test", "class_names": [COMPOSED, "bar"]})
    assert called(found, "id.train") == {"bar": "bar", DECOMPOSED: COMPOSED}
    assert called(found, "id.test") == {"Bar": "bar", COMPOSED: COMPOSED}


def test_names_of_folders_that_stand_for_others_are_refused(tmp_path):
    fill(tmp_path, "id/bar", "id/disc", "id/dots", "id/star")
    with pytest.raises(ConfigError, match=r"'disc' is the name of a class folder .*where 'disc' is called 'bars'"):
        benchmark(tmp_path, id={"images": "id", "class_names": ["disc", "bars", "dots", "star"]})
    found = benchmark(tmp_path, id={"images": "id", "class_names": ["a bar", "disc", "dots", "a star"]})
    assert called(found) == {"bar": "a bar", "disc": "disc", "dots": "dots", "star": "a star"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("bar\ta bar\ndisc\n", "lines 'folder<tab>name' and one without a tab: 'disc'"),
        ("bar\ta bar\ndisc\ta disc\nbar\ta rod\n", "names the class folder 'bar' twice, and differently"),
        ("bar\ta bar\ndics\ta disc\n", "has no line for the class folder 'disc'"),
    ],
)
def test_lines_of_folders_and_names_are_whole(text, message, tmp_path):
    (fill(tmp_path, "id/bar", "id/disc") / "words.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        benchmark(tmp_path, id={"images": "id", "class_names": "words.txt"})


def test_names_given_by_place_are_told(tmp_path, capsys):
    fill(tmp_path, "id/n01", "id/n02")
    benchmark(tmp_path, id={"images": "id", "class_names": ["tench", "goldfish"]})
    assert "Classes are called in the order of their folders: n01 → tench, n02 → goldfish" in capsys.readouterr().out


def test_classes_of_shifted_images_match_in_other_spellings(tmp_path):
    fill(tmp_path, "id/red_fox", "id/ant", "shifted/Red Fox")
    found = benchmark(tmp_path, id="id", csid={"shifted": "shifted"})
    assert called(found, "csid/shifted") == {"Red Fox": "red fox"}


# Names that are one text, empty, or say nothing


@pytest.mark.parametrize(
    "folders", [("Cat", "cat"), (COMPOSED, DECOMPOSED), ("a_b", "A b"), ("sea  star", "sea star"), ("a\u200bb", "ab")]
)
def test_two_classes_that_are_one_text_are_refused_where_texts_are_read(folders, tmp_path):
    fill(tmp_path, *(f"id/{folder}" for folder in folders))
    with pytest.raises(
        ConfigError, match=r"are one text to a text encoder: call them otherwise \(data.id.class_names\)"
    ):
        benchmark(tmp_path, id="id")
    named = benchmark(tmp_path, id={"images": "id", "class_names": ["one", "two"]})
    assert sorted(named.class_names) == ["one", "two"]
    assert len(benchmark(tmp_path, text=False, id="id").class_names) == 2


@pytest.mark.parametrize("name", ["", " ", "\u200b", "two\nlines"])
def test_an_empty_name_is_refused(name, tmp_path):
    fill(tmp_path, "id/a", "id/b")
    with pytest.raises(
        ConfigError,
        match=r"name of the class 'b' (is empty|holds the end of a line).*call it otherwise|class_names: is empty",
    ):
        benchmark(tmp_path, id={"images": "id", "class_names": ["ant", name]})


def test_folders_without_a_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="name of the class ' ' is empty"):
        benchmark(fill(tmp_path, "id/_", "id/b"), id="id")


def test_prompts_that_are_one_text_to_the_tokenizer_are_refused():
    texts = torch.eye(4)
    check_texts(texts, "abcd")
    texts[3] = texts[1] * 2 + 1e-5
    with pytest.raises(ConfigError, match="classes 'b' and 'd' are one text to this encoder"):
        check_texts(texts, "abcd")


def test_names_that_differ_behind_the_context_alone_are_refused_in_a_run(tmp_path):
    root = tiny_clip.make(tmp_path)
    names = [f"{'very ' * 90}{name}" for name in ("old cat", "old dog", "old fox")]
    path = tiny_clip.config(root, "long", {"zero_shot": {}}, data={"root": f"{root}/data", "id": {"images": "id"}})
    with pytest.raises(ConfigError, match=r"'very .*old cat' and 'very .*old dog' are one text to this encoder"):
        evaluation.main(["--config", path, f"--data.id.class_names=[{', '.join(names)}]"])


WNIDS = ("n01440764", "n01443537", "n02123045")


def test_wordnets_numbers_are_no_names(tmp_path):
    fill(tmp_path, *(f"id/{wnid}" for wnid in WNIDS))
    with pytest.raises(
        ConfigError, match=r"n01440764, ….*set data.id.class_names to imagenet, or to a file .*data.lemmas to first"
    ):
        benchmark(tmp_path, id="id")
    found = benchmark(tmp_path, id={"images": "id", "class_names": "imagenet"})
    assert called(found) == dict(zip(WNIDS, ("tench", "goldfish", "tabby cat"), strict=True))
    assert benchmark(tmp_path, text=False, id="id").class_names == WNIDS  # no text is read
    fill(tmp_path, "id/n00000001")
    with pytest.raises(ConfigError, match=r"n00000001, ….*text encoder: set data.id.class_names to a file"):
        benchmark(tmp_path, id="id")


def test_a_list_counts_through_all_of_imagenet_beside_some_folders(tmp_path):
    fill(tmp_path, *(f"train/{wnid}" for wnid in WNIDS), "test")
    (tmp_path / "test.txt").write_text("0.png 281\n1.png 0\n")
    test = {"list": "test.txt", "images_root": "test"}
    found = benchmark(tmp_path, id={"train": "train", "test": test, "class_names": "imagenet"})
    assert called(found, "id.test") == {"0.png": "tabby cat", "1.png": "tench"}


# Splits


@pytest.mark.parametrize(
    "folders, way_out",
    [
        (["train/a", "train/b", "val/a", "val/b", "test/a", "test/b"], "--data.id='{train: id/train, test: id/test}'"),
        (["Training/a", "Validation/a"], "--data.id='{train: id/Training, test: id/Validation}'"),
        (["train", "test"], "--data.id='{train: id/train, test: id/test}'"),
        (["train/a", "test/a", "extra/a"], "--data.id='{train: id/train, test: id/test}'"),
        (["train/a"], "name one of them, as id/train"),
        (["test/a", "val/a"], "name one of them, as id/test"),
    ],
)
def test_splits_are_no_classes(folders, way_out, tmp_path):
    fill(tmp_path, *(f"id/{folder}" for folder in folders))
    with pytest.raises(ConfigError) as error:
        benchmark(tmp_path, id="id")
    assert "are splits (" in str(error.value) and str(error.value).endswith(way_out)


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    fill(tmp_path, "id/train", "id/car", "id/bus", "one/test", "deep/train/a", "deep/car/b")
    assert benchmark(tmp_path, id="id").class_names == ("bus", "car", "train")
    assert benchmark(tmp_path, id="one").class_names == ("test",)
    assert benchmark(tmp_path, id="deep").class_names == ("car", "train")


def test_the_splits_of_an_ood_set_are_taken_together(tmp_path):
    fill(tmp_path, "id/a", "ood/train/x", "ood/test/x")
    assert len(benchmark(tmp_path, id="id", ood={"far": "ood"}).images["ood/far"]) == 8


# Labels from 1, with gaps, without names


def as_list(root, labels):
    fill(root, "images", count=len(labels))
    (root / "id.txt").write_text("".join(f"{index}.png {label}\n" for index, label in enumerate(labels)))
    return {"list": "id.txt", "images_root": "images"}


def as_shard(root, labels):
    with tarfile.open(root / "id.tar", "w") as tar:
        for index, label in enumerate(labels):
            for name, content in ((f"{index}.png", b"x"), (f"{index}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    return {"shards": "id.tar"}


def as_numbered(root, labels):
    fill(root, *(f"id/{label}" for label in labels), count=2)
    return {"folder": "id", "numbered": True}


@pytest.mark.parametrize("names", [None, ["a", "b", "c", "d"]])
@pytest.mark.parametrize("source", [as_list, as_shard, as_numbered])
def test_labels_that_count_from_1_are_named(source, names, tmp_path):
    images = source(tmp_path, [1, 2, 3, 4, 4, 1])
    with pytest.raises(ConfigError, match="labels count from 1 to 4, and labels count from 0: subtract 1 from each"):
        benchmark(tmp_path, id={"images": images, "class_names": names})


@pytest.mark.parametrize("source", [as_list, as_shard, as_numbered])
def test_a_class_without_images_is_named_and_may_be_left_out(source, tmp_path):
    id_set = {"images": source(tmp_path, [0, 0, 2, 3, 3, 2]), "class_names": ["a", "b", "c", "d"]}
    with pytest.raises(ConfigError, match=r"no image has label 1, and labels count 0 … 3: .*--data.allow_partial=true"):
        benchmark(tmp_path, id=id_set)
    assert benchmark(tmp_path, id=id_set, allow_partial=True).class_names == ("a", "c", "d")


def test_too_few_names_say_how_labels_count(tmp_path):
    with pytest.raises(ConfigError, match=r"has 4 names for 5 classes of .*, whose labels count 0 … 4"):
        benchmark(tmp_path, id={"images": as_list(tmp_path, [0, 1, 2, 3, 4]), "class_names": ["a", "b", "c", "d"]})


def test_test_labels_from_1_are_named(tmp_path):
    fill(tmp_path, "train/a", "train/b", "train/c")
    with pytest.raises(
        ConfigError, match=r"label 3 is not among the 3 classes \(0 … 2\); they count from 0: subtract 1"
    ):
        benchmark(tmp_path, id={"train": "train", "test": as_list(tmp_path, [1, 2, 3, 1])})


def test_names_and_numbers_are_not_matched_by_place(tmp_path):
    fill(tmp_path, "test/cat", "test/dog", "numbers/0", "numbers/1")
    numbers = as_list(tmp_path, [1, 0, 1, 0])
    with pytest.raises(
        ConfigError, match=r"id\.test: its classes have names \(cat, …\), and those of id\.train are numbers"
    ):
        benchmark(tmp_path, id={"train": numbers, "test": "test"})
    named = benchmark(tmp_path, id={"train": numbers, "test": "test", "class_names": ["dog", "cat"]})
    assert called(named, "id.test") == {"cat": "cat", "dog": "dog"}
    assert set(benchmark(tmp_path, id={"train": numbers, "test": "numbers"}).images["id.test"].labels) == {0, 1}
    (tmp_path / "more.txt").write_text("cat/0.png 2\n")
    with pytest.raises(ConfigError, match=r"id\.test: label 2 is not among the 2 classes \(0 … 1\)"):
        benchmark(tmp_path, id={"train": numbers, "test": {"list": "more.txt", "images_root": "test"}})


# Names of files in lists


def test_a_list_in_another_unicode_form_finds_its_files(tmp_path):
    for name in (COMPOSED, "n\u0303"):
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "id.txt").write_text(f"{DECOMPOSED}.png 0\n\u00f1.png 0\n", encoding="utf-8")
    images = benchmark(tmp_path, id={"images": {"list": "id.txt"}}).images["id"]
    assert set(images.names) == {f"{COMPOSED}.png", "n\u0303.png"}


def test_a_list_written_on_windows_is_told_what_divides_folders(tmp_path):
    fill(tmp_path, "cat")
    (tmp_path / "id.txt").write_text("cat\\0.png 0\n")
    with pytest.raises(ConfigError, match=r"lists cat\\0\.png, which is not under .*write / between folders"):
        benchmark(tmp_path, id={"images": {"list": "id.txt"}})


# A whole run


def test_a_run_calls_classes_by_their_own_names_in_another_order(tmp_path):
    root = tiny_clip.make(tmp_path)
    generator = np.random.default_rng(1)
    for number in range(11):
        folder = root / "data" / "numbers" / str(number)
        folder.mkdir(parents=True)
        for index in range(10):
            pixels = np.full((8, 8, 3), 20 * number) + generator.integers(0, 4, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    data = {"root": f"{root}/data", "id": {"images": "numbers", "class_names": COLOURS[:11]}, "ood": {"near": "near"}}
    train.main(["--config", tiny_clip.config(root, "run", {"linear_probe": {"epochs": 2}}, data=data)])
    rows = pq.read_table(root / "runs" / "run" / "scores.parquet").to_pylist()
    tested = [row for row in rows if row["set"] == "id_test"]
    assert len(tested) == 33
    assert all(row["label"] == COLOURS[int(row["path"].split("/")[0])] for row in tested)
