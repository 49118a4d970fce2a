"""Archives as sets: zip files and compressed tar files give what the unpacked folder gives, and what is wrong with one is named."""

from __future__ import annotations

import io
import os
import re
import struct
import tarfile
import zipfile
from multiprocessing import get_context
from pathlib import Path

import judged_run
import numpy as np
import pytest
import replica
import tiny_clip
from replica import listed

import eval as evaluation
from clip_ood.config.checks import check_folders
from clip_ood.config.loading import load_config
from clip_ood.data import unpacked
from clip_ood.data.inputs import sources
from clip_ood.data.readers import on_disk
from clip_ood.errors import ConfigError
from clip_ood.files.pictures import UnreadableImage

PACKED = {"zip": "w", "tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}
FILES = {f"{label}/{k}.png": k for k, label in enumerate(["cat", "cat", "dog", "dog", "big_fox"])}
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clip-ood" / "unpacked"


def packed(folder: Path, path: Path, method: int = DEFLATED) -> Path:
    """An archive of a folder's files, of the kind that its name says."""
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as file:
            for each in files:
                file.write(each, each.relative_to(folder))
    else:
        with tarfile.open(path, PACKED[path.name.partition(".")[2]]) as file:
            for each in files:
                file.add(each, each.relative_to(folder))
    return path


def zipped(path: Path, *members, method: int = DEFLATED) -> Path:
    """A zip file of (name or ZipInfo, content or number of a picture)."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members:
            file.writestr(name, replica.picture(content) if isinstance(content, int) else content, method)
    return path


def animals(folder: Path) -> Path:
    for name, number in FILES.items():
        replica.put(folder / name, number)
    (folder / "cat" / "notes.txt").write_text("of cats")
    return folder


@pytest.mark.parametrize("kind", PACKED)
def test_an_archive_is_the_folder_that_it_would_be_unpacked_to(kind, tmp_path):
    animals(tmp_path / "in")
    packed(tmp_path / "in", tmp_path / f"in.{kind}")
    plain, images = listed(tmp_path, folder="in"), listed(tmp_path, folder=f"in.{kind}")
    assert images.names == plain.names == tuple(sorted(FILES))
    assert images.labels == plain.labels and images.class_names == plain.class_names == ("big fox", "cat", "dog")
    for row in range(len(plain)):
        assert images.content(row) == plain.content(row)
        np.testing.assert_array_equal(np.asarray(images.read(row)), np.asarray(plain.read(row)))
    assert len(np.unique(images.stamps().values, axis=0)) == len(plain)
    assert listed(tmp_path, folder=f"in.{kind}/dog").names == ("2.png", "3.png")
    assert listed(tmp_path, False, folder=f"in.{kind}").labels is None
    assert listed(tmp_path, folder=f"in.{kind}", nested=True).labels == plain.labels


@pytest.mark.parametrize("kind", PACKED)
def test_the_labels_of_a_shard_are_read_from_any_archive(kind, tmp_path):
    for number in range(5):
        replica.put(tmp_path / "in" / f"{number:03d}.png", number)
        (tmp_path / "in" / f"{number:03d}.cls").write_text(f"{number % 3}")
    packed(tmp_path / "in", tmp_path / f"x-0.{kind}")
    images = listed(tmp_path, shards=f"x-{{0..0}}.{kind}")
    assert images.labels == (0, 1, 2, 0, 1) and images.names[3] == f"x-0.{kind}/003.png"
    with pytest.raises(ConfigError, match=r"holds label numbers beside its images \(000\.cls\).*name it as \{shards"):
        listed(tmp_path, folder=f"x-0.{kind}")


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_other_processes_read_archives(kind, start, tmp_path):
    packed(animals(tmp_path / "in"), tmp_path / f"in.{kind}")
    images = listed(tmp_path, folder=f"in.{kind}")
    with get_context(start).Pool(2) as pool:
        assert pool.map(images.reader.open, range(5)) == [images.reader.open(row) for row in range(5)]


def test_a_run_on_archives_scores_as_one_on_folders(tmp_path):
    tiny_clip.make(tmp_path)
    data = tmp_path / "data"
    packed(data / "id", data / "id.zip")
    packed(data / "near", data / "near.tar.gz")
    rows = {}
    for name, sets in {"plain": ("id", "near"), "packed": ("id.zip", "near.tar.gz")}.items():
        keys = {"root": str(data), "id": sets[0], "ood": {"near": sets[1]}, "batch_size": 8}
        config = tiny_clip.config(tmp_path, name, {"zero_shot": {}}, data=keys)
        evaluation.main(["--config", config, f"--features_root={tmp_path}/features_{name}", "--data.num_workers=1"])
        rows[name] = tiny_clip.results(tmp_path / "runs" / name)["rows"]
    assert rows["plain"] == rows["packed"] and rows["plain"]


def test_predictions_of_an_archive_are_those_of_its_folder(tmp_path):
    run = judged_run.make(tiny_clip.make(tmp_path), "judged")
    near = tmp_path / "data" / "near"
    (near / "not.png").write_bytes(b"no picture")
    found = {}
    for kind in ("", ".zip", ".tar", ".tgz"):
        path = packed(near, tmp_path / f"near{kind}") if kind else near
        judged_run.judged(
            *("--run", run, path, "--out", tmp_path / f"out{kind}.csv", "--workers", len(kind) and 1),
            *("--copy-ood", tmp_path / f"odd{kind}", "--accept", 0.5),
        )
        rows = judged_run.read(tmp_path / f"out{kind}.csv")
        assert len(rows) == len(list(near.iterdir())) - 1
        lost = judged_run.read(tmp_path / f"out{kind}.csv.unreadable.csv")
        assert [Path(each["path"]).name for each in lost] == ["not.png"]
        aside = {each.name: each.read_bytes() for each in (tmp_path / f"odd{kind}").rglob("*.png")}
        found[kind] = [row | {"path": Path(row["path"]).name} for row in rows], aside
    assert found[""] == found[".zip"] == found[".tar"] == found[".tgz"] and found[""][1]


def test_members_have_the_reasons_of_files(tmp_path):
    members = [
        ("a/1.png", 0),
        ("a/readme.md", b"?"),
        ("__MACOSX/a/._1.png", b"?"),
        ("a/.DS_Store", b"?"),
        ("a/1.cls", b"1"),
    ]
    path = zipped(tmp_path / "x.zip", *members, ("empty/", b""), ("b/2.gif", b""))
    assert [(each.path, each.inside, each.reason) for each in sources([str(path)])] == [
        (f"{path}/a/1.png", "x.zip/a/1.png", None),
        (f"{path}/a/readme.md", "x.zip/a/readme.md", "no image by its name"),
        (f"{path}/b/2.gif", "x.zip/b/2.gif", None),
    ]
    assert [each.inside for each in sources([f"{path}/b"])] == ["b/2.gif"]
    (none,) = sources([str(zipped(tmp_path / "y.zip", ("a.txt", b"")))])
    assert none.reason == "it holds no images"
    with pytest.raises(ConfigError, match=r"x\.zip holds no folder c"):
        listed(tmp_path, folder="x.zip/c")


def patched(path: Path, member: bytes, offset: int, value: bytes, central: bool = True) -> None:
    """Changes a field of a member in the directory of a zip file, or in its own header."""
    content = path.read_bytes()
    mark, behind = (b"PK\x01\x02", 46) if central else (b"PK\x03\x04", 30)
    place = next(
        at for at in range(len(content)) if content.startswith(mark, at) and content.startswith(member, at + behind)
    )
    path.write_bytes(content[: place + offset] + value + content[place + offset + len(value) :])


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


@pytest.mark.parametrize(
    "name, spoil, told",
    [
        ("../b.png", None, "its name leads out of the archive"),
        ("/b.png", None, "its name leads out of the archive"),
        ("a/../../b.png", None, "its name leads out of the archive"),
        ("..\\b.png", None, "its name leads out of the archive"),
        (link("b.png"), None, "it is a link, or no file"),
        ("b.png", lambda path: patched(path, b"b.png", 8, b"\1\0"), "it is encrypted: unpack it with its password"),
        ("b.png", lambda path: patched(path, b"b.png", 10, b"\x09\0"), r"compressed by deflate64 \(method 9\)"),
        (
            "b.png",
            lambda path: patched(path, b"b.png", 10, b"\x63\0"),
            r"compressed by an unknown method \(method 99\)",
        ),
    ],
)
def test_images_that_cannot_be_read_in_place_are_named(name, spoil, told, tmp_path):
    path = zipped(tmp_path / "x.zip", ("a.png", 0), (name, 1))
    if spoil is not None:
        spoil(path)
    for spec in ({"folder": "x.zip"}, {"shards": "x.zip"}):
        with pytest.raises(ConfigError, match=rf"Image set x: .*x\.zip, .*b\.png: {told}|: .*{told}"):
            listed(tmp_path, **spec)
    first, second = sources([str(path)])
    assert first.reason is None and re.search(told, second.reason)


@pytest.mark.parametrize(
    "harm, told",
    [
        (lambda content: b"", "it is empty"),
        (lambda content: content[: len(content) // 2], "the directory at its end is missing: it was cut"),
        (lambda content: b"<!DOCTYPE html><title>Quota exceeded", "it is a web page, and no zip file"),
        (lambda content: b"\x89PNG\r\n\x1a\n" + bytes(99), "it is no zip file: it begins with"),
        (lambda content: content.replace(b"PK\1\2", b"PK\1\3"), "its directory is damaged"),
        (lambda content: b"PK\3\5" + content[4:], "its directory says that a/1.png begins at byte 0, and nothing does"),
    ],
)
def test_a_damaged_zip_file_is_never_taken_for_a_smaller_one(harm, told, tmp_path):
    path = zipped(tmp_path / "x.zip", ("a/1.png", 0), ("a/2.png", 1))
    path.write_bytes(harm(path.read_bytes()))
    for spec in ({"folder": "x.zip"}, {"shards": "x.zip"}):
        with pytest.raises(ConfigError, match=rf"x\.zip is no whole zip file: ({told})"):
            listed(tmp_path, **spec)
    *_, found = sources([str(path)])
    assert re.search(rf"no whole zip file: ({told})", found.reason)


@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_a_member_that_is_damaged_is_an_image_that_cannot_be_read(method, tmp_path):
    path = zipped(tmp_path / "x.zip", ("a.png", 0), ("b.png", 1), method=method)
    images, content = listed(tmp_path, folder="x.zip"), path.read_bytes()
    place = images.reader.place(1)
    middle = place.offset + place.size // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    assert images.read(0).size
    with pytest.raises(OSError, match="it is damaged in its archive"):
        images.read(1)
    with pytest.raises(UnreadableImage, match="it is damaged in its archive"):  # a run counts it, and goes on
        images.load(1).picture()
    assert images.load(1).stamp == images.reader.stamp(1).value


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """It says what it gives; or it says less, and gives more; or it stays below what is read, at an impossible ratio."""
    path = zipped(tmp_path / "x.zip", ("a.png", 0), ("b.png", bytes(2**20)), ("c.png", bytes(2**20)))
    patched(path, b"c.png", 24, struct.pack("<I", 1000))
    monkeypatch.setattr(on_disk, "SLACK", 2**19)
    images = listed(tmp_path, folder="x.zip")
    assert images.read(0).size
    with pytest.raises(OSError, match=r"bytes that would give 1,048,576, more than any picture that is read"):
        images.read(1)
    with pytest.raises(OSError, match=r"it gives more than the 1,000 bytes it states"):
        images.read(2)
    patched(path, b"b.png", 24, struct.pack("<I", 2**31))
    monkeypatch.setattr(on_disk, "SLACK", 2**40)
    with pytest.raises(OSError, match=r"would give 2,147,483,648, more than any"):
        listed(tmp_path, folder="x.zip").read(1)


def test_two_members_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(tmp_path / "x.zip", ("a.png", 0), ("a.png", 1))
    for spec in ({"folder": "x.zip"}, {"shards": "x.zip"}):
        with pytest.raises(ConfigError, match=r"x\.zip holds a\.png twice"):
            listed(tmp_path, **spec)


def test_names_are_read_as_people_wrote_them(tmp_path):
    raw = "Bär/1.png".encode()
    info = zipfile.ZipInfo("B" + "x" * (len(raw) - 1))
    dos = zipfile.ZipInfo("dog/2.png")
    dos.create_system = 0
    path = zipped(tmp_path / "x.zip", (info, 0), (dos, 1))
    content = path.read_bytes().replace(info.filename.encode(), raw).replace(b"dog/2.png", b"dog\\2.png")
    path.write_bytes(content)
    assert listed(tmp_path, folder="x.zip").class_names == ("Bär", "dog")


def test_half_of_a_letter_is_no_folder(tmp_path):
    """Names of Japanese programs of Windows are in cp932, where the second byte of many letters is a backslash."""
    info = zipfile.ZipInfo("aaaa/bb.png")
    info.create_system = 0
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, replica.picture(0))
    path.write_bytes(path.read_bytes().replace(b"aaaa/bb.png", "写真/表.png".encode("cp932")))
    (name,) = listed(tmp_path, False, folder="x.zip").names
    assert name.count("/") == 1 and name.endswith("\\.png")


def test_a_hidden_folder_that_is_named_is_listed(tmp_path):
    zipped(tmp_path / "x.zip", (".data/a.png", 0), (".data/.b.png", 1), ("c.png", 2))
    assert listed(tmp_path, False, folder="x.zip/.data").names == ("a.png",)
    assert listed(tmp_path, False, folder="x.zip").names == ("c.png",)


def test_a_member_without_a_name_is_told(tmp_path):
    path = zipped(tmp_path / "x.zip", ("a.png", 0), ("b.png", 1))
    path.write_bytes(path.read_bytes().replace(b"a.png", b"\0.png"))
    assert [each.reason for each in sources([str(path)])] == ["no image by its name", None]


def test_a_compressed_tar_file_is_unpacked_once(tmp_path, cache, capsys):
    packed(animals(tmp_path / "in"), tmp_path / "in.tgz")
    first = listed(tmp_path, folder="in.tgz")
    (file,) = cache.glob("*.tar")
    before, stamps = file.stat().st_ino, first.stamps().values
    told = capsys.readouterr()
    assert "Unpacking" in told.err and "Unpacking" not in told.out
    np.testing.assert_array_equal(listed(tmp_path, folder="in.tgz").stamps().values, stamps)  # known without being read
    assert file.stat().st_ino == before and "Unpacking" not in capsys.readouterr().err
    packed(animals(tmp_path / "in"), tmp_path / "in.tgz")
    os.utime(tmp_path / "in.tgz", (1, 1))
    listed(tmp_path, folder="in.tgz")
    assert len(list(cache.glob("*.tar"))) == 2


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
@pytest.mark.parametrize(
    "harm", [lambda content: content[: len(content) // 2], lambda content: content[:-200] + bytes(200)]
)
def test_a_cut_or_damaged_compressed_tar_file_leaves_nothing(harm, kind, tmp_path, cache):
    path = packed(animals(tmp_path / "in"), tmp_path / f"in.tar.{kind}")
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ConfigError, match=rf"in\.tar\.{kind} is no whole, compressed tar file: "):
        listed(tmp_path, folder=path.name)
    assert not [each for each in cache.iterdir() if not each.name.startswith(".")]


def test_a_compressed_tar_file_that_is_none_is_told(tmp_path):
    (tmp_path / "x.tgz").write_bytes(b"<html>log in")
    (tmp_path / "y.tar.xz").write_bytes(b"no xz")
    with pytest.raises(ConfigError, match="it is a web page, and no gzip file"):
        listed(tmp_path, folder="x.tgz")
    with pytest.raises(ConfigError, match="it is not compressed by gzip, bzip2 or xz"):
        listed(tmp_path, folder="y.tar.xz")


def test_a_tar_bomb_and_a_full_cache_are_refused(tmp_path, cache, monkeypatch):
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as file:
        info = tarfile.TarInfo("a.png")
        info.size = 80 * 2**20
        file.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(ConfigError, match=r"would unpack to .* over 100 times as many"):
        listed(tmp_path, folder="x.tgz")
    packed(animals(tmp_path / "in"), tmp_path / "in.tgz")
    monkeypatch.setattr(unpacked, "LIMIT", 4096)
    (found,) = sources([str(tmp_path / "in.tgz")])
    assert "unpacks to more than 4.1 kB, which is all that the cache keeps" in found.reason
    assert not list(cache.glob("*.t*"))


def test_archives_used_longest_ago_make_room_unless_they_are_in_use(tmp_path, cache, monkeypatch):
    packed(animals(tmp_path / "in"), tmp_path / "one.tgz")
    listed(tmp_path, folder="one.tgz")
    (mine,) = cache.glob("*.tar")
    other = cache / "other.tar"
    other.write_bytes(mine.read_bytes())
    other.with_suffix(".used").touch()
    os.utime(other.with_suffix(".used"), (1, 1))
    monkeypatch.setattr(unpacked, "LIMIT", int(2.5 * mine.stat().st_size))
    packed(tmp_path / "in", tmp_path / "two.tgz")
    listed(tmp_path, folder="two.tgz")
    assert mine.exists() and not other.exists() and len(list(cache.glob("*.tar"))) == 2
    assert {each.stem for each in cache.glob("*.used")} == {each.stem for each in cache.glob("*.tar")}
    monkeypatch.setattr(unpacked, "LIMIT", int(1.5 * mine.stat().st_size))  # both are this process's own
    packed(tmp_path / "in", tmp_path / "three.tgz")
    listed(tmp_path, folder="three.tgz")
    assert len(list(cache.glob("*.tar"))) == 3


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    packed(animals(tmp_path / "in"), tmp_path / "in.tgz")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (found,) = sources([str(tmp_path / "in.tgz")])
    assert "unpack it yourself, and name the folder, or set XDG_CACHE_HOME" in found.reason


def test_a_list_names_images_in_an_archive(tmp_path):
    packed(animals(tmp_path / "in"), tmp_path / "in.zip")
    (tmp_path / "list.txt").write_text("dog/2.png 4\ncat/1.png 0\n")
    images = listed(tmp_path, list="list.txt", images_root="in.zip")
    assert images.names == ("dog/2.png", "cat/1.png") and images.labels == (4, 0)
    assert images.reader.open(0) == replica.picture(2)
    assert listed(tmp_path, list="list.txt", images_root="in").content(1) == images.content(1)
    (tmp_path / "list.txt").write_text("dog/9.png 4\n")
    with pytest.raises(ConfigError, match=r"lists dog/9\.png, which is not under .*in\.zip \(key images_root\)"):
        listed(tmp_path, list="list.txt", images_root="in.zip")


def test_configs_name_archives_where_folders_may_stand(tmp_path):
    packed(animals(tmp_path / "in"), tmp_path / "in.zip")
    text = "data: {id: in.zip, ood: {a: in.zip/dog}}\nbackbone: {model: ViT-B-32}\nmethod: {zero_shot: {}}\n"
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"data\.ood\.a .* lies in data\.id"):
        check_folders(load_config(str(tmp_path / "run.yaml"), [f"--data.root={tmp_path}"]))
    check_folders(load_config(str(tmp_path / "run.yaml"), [f"--data.root={tmp_path}", "--data.id=in"]))
    with pytest.raises(ConfigError, match=r"there is no folder .*gone\.zip"):
        check_folders(load_config(str(tmp_path / "run.yaml"), [f"--data.root={tmp_path}", "--data.id=gone.zip"]))


@pytest.mark.parametrize("name", ["a.7z", "a.rar", "a.tar.zst", "A.TAR.Z", "photos.gz"])
def test_archives_of_other_kinds_are_told_when_they_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x28\xb5\x2f\xfd packed")
    (found,) = sources([str(tmp_path / name)])
    assert found.reason.startswith("it is packed in a way that is not read: unpack it")
