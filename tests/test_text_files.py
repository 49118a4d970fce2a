"""Text files that people hand over: any line ends, UTF-16, and Latin-1 that is named with file, line and encoding."""

from __future__ import annotations

import io

import pytest
import replica

from clip_ood.config.loading import load_config
from clip_ood.config.schema import ImageSet
from clip_ood.data.inputs import sources
from clip_ood.data.label_files import read_labels
from clip_ood.data.listing import list_images
from clip_ood.errors import ConfigError
from clip_ood.files.text_files import NotText, names_in, read_lines
from clip_ood.texts.wordnet import read_words

ENCODED = {
    "utf-8": str.encode,
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16 with a mark": lambda text: text.encode("utf-16"),
    "big-endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-16 without a mark": lambda text: text.encode("utf-16-le"),
    "utf-32": lambda text: text.encode("utf-32"),
    "Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "old Mac": lambda text: text.replace("\n", "\r").encode(),
    "no last line end": lambda text: text.removesuffix("\n").encode(),
}
LATIN = r", line 2: 'caf\\xe9.*' is not UTF-8 \(byte 0xe9\); the file seems to be in Latin-1"


@pytest.fixture(params=ENCODED)
def encoded(request):
    return ENCODED[request.param]


def test_lines_are_the_same_in_every_encoding(encoded, tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(encoded("sea urchin\n\ncafé \x85 日本\n"))
    assert read_lines(path) == ["sea urchin", "", "café \x85 日本"]
    assert list(names_in(io.BufferedReader(io.BytesIO(path.read_bytes())))) == read_lines(path)


@pytest.mark.parametrize(
    "content, told",
    [
        (b"abc\r\ncaf\xe9 au lait\r\nabc", LATIN),
        (b"\xef\xbb\xbfabc\rcaf\xe9 au lait\rabc", LATIN),
        (b"abc\nd\0ef\n", r", line 2: a NUL character"),
        (replica.picture(0), r", line \d+: a NUL character"),
        ("abc\nd".encode("utf-16") + b"x", r", line 2: the file's first bytes are UTF-16, and these are not"),
    ],
)
def test_what_is_no_text_is_named(content, told, tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(NotText, match=rf"{path}{told}"):
        read_lines(path)


def test_image_lists_labels_words_and_configs_are_read(encoded, tmp_path):
    for name in ("1.png", "é.png"):
        replica.put(tmp_path / "in" / name)
    (tmp_path / "list.txt").write_bytes(encoded("in/1.png 1\nin/é.png 0\n"))
    images = list_images("x", ImageSet(list="list.txt"), tmp_path, True, 0)
    assert images.names == ("in/1.png", "in/é.png") and images.labels == (1, 0)
    (tmp_path / "tabs.txt").write_bytes(encoded("1.png\tone\né.png\ttwo\n"))
    assert [each.name for each in read_labels("x", tmp_path / "tabs.txt")[1].values()] == ["one", "two"]
    (tmp_path / "kaggle.csv").write_bytes(encoded("ImageId,PredictionString\n1,one 1 2\né,two 3 4\n"))
    assert {stem: each.name for stem, each in read_labels("x", tmp_path / "kaggle.csv")[1].items()} == {
        "1": "one",
        "é": "two",
    }
    (tmp_path / "words.txt").write_bytes(encoded("shovel\nBär\n"))
    assert read_words(tmp_path / "words.txt").nouns == ("shovel", "Bär")
    (tmp_path / "run.yaml").write_bytes(
        encoded("data: {id: in}\nbackbone: {model: ViT-B-32}\nmethod: {zero_shot: {}}\nname: Bär\n")
    )
    assert load_config(str(tmp_path / "run.yaml")).name == "Bär"


def test_a_list_of_new_images_is_read(encoded, tmp_path, monkeypatch):
    content = encoded(f"{tmp_path}/1.png\n\n{tmp_path}/é.png\n")
    for name in ("1.png", "é.png"):
        replica.put(tmp_path / name)
    (tmp_path / "list.txt").write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    found = list(sources([str(tmp_path / "list.txt"), "-"]))
    assert [each.inside for each in found] == ["1.png", "é.png"] * 2
    assert all(each.read()[0].size == (40, 36) for each in found)


def test_names_are_bytes_in_lists(tmp_path):
    name = "caf\udce9.png"  # written on a system of Latin-1
    replica.put(tmp_path / name)
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.png 0\n")
    images = list_images("x", ImageSet(list="list.txt"), tmp_path, True, 0)
    assert images.names == (name,) and images.read(0).size == (40, 36)
    (tmp_path / name).rename(tmp_path / "café.png")
    with pytest.raises(
        ConfigError, match=r"line 1: lists caf\udce9.png.*The name is not UTF-8: save the list as UTF-8"
    ):
        list_images("x", ImageSet(list="list.txt"), tmp_path, True, 0)
    (tmp_path / "paths.txt").write_bytes(b"\n" + bytes(tmp_path) + b"/caf\xe9.png\n")
    (lost,) = sources([str(tmp_path / "paths.txt")])
    assert "the name is not UTF-8: save the list as UTF-8" in lost.reason


def test_names_between_nuls_may_hold_line_ends(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"/a\nb.png\0/c\r.png\0")
    assert [each.path for each in sources([str(tmp_path / "list.txt")])] == ["/a\nb.png", "/c\r.png"]


def test_a_list_that_breaks_off_says_so(tmp_path):
    (tmp_path / "list.txt").write_bytes("/a.png\n/b".encode("utf-16") + b"x")
    assert "the list ends here: its first bytes are UTF-16" in list(sources([str(tmp_path / "list.txt")]))[-1].reason


@pytest.mark.parametrize("key", ["data.id.class_names", "data.negative_words"])
def test_a_wrong_encoding_is_told_before_anything_is_listed(key, tmp_path):
    from clip_ood.config.checks import check_folders

    (tmp_path / "in").mkdir()
    (tmp_path / "names.txt").write_bytes(b"cat\ncaf\xe9\n")
    (tmp_path / "run.yaml").write_text("data: {id: in}\nbackbone: {model: ViT-B-32}\nmethod: {zero_shot: {}}\n")
    given = [f"--data.root={tmp_path}", f"--{key}={tmp_path}/names.txt"]
    with pytest.raises(ConfigError, match=rf"{key}: .*names.txt{LATIN}"):
        check_folders(load_config(str(tmp_path / "run.yaml"), given))


def test_a_class_folder_that_is_not_utf8_is_named(tmp_path):
    for name in ("cat", "d\udce9g"):
        replica.put(tmp_path / "in" / name / "1.png")
    with pytest.raises(ConfigError, match=r"the name of the class folder .* is not UTF-8\. Rename it"):
        list_images("x", ImageSet(folder="in"), tmp_path, True, 0)
    assert len(list_images("x", ImageSet(folder="in"), tmp_path, False, 0)) == 2
