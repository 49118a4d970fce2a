"""Image sets of the catalogue: downloaded, checked, unpacked and counted."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from archives import tarred
from bad_server import CONTENT, PAGE

from clip_ood.config.sets import Entry, File, Split, catalogue
from clip_ood.data.catalog.get import get
from clip_ood.errors import ConfigError
from clip_ood.files.download import DownloadError
from clip_ood.files.file_types import TYPES


def a_set(server, images, published=True):
    md5 = hashlib.md5(server.content).hexdigest() if published else None
    files = (File(f"{server.url}.tar.gz", gives="photos", md5=md5),)
    return Entry(
        "Photos", "photos", "free", "example.org", {"test": Split(images, [{"folder": "photos"}])}, files=files
    )


@pytest.fixture
def photos(server, tmp_path):
    members = [(f"photos/{index}.jpg", CONTENT[:900]) for index in range(3)]
    server.content = tarred(tmp_path / "source.tar.gz", *members).read_bytes()
    return server


@pytest.fixture
def unpublished(photos, monkeypatch):
    """A set without a published checksum."""
    entry = a_set(photos, 3, published=False)
    monkeypatch.setattr("clip_ood.config.checks.entry", lambda name: entry)
    return entry


def test_a_set_is_downloaded_unpacked_and_counted(photos, tmp_path, monkeypatch, capsys):
    entry = a_set(photos, 3)
    monkeypatch.setattr("clip_ood.config.checks.entry", lambda name: entry)
    get(entry, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["photos"]
    said = capsys.readouterr().out
    assert re.search(r"set\.bin\.tar\.gz: .* (bytes|kB) from http.* to .*data", said) and "test: 3 images" in said
    get(entry, tmp_path / "data")
    assert "is there already" in capsys.readouterr().out and len(photos.asked) == 1


def test_another_number_of_images_than_published_is_an_error(photos, tmp_path, monkeypatch):
    entry = a_set(photos, 4)
    monkeypatch.setattr("clip_ood.config.checks.entry", lambda name: entry)
    with pytest.raises(ConfigError, match=r"Photos test: 3 of 4 images are there\. 1 \(25 %\) is missing"):
        get(entry, tmp_path / "data")


def test_the_checksum_of_a_first_download_is_kept_and_compared(unpublished, photos, tmp_path, capsys):
    root = tmp_path / "data"
    get(unpublished, root)
    note = root / "set.bin.tar.gz.sha256"
    assert (
        f"No checksum of set.bin.tar.gz was published. That of this first download is kept in {note}"
        in capsys.readouterr().out
    )
    assert note.read_text() == f"{hashlib.sha256(photos.content).hexdigest()}  set.bin.tar.gz\n"
    shutil.rmtree(root / "photos")
    get(unpublished, root)
    assert "No checksum" not in capsys.readouterr().out
    shutil.rmtree(root / "photos")
    first, photos.content = photos.content, tarred(tmp_path / "b.tar.gz", ("photos/0.jpg", b"another")).read_bytes()
    with pytest.raises(
        DownloadError,
        match=rf"SHA256 checksum {hashlib.sha256(photos.content).hexdigest()}, .*first download, noted in {note}",
    ):
        get(unpublished, root)
    assert not {path.name for path in root.iterdir()} & {"photos", "set.bin.tar.gz", "set.bin.tar.gz.part"}
    note.write_text("nothing")
    with pytest.raises(ValueError, match="holds no SHA-256 checksum: remove it"):
        get(unpublished, root)
    note.unlink()
    photos.content = first
    get(unpublished, root)
    assert note.is_file()


def test_a_page_that_was_once_kept_as_a_file_of_the_set_is_told(server, tmp_path):
    (tmp_path / "test.mat").write_bytes(PAGE)
    entry = Entry("Digits", "", "", "", {}, files=(File(f"{server.url}/test.mat", gives="test.mat"),))
    with pytest.raises(ConfigError, match=r"test\.mat is not what it should be: it is a web page"):
        get(entry, tmp_path)


def test_members_that_are_no_files_are_named(photos, tmp_path, monkeypatch, capsys):
    links = [(f"photos/link{index}", (tarfile.SYMTYPE, "/etc/passwd")) for index in range(4)]
    members = [(f"photos/{index}.jpg", CONTENT[:900]) for index in range(3)]
    photos.content = tarred(tmp_path / "b.tar.gz", *members, *links).read_bytes()
    entry = a_set(photos, 3)
    monkeypatch.setattr("clip_ood.config.checks.entry", lambda name: entry)
    get(entry, tmp_path / "data")
    said = capsys.readouterr().out
    assert (
        "4 members are passed over, being no files: photos/link0 (a symbolic link to /etc/passwd), " in said
        and "and 1 more" in said
    )


# Archives that lie there or are damaged


@pytest.mark.parametrize("content", [b"", PAGE])
def test_an_archive_that_lies_there_is_checked_as_well(content, unpublished, photos, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set.bin.tar.gz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"set\.bin\.tar\.gz: it is .*Remove it, and get it again"):
        get(unpublished, tmp_path / "data")
    assert not (tmp_path / "data" / "photos").exists() and not photos.asked


def test_an_archive_that_lies_there_has_the_published_checksum(photos, tmp_path):
    (tmp_path / "data").mkdir()
    tarred(tmp_path / "data" / "set.bin.tar.gz", ("photos/0.jpg", b"another"))
    with pytest.raises(ConfigError, match=r"set\.bin\.tar\.gz: the file has the MD5 checksum"):
        get(a_set(photos, 3), tmp_path / "data")


def test_a_damaged_archive_does_not_stand_in_the_way_of_a_whole_one(unpublished, photos, tmp_path):
    whole, photos.content = photos.content, photos.content[:-10]
    with pytest.raises(ValueError, match=r"set\.bin\.tar\.gz is damaged .*It was removed: get it again"):
        get(unpublished, tmp_path / "data")
    photos.content = whole
    get(unpublished, tmp_path / "data")
    assert len(list((tmp_path / "data" / "photos").iterdir())) == 3


def test_a_damaged_archive_of_ones_own_is_left_as_it_is(unpublished, photos, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set.bin.tar.gz").write_bytes(photos.content[:-10])
    with pytest.raises(ValueError, match="Remove it, and get it again"):
        get(unpublished, tmp_path / "data")
    assert (tmp_path / "data" / "set.bin.tar.gz").is_file()


# The catalogue


def test_every_file_of_the_catalogue_comes_by_https_and_is_of_a_known_type():
    files = [file for entry in catalogue().values() for file in entry.files]
    assert files and all(file.url.startswith("https://") for file in files)
    assert all(Path(file.name).suffix in TYPES for file in files)
