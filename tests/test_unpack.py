"""Archives: what they give, and that nothing in them reaches out of its folder."""

from __future__ import annotations

import copy
import gzip
import re
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from archives import tarred, zipped

from clip_ood.data import allowance
from clip_ood.data.catalog import unpack as unpacking
from clip_ood.data.catalog.unpack import UnsafeArchive, unpack

CONTENT = np.random.default_rng(0).bytes(100_000)


GOOD = [("set/a/1.txt", b"one"), ("set/2.txt", b"two"), ("notes.txt", b"left out")]


@pytest.mark.parametrize("make, name", [(tarred, "x.tar.gz"), (zipped, "x.zip")])
def test_an_archive_gives_what_it_is_unpacked_for(make, name, tmp_path):
    unpack(make(tmp_path / name, *GOOD), tmp_path / "root" / "set")
    assert (tmp_path / "root" / "set" / "a" / "1.txt").read_text() == "one"
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["set"]


def test_a_compressed_file_and_a_plain_one(tmp_path):
    (tmp_path / "labels.gz").write_bytes(gzip.compress(b"12"))
    (tmp_path / "test.mat").write_bytes(b"34")
    unpack(tmp_path / "labels.gz", tmp_path / "raw" / "labels")
    unpack(tmp_path / "test.mat", tmp_path / "raw" / "test.mat")
    assert {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()} == {
        "labels": b"12",
        "test.mat": b"34",
    }


EVIL = {
    "up": ("set/../../out.txt", b"x"),
    "absolute": ("/tmp/clip-ood-out.txt", b"x"),
    "windows": ("..\\out.txt", b"x"),
    "link of such a name": ("set/../../out", (tarfile.SYMTYPE, "a")),
}


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("make", [tarred, zipped])
def test_what_reaches_out_is_refused_and_nothing_is_kept(make, kind, tmp_path):
    (tmp_path / "deep").mkdir()
    archive = make(tmp_path / ("x.tar.gz" if make is tarred else "x.zip"), *GOOD, EVIL[kind])
    with pytest.raises(UnsafeArchive, match=re.escape(EVIL[kind][0])):
        unpack(archive, tmp_path / "deep" / "root" / "set")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["deep", "root", archive.name])


SPECIAL = {
    "symbolic link": (tarfile.SYMTYPE, "../../secret"),
    "link inside": (tarfile.SYMTYPE, "2.txt"),
    "hard link": (tarfile.LNKTYPE, "set/2.txt"),
    "device": (tarfile.CHRTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
    "unknown kind": (b"Q", ""),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_links_and_special_members_are_passed_over_and_named(kind, tmp_path):
    (tmp_path / "secret").write_text("mine")
    member = ("set/out", SPECIAL[kind])
    behind = [] if kind == "unknown kind" else [("set/out/3.txt", b"behind a link")]
    archive = tarred(tmp_path / "x.tar.gz", *GOOD, member, *behind)
    (said,) = unpack(archive, tmp_path / "root" / "set")
    assert said.startswith("set/out (") and kind.replace("link inside", "symbolic link") in said
    there = {path.name for path in (tmp_path / "root" / "set").rglob("*") if path.is_file() and not path.is_symlink()}
    assert there == {"1.txt", "2.txt"} | {"3.txt" for _ in behind} and (tmp_path / "secret").read_text() == "mine"


def test_links_in_zip_files_are_passed_over_and_named(tmp_path):
    archive = zipped(tmp_path / "x.zip", *GOOD, ("set/out", (tarfile.SYMTYPE, "../../secret")))
    assert unpack(archive, tmp_path / "root" / "set") == ["set/out (a symbolic link)"]
    assert not (tmp_path / "root" / "set" / "out").is_symlink()


# What would fill the disk


def bomb(path, kind):
    """An archive that unpacks to 100 MB and more."""
    zeros = bytes(10**8)
    if kind == "gz":
        path.write_bytes(gzip.compress(zeros))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("set/zeros", zeros)
    elif kind == "overlapping":  # many members of the same bytes
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("set/0", bytes(10**7))
            file.filelist += [copy.copy(file.filelist[0]) for _ in range(20)]
    elif kind == "long name":
        with gzip.open(path, "wb") as file:
            info = tarfile.TarInfo("././@LongLink")
            info.type, info.size = tarfile.GNUTYPE_LONGNAME, 10**8
            file.write(info.tobuf(tarfile.GNU_FORMAT) + zeros)
    elif kind == "declared":
        info = tarfile.TarInfo("set/zeros")
        info.size = 2**60
        path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)))
    else:
        tarred(path, ("set/zeros", zeros))
    return path


