"""Pipes, sockets and devices in place of files are never waited for, and files of any size are not read to find out that they are."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_ood.backbones.checkpoint_file import read_tensors
from clip_ood.backbones.fingerprint import sha256
from clip_ood.config.checks import check_folders
from clip_ood.config.loading import find_config, load_config
from clip_ood.data.class_folders import from_folder
from clip_ood.data.inputs import is_stream, sources
from clip_ood.data.label_files import read_labels
from clip_ood.data.readers import on_disk as reading
from clip_ood.data.readers.shards import read_shards
from clip_ood.data.tar_members import DamagedArchive, members
from clip_ood.errors import ConfigError
from clip_ood.features.segment import open_segment
from clip_ood.files.pictures import UnreadableImage, read_image
from clip_ood.files.records import read_json
from clip_ood.files.text_files import read_names, read_text
from clip_ood.texts.wordnet import read_words

PROJECT = Path(__file__).parents[1]
KINDS = {"pipe": "a pipe", "socket": "a socket", "device": "a device", "endless": "a device"}


@pytest.fixture(params=KINDS)
def special(request, tmp_path):
    """Makes what is no file at a place; opening it would wait, or reading it would never end."""
    held = []

    def make(name):
        path = tmp_path / name
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "socket":
            held.append(socket.socket(socket.AF_UNIX))
            held[-1].bind(os.path.relpath(path))  # its path may be a hundred characters long
        else:
            path.symlink_to("/dev/tty" if request.param == "device" and os.path.exists("/dev/tty") else "/dev/zero")
        return path

    yield make, KINDS[request.param]
    for each in held:
        each.close()


READERS = {
    "text": ("names.txt", read_text),
    "names": ("list.txt", lambda path: list(read_names(path))),
    "words": ("words.txt", read_words),
    "json": ("detector.json", read_json),
    "hash": ("weights.pt", sha256),
    "checkpoint": ("weights.pt", read_tensors),
    "segment": ("a.safetensors", open_segment),
    "image": ("x.jpg", reading.read_whole),
    "labels": ("labels.csv", lambda path: read_labels("id", path)),
    "shard": ("x.tar", lambda path: read_shards("id", [path])),
    "config": ("x.yaml", lambda path: find_config(str(path))),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_named_and_not_opened(reader, special):
    make, kind = special
    name, read = READERS[reader]
    path = make(name)
    with pytest.raises((OSError, ValueError)) as error:
        read(path)
    assert f"it is {kind}" in str(error.value) and str(path) in str(error.value)


def test_an_image_by_its_path_is_not_waited_for(special):
    with pytest.raises(OSError, match="it is no file that can be read to its end"):
        read_image(special[0]("x.jpg"))


def test_new_images_of_such_kinds_are_counted_with_their_reason(special, tmp_path):
    make, kind = special
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    make("photos/x.jpg")
    found = {source.inside: source for source in sources([str(folder), str(make("list.txt")), str(make("x.tar"))])}
    assert f"it is {kind}" in found["list.txt"].reason and f"it is {kind}" in found["x.tar"].reason
    with pytest.raises(OSError, match=f"it is {kind}"):
        found["x.jpg"].read()
    assert found["good.png"].read()[0].size == (8, 8)


def test_one_among_the_images_of_a_set_is_named_when_they_are_listed(special, tmp_path):
    make, kind = special
    path = make("x.jpg")
    with pytest.raises(ConfigError, match=rf"Image set photos: {path} is {kind}, and no file\. Remove it"):
        from_folder("photos", tmp_path, labelled=False)


@pytest.mark.parametrize("target", ["x.jpg", "gone.jpg"])
def test_a_link_that_leads_nowhere_is_named_when_images_are_listed(target, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "loop").symlink_to("loop")  # no image by its name
    (tmp_path / "x.jpg").symlink_to(target)
    with pytest.raises(ConfigError, match=r"Image set photos: .*x\.jpg leads nowhere\. Remove it"):
        from_folder("photos", tmp_path, labelled=False)
    (tmp_path / "x.jpg").unlink()
    assert from_folder("photos", tmp_path, labelled=False).names == ("0.png",)


KEYS = {
    "data.id.class_names": "{}",
    "data.negative_words": "{}",
    "evaluation.bank_without": "{}",
    "data.ood.x": "{{list: {}}}",
    "data.ood.y": "{{shards: {}}}",
    "data.ood.z": "{{folder: b, labels: {}}}",
    "data.ood.w": "{}",
}


@pytest.fixture
def images(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "0.png")
    return [f"--data.root={tmp_path}", "--data.id=a"]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_names_such_a_thing_is_answered_before_any_work(key, special, images):
    make, kind = special
    path = make("x.tar" if "shards" in KEYS[key] else "x.txt")
    begun = time.monotonic()
    with pytest.raises(ConfigError) as error:
        check_folders(load_config("own_images.yaml", [*images, f"--{key}={KEYS[key].format(path)}"]))
    assert kind in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
    assert time.monotonic() - begun < 1


def test_paths_may_come_through_a_pipe_that_the_shell_has_opened(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    code = "import sys; from clip_ood.data.inputs import sources; print([s.path for s in sources(sys.argv[1:]) if s.read()])"
    command = f'"{sys.executable}" -c "{code}" <(ls {tmp_path}/*.png)'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=PROJECT, timeout=60)
    assert done.stdout.strip() == str([f"{tmp_path}/a.png", f"{tmp_path}/b.png"]), done.stderr
    assert is_stream("-") and not is_stream(str(tmp_path / "a.png"))


# Files of any size


@pytest.fixture
def huge(tmp_path):
    """A file of ten gigabytes that takes no room on the disk."""

    def make(name, start=b""):
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(10 * 2**30)
        return tmp_path / name

    return make


@pytest.fixture(autouse=True)
def little_memory():
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**27


@pytest.mark.parametrize("reader", ["text", "names", "words", "json", "labels", "image"])
def test_a_huge_file_is_refused_by_its_size(reader, huge):
    name, read = READERS[reader]
    path = huge(name)
    begun = time.monotonic()
    with pytest.raises((OSError, ValueError), match=r"10,737,418,240 bytes|over 1,073,741,824 bytes"):
        read(path)
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("key", ["data.id.class_names", "data.negative_words", "evaluation.bank_without", "data.ood.x"])
def test_a_key_that_names_a_huge_file_is_answered_at_once(key, huge, images):
    with pytest.raises(ConfigError, match=r"data\.|evaluation\.") as error:
        check_folders(load_config("own_images.yaml", [*images, f"--{key}={KEYS[key].format(huge('x.txt'))}"]))
    assert "10,737,418,240 bytes" in str(error.value) and key in str(error.value)


def test_a_huge_config_is_answered_at_once(huge):
    with pytest.raises(ConfigError, match=r"x\.yaml has 10,737,418,240 bytes"):
        load_config(str(huge("x.yaml")))


@pytest.mark.parametrize("start", [b"", b"a\n\xff", b"a" * 10_000, b"\xff\xfea\0", b"a\0b\0" * 9 + b"x" * 9000])
def test_a_list_without_ends_of_lines_takes_no_memory(start, huge):
    path = huge("list.txt", start)
    *_, last = sources([str(path)])
    assert re.search("the list ends here: (a name in it has over 32,768 characters|nothing but NUL bytes)", last.reason)


def test_a_shard_whose_header_asks_for_memory_gets_none(huge):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 9 * 2**30
    path = huge("x.tar", info.tobuf(tarfile.GNU_FORMAT))
    with path.open("rb") as file, pytest.raises(DamagedArchive, match="a header of 9,663,"):
        list(members(file))


def test_an_image_that_grows_is_read_no_further_than_it_was_long(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"x" * 1000)
    sizes = []
    fstat = os.fstat

    def growing(descriptor):
        with path.open("ab") as file:
            file.write(b"y" * 1000)
        sizes.append(fstat(descriptor))
        return sizes[-1]

    monkeypatch.setattr(reading.os, "fstat", growing)
    with pytest.raises(OSError, match="the file changes while it is read"):
        reading.read_whole(path)
    assert len(sizes) == 2 * reading.TRIES


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path):
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(tmp_path / "x.png")
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UnreadableImage, match="DecompressionBombError"):
        read_image(tmp_path / "x.png")
