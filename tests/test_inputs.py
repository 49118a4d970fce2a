"""What new images are named by: order, links, lists, shards, standard input, batches, parts."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_ood.data import inputs
from clip_ood.data.inputs import Source, sources
from clip_ood.data.readers.on_disk import Place
from clip_ood.detect.part_batches import MANY, divided


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path, "PNG")
    return path


def piped(content: bytes) -> io.TextIOWrapper:
    """Standard input that gives these bytes."""
    return io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)))


def test_a_folder_is_listed_in_the_order_of_its_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a/b.png", "a-1.png", "a.png", "z/y/x.JPG", "z/y.webp", "B.png", "ä.png", "a/.hidden.png"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    found = [each.inside for each in sources(["in"])]
    assert found == sorted(name for name in names if ".hidden" not in name)
    assert [each.path for each in sources(["in"])] == [f"in/{name}" for name in found]


def test_what_is_no_image_is_listed_with_its_reason(tmp_path):
    image(tmp_path / "good.png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    found = {Path(each.path).name: each for each in sources([str(tmp_path)])}
    assert set(found) == {"good.png", "notes.txt", "loop", "self.png", "gone.png", "pipe.png"}
    assert found["notes.txt"].reason == "no image by its name"
    assert found["loop"].reason.startswith("a link back to")
    for name, reason in (
        ("self.png", "symbolic links"),
        ("gone.png", "No such file"),
        ("pipe.png", "it is a pipe, and no file"),
    ):
        with pytest.raises(OSError, match=reason):
            found[name].read()
    assert found["good.png"].read()[0].size == (4, 4)


def test_links_to_folders_are_followed(tmp_path):
    image(tmp_path / "real" / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    assert [each.inside for each in sources([str(tmp_path / "in")])] == ["link/a.png"]


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    image(tmp_path / "b" / "a.png")
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(inputs.os, "scandir", scandir)
    found = {each.inside: each.reason for each in sources([str(tmp_path)])}
    assert found == {"b/a.png": None, "closed/": "the folder cannot be read: Permission denied"}


def test_files_lists_and_standard_input_are_taken_in_turn(tmp_path, monkeypatch):
    a, b = image(tmp_path / "a.png"), image(tmp_path / "b.bin")
    (tmp_path / "list.txt").write_text(f"\ufeff{b}\n\n{a}\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", piped(f"{a}\r\n{tmp_path}/gone.png\n".encode()))
    found = list(sources([str(b), str(tmp_path / "list.txt"), "-"]))
    assert [Path(each.place.path).name for each in found] == ["b.bin", "b.bin", "a.png", "a.png", "gone.png"]
    assert all(each.read()[0].size == (4, 4) for each in found[:4])


def test_a_list_of_another_system_names_files_in_another_form_of_unicode(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = (image(Path(normalize(form, f"é {form}.png"))) for form in ("NFC", "NFD"))
    Path("list.txt").write_text(f"{normalize('NFD', str(one))}\n{normalize('NFC', str(two))}\n{two}\nç.png\n", "utf-8")
    assert [each.path for each in sources(["list.txt"])] == [str(one), str(two), str(two), "ç.png"]
    pq.write_table(pa.table({"path": [normalize("NFD", str(one)), "ç.png"]}), "x.parquet")
    assert [Path(each.place.path).name for each in sources(["x.parquet"])] == [str(one), "ç.png"]


def test_a_shard_gives_its_members(tmp_path):
    for name in ("1.png", "2.png"):
        image(tmp_path / name)
    (tmp_path / "list.cls").write_text("no number")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "1.png", "0001.png")
        tar.add(tmp_path / "list.cls", "0001.cls")
        tar.add(tmp_path / "2.png", "deep/0002.png")
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    found = list(sources([str(tmp_path / "x.tar"), str(tmp_path / "broken.tar")]))
    assert [each.inside for each in found] == ["x.tar/0001.png", "x.tar/deep/0002.png", "broken.tar"]
    assert found[0].place.read() == (tmp_path / "1.png").read_bytes() and found[1].read()[0].size == (4, 4)
    assert "no whole, uncompressed tar" in found[2].reason
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: content.index(b"deep/0002.png") + 300])
    cut = list(sources([str(tmp_path / "cut.tar")]))
    assert cut[0].read()[0].size == (4, 4) and "no whole" in cut[-1].reason


def test_names_may_end_with_nul(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", piped(b"a.png\0b.png\0"))
    assert [each.path for each in sources(["-"])] == ["a.png", "b.png"]


def test_folders_too_deep_are_a_reason(tmp_path):
    deep = tmp_path
    for _ in range(inputs.DEEPEST + 2):
        deep = deep / "d"
    os.makedirs(deep)
    image(deep / "x.png")
    (found,) = sources([str(tmp_path)])
    assert "nested deeper than" in found.reason


def test_names_that_are_no_utf8_stay_what_they_are(tmp_path):
    raw = os.path.join(os.fsencode(tmp_path), b"\xff\n'\".png")
    with open(raw, "wb") as file:
        Image.new("RGB", (2, 2)).save(file, "PNG")
    (found,) = sources([str(tmp_path)])
    assert os.fsencode(found.path) == raw and found.read()[0].size == (2, 2)


def test_what_is_no_image_takes_no_place_in_a_batch():
    def source(number, reason=None):
        return Source(str(number), str(number), Place(str(number)), reason)

    mixed = [source(n, "none" if n % 3 == 0 else None) for n in range(10)]  # 1, 2, 4, 5, 7, 8 are images
    batches = [[int(each.path) for each in batch] for batch in divided(mixed, 2)]
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    none = [source(n, "none") for n in range(3 * MANY * 2)]
    assert [len(batch) for batch in divided(none, 2)] == [MANY * 2] * 3
    assert list(divided([], 4)) == []


def test_nothing_is_listed_before_it_is_asked_for(tmp_path, monkeypatch):
    for number in range(5):
        image(tmp_path / f"{number}" / "a.png")
    seen = []
    real = os.scandir
    monkeypatch.setattr(inputs.os, "scandir", lambda folder: seen.append(str(folder)) or real(folder))
    first = next(sources([str(tmp_path)]))
    assert first.inside == "0/a.png" and len(seen) == 2
