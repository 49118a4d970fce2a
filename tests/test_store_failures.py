"""Runs whose images or feature store are damaged, change, or cannot be read or written."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from store_lab import ID, Lab, replace_image, segments, swap, touch

from clip_ood.data import image_list
from clip_ood.data.image_list import ImageList
from clip_ood.data.readers import on_disk
from clip_ood.experiments import extraction as extraction_module
from clip_ood.features import entries as entries_module
from clip_ood.features import stored_set
from clip_ood.features.entries import Entries
from clip_ood.features.identity import identity_of
from clip_ood.files import writing as files
from clip_ood.files.pictures import UnreadableImage


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return Lab(tmp_path, monkeypatch)


# Images


def test_a_file_that_cannot_be_had_ends_the_run_and_marks_nothing(lab, monkeypatch):
    real = Path.open

    def vanish(path, *args, **kwargs):
        if path.name == "001.png" and path.parent.name == "other":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", vanish)
    with pytest.raises(PermissionError, match=r"other/001\.png"):
        lab.load()
    monkeypatch.undo()
    features, _ = lab.load()
    assert features["other"].abs().sum(dim=1).all()


def test_an_unreadable_image_of_any_name_is_listed(lab):
    broken = os.fsencode(lab.root / "data" / "other") + b"/\xff.png"
    with open(broken, "wb") as file:
        file.write(b"no image")
    features, _ = lab.open("--data.max_unreadable=0.5")
    assert features["other"].valid.sum() == 3 and b"\xff.png" in (lab.root / "unreadable.csv").read_bytes()


def test_an_image_that_another_decoder_could_not_read_is_tried_again(lab, monkeypatch):
    real = image_list.decode

    other = (lab.root / "data/other/001.png").read_bytes()

    def without_decoder(file):
        if file.getvalue() == other:
            raise UnreadableImage("no decoder")
        return real(file)

    with monkeypatch.context() as patch:
        patch.setattr(image_list, "decode", without_decoder)
        patch.setattr(stored_set, "decoders", lambda: "Pillow 1")
        features, _ = lab.open("--data.max_unreadable=0.5")
        assert features["other"].valid.tolist() == [True, False, True]
    features, _ = lab.open()
    assert lab.asked == [("encode_image", 1)] and features["other"].valid.all()
    lab.open()
    assert not lab.asked


def test_a_run_stops_as_soon_as_too_many_images_are_unreadable(lab):
    """Not at the end of its images; what was read is kept, and the next run stops before it encodes anything."""
    for index in range(20):
        (lab.root / "data/id/cat" / f"torn{index:02d}.png").write_bytes(b"no image %d" % index)
    for index in range(2):
        with pytest.raises(ValueError, match=r"Image set id: [67] of 31 images cannot be read, and 5 may be"):
            lab.load("--data.batch_size=2")
        listed = (lab.root / "unreadable.csv").read_text().splitlines()
        assert 6 <= len(listed) - 1 <= 7 and "torn00.png" in listed[1]
        assert sum(count for _, count in lab.asked) == (0 if index else len(listed) - 1 + 6)
    lab.load("--data.max_unreadable=0.9")
    assert ("encode_image", 3) in lab.asked


def test_a_file_system_without_a_time_of_change_is_sampled(lab, monkeypatch):
    """SquashFS and FAT: another image of the same name, size and time. A sample is read; one difference forgets the set."""

    def known_by(place, state):
        return identity_of(place.path, str(state.st_size), str(state.st_mtime_ns))

    monkeypatch.setattr(on_disk, "hides_changes", lambda state: True)
    monkeypatch.setattr(on_disk.Place, "known_by", known_by)
    before, _ = lab.load()
    lab.load()
    assert not lab.asked
    swap(lab)
    after, _ = lab.load()
    assert lab.asked == [("encode_image", 1)] and not torch.equal(after["other"], before["other"])
    lab.load()
    assert not lab.asked


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    states, real = [], os.fstat

    def fstat(descriptor):
        states.append(real(descriptor))
        if len(states) == 1:  # somebody writes between the first look and the second
            path.write_bytes(b"after that")
        return states[-1]

    monkeypatch.setattr(on_disk.os, "fstat", fstat)
    content, state = on_disk.read_whole(path)
    assert content == b"after that" and state.st_size == 10 and len(states) == 4
    monkeypatch.setattr(
        on_disk.os,
        "fstat",
        lambda descriptor: SimpleNamespace(st_size=6, st_mtime_ns=time.monotonic_ns(), st_ctime_ns=0, st_ino=0),
    )
    with pytest.raises(OSError, match="the file changes while it is read"):
        on_disk.read_whole(path)


def test_a_file_that_changes_after_it_was_listed_is_named_at_once(lab, monkeypatch):
    monkeypatch.setattr(extraction_module.time, "sleep", lambda seconds: pytest.fail("waits for what will not come"))
    listed = ImageList.stamps

    def stamps(images, rows=None):
        found = listed(images, rows)
        if images.name == "other" and rows is None:
            touch(lab)
        return found

    monkeypatch.setattr(ImageList, "stamps", stamps)
    with pytest.raises(
        ValueError, match=r"Image set other: 001\.png changed while the run was reading images\. Run again"
    ):
        lab.load()
    monkeypatch.undo()
    lab.load()


# The store


def test_a_damaged_segment_costs_its_own_images_alone(lab, capsys):
    lab.load()
    damaged = min(segments(lab.root / "features"))
    damaged.write_bytes(damaged.read_bytes()[:-50])
    features, _ = lab.load()
    assert lab.asked == [ID] and f"{damaged} is damaged" in capsys.readouterr().out
    fresh, _ = lab.load(store="fresh")
    assert torch.equal(features["id"], fresh["id"])


def test_what_a_file_was_wrongly_found_to_hold_is_mended(lab):
    """As after a flipped bit: the image counts as missing, is read again, and what is remembered is right from then on."""
    before, _ = lab.load()
    known = Entries(lab.root / "features" / "files")
    identities = known.segments[0].identities
    wrong = torch.from_numpy(np.full((len(identities), 2), 7))
    known.remove(identities)
    known.add(identities, {"identity": wrong}, name="0")
    for _ in range(2):
        after, _ = lab.load()
        assert not lab.asked and all(torch.equal(after[name], before[name]) for name in before)
    assert (
        not known.refresh()
        and not (known.rows(identities, ["identity"])["identity"].take(torch.arange(len(identities))) == 7).any()
    )


def test_an_older_format_is_named(lab, capsys):
    old = lab.root / "features" / "0123456789abcdef" / "fedcba9876543210"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    lab.load()
    assert "older version (1 encoders), which are not read: clip-ood features remove --old" in capsys.readouterr().out


def test_a_store_that_cannot_be_written_is_read(lab, monkeypatch):
    lab.load()

    def refuse(*arguments, **more):
        raise PermissionError(30, "Read-only file system")

    for place, name in (
        (entries_module, "write_segment"),
        (os, "utime"),
        (Path, "mkdir"),
        (entries_module, "FileLock"),
    ):
        monkeypatch.setattr(place, name, refuse)
    lab.load()
    assert not lab.asked


def read_only(monkeypatch, root):
    """As if what lies below `root` could not be written."""

    def refusing(real):
        def run(place, *arguments, **more):
            if str(root) in str(place):
                raise OSError(30, "Read-only file system", str(place))
            return real(place, *arguments, **more)

        return run

    monkeypatch.setattr(files, "_locked", refusing(files._locked))
    monkeypatch.setattr(Path, "mkdir", refusing(Path.mkdir))
    monkeypatch.setattr(entries_module, "FileLock", refusing(entries_module.FileLock))
    monkeypatch.setattr(files.tempfile, "TemporaryFile", lambda dir: refusing(open)(dir))
    monkeypatch.setattr(os, "utime", refusing(os.utime))


def test_a_read_only_store_that_does_not_know_the_files_reads_them_once(lab, monkeypatch, capsys):
    """As after the images and the store were moved to another machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.root / "cache"))
    before, _ = lab.load()
    touch(lab)
    (lab.root / "data").rename(lab.root / "moved")
    (lab.root / "data").symlink_to(lab.root / "moved")
    read_only(monkeypatch, lab.root / "features")
    after, _ = lab.load()
    assert not lab.asked and all(torch.equal(after[name], before[name]) for name in before)
    assert capsys.readouterr().out.count(f"is kept in {lab.root}/cache/clip-ood/files") == 1
    monkeypatch.setattr(on_disk.OnDisk, "load", lambda *arguments: pytest.fail("read again"))
    lab.load()


def test_a_read_only_store_without_the_images_ends_the_run_with_its_first_batch(lab, monkeypatch):
    lab.load()
    replace_image(lab)
    read_only(monkeypatch, lab.root / "features")
    with pytest.raises(
        ValueError, match=r"features does not hold all features .* name another folder with --features_root"
    ):
        lab.load("--data.batch_size=2")
    assert lab.asked == [("encode_image", 2)]