BOMBS = {"gz": "zeros.gz", "zip": "x.zip", "overlapping": "x.zip", "tar": "x.tar.gz", "declared": "x.tar.gz"}


@pytest.mark.parametrize("kind", BOMBS)
def test_an_archive_unpacks_to_no_more_than_a_hundred_times_its_size(kind, tmp_path):
    archive = bomb(tmp_path / BOMBS[kind], kind)
    with pytest.raises(
        UnsafeArchive, match=r"the archive has [\d,]+ bytes and would unpack to [\d,]+ or more .*over 100 times"
    ):
        unpack(archive, tmp_path / "root" / ("zeros" if kind == "gz" else "set"))
    assert list((tmp_path / "root").iterdir()) == []


def test_a_header_gets_no_memory_that_it_asks_for(tmp_path):
    archive = bomb(tmp_path / "x.tar.gz", "long name")
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"x\.tar\.gz is damaged .*a header of 100,000,\d+ bytes"):
        unpack(archive, tmp_path / "root" / "set")
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_an_archive_that_the_disk_has_no_room_for_is_refused(tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 99_999})
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(UnsafeArchive, match="the disk has room for 99,999"):
        unpack(tarred(tmp_path / "x.tar.gz", *GOOD, ("set/3.bin", CONTENT)), tmp_path / "root" / "set")
    assert list((tmp_path / "root").iterdir()) == []


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(allowance, "MOST_MEMBERS", 2)
    with pytest.raises(UnsafeArchive, match="more than 2 members"):
        unpack(tarred(tmp_path / "x.tar.gz", *GOOD), tmp_path / "root" / "set")


@pytest.mark.parametrize("mode, name", [("w:gz", "x.tar.gz"), ("w", "x.tar")])
def test_a_damaged_header_in_the_middle_is_no_end(mode, name, tmp_path):
    content = tarred(tmp_path / "whole.tar", *GOOD, ("set/3.bin", CONTENT), ("set/4.txt", b"4"), mode="w").read_bytes()
    place = content.rindex(b"set/4.txt")
    content = content[:place] + b"\xff" * 512 + content[place + 512 :]
    (tmp_path / name).write_bytes(gzip.compress(content) if mode == "w:gz" else content)
    with pytest.raises(ValueError, match=f"{name} is damaged .*the header at byte"):
        unpack(tmp_path / name, tmp_path / "root" / "set")


def test_an_encrypted_archive_is_said_to_be_one(tmp_path):
    content = bytearray(zipped(tmp_path / "x.zip", *GOOD).read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flags] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ValueError, match="is encrypted"):
        unpack(tmp_path / "x.zip", tmp_path / "root" / "set")


@pytest.mark.parametrize("make, name", [(tarred, "x.tar.gz"), (zipped, "x.zip")])
def test_a_damaged_archive_and_one_of_something_else(make, name, tmp_path):
    whole = make(tmp_path / name, *GOOD, ("set/3.bin", CONTENT)).read_bytes()
    with pytest.raises(ValueError, match=r"holds notes\.txt, set, and not other"):
        unpack(tmp_path / name, tmp_path / "root" / "other")
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        unpack(tmp_path / name, tmp_path / "root" / "set")
    assert list((tmp_path / "root").iterdir()) == []


def test_what_is_there_is_never_overwritten(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(FileExistsError, match="already there"):
        unpack(tarred(tmp_path / "x.tar.gz", *GOOD), tmp_path / "set")
