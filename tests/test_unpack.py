"""Archives: what they give, and that nothing in them reaches out of its folder."""

from __future__ import annotations

import gzip
import re
import tarfile

import numpy as np
import pytest
from archives import tarred, zipped

from datamodules.catalog.unpack import UnsafeArchive, unpack

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
    "link": ("set/out", (tarfile.SYMTYPE, "../../secret")),
    "inner link": ("set/out", (tarfile.SYMTYPE, "a")),
    "hard link": ("set/out", (tarfile.LNKTYPE, "../secret")),
    "device": ("set/out", (tarfile.CHRTYPE, "")),
}


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("make", [tarred, zipped])
def test_what_reaches_out_is_refused_and_nothing_is_kept(make, kind, tmp_path):
    (tmp_path / "deep").mkdir()
    archive = make(tmp_path / ("x.tar" if make is tarred else "x.zip"), *GOOD, EVIL[kind])
    with pytest.raises(UnsafeArchive, match=re.escape(EVIL[kind][0])):
        unpack(archive, tmp_path / "deep" / "root" / "set")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["deep", "root", archive.name])


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
