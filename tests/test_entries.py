"""Segments of the feature store: whole or not there, found by identity, merged without a loss, damage noticed."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from clip_ood.experiments.commands import features as command
from clip_ood.features import entries as entries_module
from clip_ood.features import merged
from clip_ood.features import segment as segment_module
from clip_ood.features.entries import Entries
from clip_ood.features.identity import find, identity_of, pairs
from clip_ood.features.rows import Rows
from clip_ood.features.segment import Failure, StoreError, is_whole, open_segment, write_segment
from clip_ood.files import writing as files

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]


def identities(names):
    return pairs([identity_of(str(name)) for name in names])


def row(name, width=3):
    """What the entry of a name holds."""
    return torch.full((width,), float(name))


def fill(entries, *groups, **more):
    """A segment a group of names."""
    return [
        entries.add(identities(group), {"features": torch.stack([row(n) for n in group])}, **more) for group in groups
    ]


def values(entries, names):
    rows = entries.rows(identities(names), ["features"])["features"]
    return rows.take(torch.arange(len(names)))[:, 0].tolist()


@pytest.mark.parametrize("indices", [[], [5], [9, 0, 4, 3], [2, 2, 7, 2], list(range(10))], ids=str)
@pytest.mark.parametrize("sizes", [(10,), (4, 4, 2), (1, 7, 2), (1,) * 10], ids=str)
@pytest.mark.parametrize("placed", [False, True])
def test_take_is_indexing(sizes, indices, placed):
    stored = torch.randn(10, 3)
    places = torch.randperm(10) if placed else None
    whole = stored if places is None else stored[places]
    rows = Rows(stored.split(sizes), places)
    assert len(rows) == 10 and rows.width == 3
    indices = torch.tensor(indices, dtype=torch.long)
    assert torch.equal(rows.take(indices), whole[indices])
    assert torch.equal(torch.cat(list(rows.blocks(4))), whole)


def test_find_is_a_loop_even_where_first_halves_are_shared():
    generator = np.random.default_rng(0)
    there = np.unique(generator.integers(0, 6, (30, 2)).astype(np.uint64), axis=0)
    wanted = generator.integers(0, 7, (200, 2)).astype(np.uint64)
    known = {tuple(pair): place for place, pair in enumerate(there.tolist())}
    assert find(there[:, 0], there[:, 1], wanted).tolist() == [known.get(tuple(pair), -1) for pair in wanted.tolist()]
    nothing = np.empty(0, np.uint64)
    assert find(nothing, nothing, wanted).tolist() == [-1] * 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool], ids=str)
def test_what_is_written_is_what_is_opened(tmp_path, dtype):
    arrays = {"features": torch.randn(5, 3).to(dtype), "layers.11": torch.randn(5, 2, 2).to(dtype)}
    path = Entries(tmp_path).add(identities("abcde"), arrays, {1: Failure("torn", "Pillow")}, {"torch": "2"})
    found = open_segment(path)
    rows = torch.from_numpy(found.rows_of(identities("abcde")))
    assert all(torch.equal(found.arrays[name][rows], arrays[name]) for name in arrays)
    assert np.array_equal(found.identities[rows.numpy()], identities("abcde"))
    assert found.about == {"errors": {"1": ("torn", "Pillow")}, "made_with": [{"torch": "2"}]}
    assert is_whole(path) and found.rows_of(identities("xa")).tolist() == [-1, 0]
    with safe_open(path, "pt") as file:  # an ordinary safetensors file
        assert set(file.keys()) == {"first", "second", "order", "features", "layers.11", "checksum"}


def test_entries_are_found_in_any_order_over_segments_and_others_are_not(tmp_path):
    entries = Entries(tmp_path)
    fill(entries, [1, 2, 3], [4], [5, 6])
    entries.refresh()
    assert values(entries, [6, 1, 4, 1]) == [6, 1, 4, 1]
    assert entries.has(identities([3, 7, 5]), ["features"]).tolist() == [True, False, True]
    assert entries.has(identities([3]), ["features", "layers.11"]).tolist() == [False]
    with pytest.raises(KeyError, match="1 of 2 entries have no features"):
        entries.rows(identities([1, 9]), ["features"])


def test_arrays_are_added_later_and_leave_the_others_as_they_are(tmp_path):
    entries = Entries(tmp_path)
    (path,) = fill(entries, [1, 2, 3])
    before = path.read_bytes()
    entries.add(identities([2, 3]), {"layers.11": torch.tensor([[20.0], [30.0]])})
    entries.refresh()
    assert entries.has(identities([1, 2, 3]), ["features", "layers.11"]).tolist() == [False, True, True]
    assert entries.rows(identities([3, 2]), ["layers.11"])["layers.11"].take(torch.arange(2)).tolist() == [[30], [20]]
    assert path.read_bytes() == before and values(entries, [1, 2, 3]) == [1, 2, 3]


def test_errors_are_kept_through_merges(tmp_path, monkeypatch):
    monkeypatch.setattr(entries_module, "SMALL", 1)
    entries = Entries(tmp_path)
    fill(entries, [1, 2], failures={1: Failure("torn", "Pillow 1")})
    fill(entries, [3, 4], failures={0: Failure("empty", "Pillow 2")})
    for _ in range(2):
        entries.refresh()
        assert entries.failures(identities([4, 3, 2, 1])) == {1: ("empty", "Pillow 2"), 2: ("torn", "Pillow 1")}
        entries.merge()
    assert len(entries.segments) == 1


def test_an_entry_that_comes_twice_is_stored_once(tmp_path, monkeypatch):
    monkeypatch.setattr(entries_module, "SMALL", 1)
    entries = Entries(tmp_path)
    fill(entries, [1, 2, 1], [2, 3])
    entries.refresh()
    assert len(entries) == 4
    entries.merge()
    assert len(entries) == 3 and values(entries, [1, 2, 3]) == [1, 2, 3]


def test_small_segments_become_few_large_ones(tmp_path, monkeypatch):
    """A thousand small additions stay within the limit, and none is lost."""
    monkeypatch.setattr(entries_module, "LARGE", 100)
    entries = Entries(tmp_path)
    for number in range(1000):
        fill(entries, [number])
        if number % 20 == 19:
            entries.merge()
        assert number % 20 or len(list(tmp_path.glob("*.safetensors"))) <= 64 + 20 + 10
    entries.merge()
    assert values(entries, range(1000)) == list(range(1000))
    assert all(is_whole(segment.path) for segment in entries.segments)
    assert len(entries.segments) <= 1000 // 100 + entries_module.SMALL


def test_a_merge_is_of_the_segments_that_are_named(tmp_path):
    entries = Entries(tmp_path)
    paths = fill(entries, [1], [2], [3])
    entries.merge(paths[:2])
    assert sorted(map(len, entries.segments)) == [1, 2] and paths[2].exists() and not paths[0].exists()


def test_entries_can_be_forgotten(tmp_path):
    entries = Entries(tmp_path)
    fill(entries, [1, 2], [3, 4], [5])
    entries.remove(identities([2, 5, 9]))
    assert entries.has(identities([1, 2, 3, 4, 5]), ["features"]).tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("limit", [64, 100_000])
def test_a_full_disk_is_an_error_that_leaves_nothing_behind(tmp_path, limit):
    entries = Entries(tmp_path)
    fill(entries, [1, 2])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # no file may grow beyond
    try:
        with pytest.raises(StoreError, match=rf"{tmp_path} cannot be written .* what is whole is kept"):
            entries.add(identities([3]), {"features": torch.randn(1, 50_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    entries.refresh()
    assert entries.has(identities([1, 2, 3]), ["features"]).tolist() == [True, True, False]
    assert len(list(tmp_path.iterdir())) == 1


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("place", [20, 300, -100, -1])
def test_a_flipped_bit_is_noticed(tmp_path, capsys, place):
    paths = fill(Entries(tmp_path / "files"), [1, 2], [3, 4])
    write_segment(tmp_path / "models" / "mine.safetensors", identities([1]), {"x": [torch.ones(1)]}, {})
    flip(tmp_path / "models" / "mine.safetensors", -1)  # not of the store
    flip(paths[0], place)
    assert not is_whole(paths[0]) and is_whole(paths[1])
    with pytest.raises(SystemExit, match="1"):
        command.main(["check", "--root", str(tmp_path)])
    assert f"{paths[0]} is damaged" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        command.main(["check", "--root", str(tmp_path), "--repair"])
    entries = Entries(tmp_path / "files")
    assert entries.has(identities([1, 2, 3, 4]), ["features"]).tolist() == [False, False, True, True]
    assert (tmp_path / "models" / "mine.safetensors").exists()


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(path.read_bytes()[:-5]), lambda path: path.write_bytes(b"")]
)
def test_a_segment_that_cannot_be_mapped_is_named_once_and_its_entries_are_missing(tmp_path, damage):
    said = []
    paths = fill(Entries(tmp_path), [1, 2], [3, 4])
    damage(paths[0])
    entries = Entries(tmp_path, said.append)
    entries.refresh()
    assert entries.has(identities([1, 2, 3, 4]), ["features"]).tolist() == [False, False, True, True]
    assert len(said) == 1 and f"{paths[0]} is damaged" in said[0] and "made again" in said[0]


def test_damage_that_a_merge_finds_is_set_aside_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(entries_module, "SMALL", 0)
    said = []
    entries = Entries(tmp_path, said.append)
    paths = fill(entries, [1], [2], [3])
    flip(paths[1], -20)
    entries.merge()
    for each in (entries, Entries(tmp_path)):
        assert each.has(identities([1, 2, 3]), ["features"]).tolist() == [True, False, True]
    assert said == [f"{paths[1]} is damaged: its entries are made again by the next run"]


def test_damage_is_not_copied_where_entries_are_forgotten(tmp_path):
    entries = Entries(tmp_path, lambda line: None)
    paths = fill(entries, [1, 2, 3])
    flip(paths[0], -20)
    entries.remove(identities([1]))
    assert not entries.has(identities([1, 2, 3]), ["features"]).any() and not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("place", ["write_segment", "FileLock"])
def test_a_merge_that_fails_ends_no_run(tmp_path, monkeypatch, error, place):
    said = []
    entries = Entries(tmp_path, said.append)
    paths = fill(entries, [1], [2])

    def fail(*arguments, **more):
        raise error

    monkeypatch.setattr(entries_module, place, fail)
    entries.merge(paths)
    entries.refresh()
    assert values(entries, [1, 2]) == [1, 2] and ("could not be merged" in "".join(said)) == (place == "write_segment")


def test_a_link_to_nothing_is_named_and_passed_over(tmp_path):
    said = []
    fill(Entries(tmp_path), [1])
    (tmp_path / "z.safetensors").symlink_to(tmp_path / "nowhere")
    entries = Entries(tmp_path, said.append)
    assert values(entries, [1]) == [1] and len(said) == 1 and "z.safetensors" in said[0]


def test_what_a_killed_run_left_goes_and_what_another_one_writes_stays(tmp_path):
    entries = Entries(tmp_path)
    fill(entries, [1], [2])
    left = tmp_path / "x.safetensors.0.tmp"
    left.write_bytes(b"half")
    with files.written_whole(tmp_path / "y.safetensors") as file:
        running = Path(file.name)
        file.write(b"half")
        entries.merge([])
        assert not left.exists() and running.exists()
    assert not running.exists()


def test_a_merge_in_between_is_no_loss(tmp_path, monkeypatch):
    """Files that are listed and gone when they are opened were merged: the listing is taken again."""
    paths = fill(Entries(tmp_path), [1], [2])
    opened, first = [], segment_module.open_segment

    def slow(path):
        if not opened:
            opened.append(path)
            merge(tmp_path, paths)
        return first(path)

    monkeypatch.setattr(entries_module, "open_segment", slow)
    entries = Entries(tmp_path)
    assert values(entries, [1, 2]) == [1, 2] and len(entries.segments) == 1


def merge(folder, paths):
    code = f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
    code += "from pathlib import Path; from clip_ood.features.entries import Entries\n"
    code += f"Entries(Path({str(folder)!r})).merge([Path(p) for p in {[str(p) for p in paths]!r}])"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_process_maps_the_files_anew(tmp_path):
    entries = Entries(tmp_path)
    fill(entries, [1, 2])
    entries.refresh()
    copy = pickle.loads(pickle.dumps(entries))
    assert len(pickle.dumps(entries)) < 1000 and values(copy, [2, 1]) == [2, 1]


WRITER = """
import os, sys, time
sys.path.insert(0, {project!r})
import torch
from pathlib import Path
sys.path.insert(0, {project!r} + "/tests")
from clip_ood.features import entries as module
from test_entries import identities, row
module.LARGE, module.SMALL = 40, 3
entries = module.Entries(Path({folder!r}))
for number in range({first}, {last}):
    names = [number * 4 + i for i in range(4)]
    entries.add(identities(names), {{"features": torch.stack([row(n) for n in names])}})
    print(number, flush=True)
    if number % 5 == 4:
        entries.merge()
"""


def writer(folder, first, last):
    code = WRITER.format(project=str(PROJECT), folder=str(folder), first=first, last=last)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], **pipes, env=environment, text=True)


def test_three_writers_at_once_lose_nothing(tmp_path):
    for process in [writer(tmp_path, 20 * n, 20 * n + 20) for n in range(3)]:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    entries = Entries(tmp_path)
    assert values(entries, range(240)) == list(range(240)) and all(is_whole(each.path) for each in entries.segments)


@pytest.mark.parametrize("after", [0, 3, 5, 9, 14])
def test_a_kill_while_segments_are_written_and_merged_loses_nothing_that_was_whole(tmp_path, after):
    process = writer(tmp_path, 0, 1000)
    said = [process.stdout.readline() for _ in range(after + 1)]
    time.sleep(0.003 * (after % 4))
    process.send_signal(signal.SIGKILL)
    said += process.communicate()[0].splitlines()
    done = 4 * (1 + max(int(line) for line in said if line.strip()))
    entries = Entries(tmp_path)
    assert values(entries, range(done)) == list(range(done))
    entries.merge([segment.path for segment in entries.segments])
    assert values(entries, range(done)) == list(range(done))
    assert not list(tmp_path.glob("*.tmp"))


def resident():
    """Bytes of this process that are in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def sparse_segment(path, ids, width):
    """A segment whose features are a hole of zeros (float32); its checksum is none."""
    order = np.argsort(ids[:, 0], kind="stable")
    ours = [ids[order, 0].tobytes(), ids[order, 1].tobytes(), order.astype(np.int64).tobytes()]
    size, start = len(ids) * width * 4, len(ids) * 24
    header = {"__metadata__": {"about": json.dumps({"errors": {}, "made_with": []})}}
    for number, name in enumerate(("first", "second", "order")):
        header[name] = {
            "dtype": "I64",
            "shape": [len(ids)],
            "data_offsets": [len(ids) * 8 * number, len(ids) * 8 * (number + 1)],
        }
    header["features"] = {"dtype": "F32", "shape": [len(ids), width], "data_offsets": [start, start + size]}
    header["checksum"] = {"dtype": "U8", "shape": [16], "data_offsets": [start + size, start + size + 16]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded + b"".join(ours))
        file.truncate(8 + len(encoded) + start + size + 16)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read memory from")
def test_opening_maps(tmp_path):
    width = 75_000
    sparse_segment(tmp_path / "large.safetensors", identities(range(1024)), width)  # 307 MB of zeros
    before = resident()
    entries = Entries(tmp_path)
    taken = entries.rows(identities([1000, 3]), ["features"])["features"].take(torch.arange(2))
    assert taken.shape == (2, width) and not taken.any()
    assert resident() - before < 30e6


def test_a_write_that_fails_names_the_file(tmp_path):
    (tmp_path / "images").write_bytes(b"a file where the folder should be")
    with pytest.raises(OSError, match="images"):
        write_segment(tmp_path / "images" / "x.safetensors", identities([1]), {"features": [torch.ones(1, 2)]}, {})


def test_an_entry_of_two_runs_is_stored_once_even_beside_large_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(entries_module, "SMALL", 1)
    first, second = Entries(tmp_path), Entries(tmp_path)  # which do not see one another's additions
    fill(first, range(20))
    fill(second, range(15, 24))
    fill(second, [30])
    monkeypatch.setattr(entries_module, "LARGE", 20)
    first.merge()
    assert sorted(map(len, first.segments)) == [5, 20]
    assert values(first, [*range(24), 30]) == [*range(24), 30]


def test_what_was_added_is_seen_by_who_added_it_and_merged_once_it_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(entries_module, "LARGE", 10)
    entries = Entries(tmp_path)
    fill(entries, [1, 2, 3], [4, 5, 6])
    assert values(entries, [5, 1]) == [5, 1] and len(entries.segments) == 2
    fill(entries, [7, 8, 9, 10])
    assert [len(segment) for segment in entries.segments] == [10] and values(entries, [10, 1]) == [10, 1]


def test_on_a_network_file_system_what_was_merged_goes_a_day_later(tmp_path, monkeypatch):
    """Where another machine has a segment mapped: there it would end the run."""
    monkeypatch.setattr(merged, "file_system", lambda folder: "nfs4")
    entries = Entries(tmp_path)
    paths = fill(entries, [1], [2])
    entries.merge(paths)
    kept = [path.with_name(path.name + ".merged") for path in paths]
    assert all(path.exists() for path in kept) and not any(path.exists() for path in paths)
    assert values(Entries(tmp_path), [1, 2]) == [1, 2]
    entries.merge([])
    assert all(path.exists() for path in kept)
    monkeypatch.setattr(merged, "KEPT", -1)
    entries.merge([])
    assert not any(path.exists() for path in kept) and values(Entries(tmp_path), [1, 2]) == [1, 2]


def test_the_file_system_of_a_folder_is_that_of_the_nearest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    place = str(tmp_path).replace(" ", "\\040")
    mounts.write_text(
        f"overlay / overlay rw 0 0\nserver:/x {place}/data nfs4 rw 0 0\ntmpfs {place}/data/quick tmpfs rw 0 0\n"
        f"server:/y {place}/two\\040words cifs rw 0 0\n"
    )
    found = [
        merged.file_system(tmp_path / name, mounts) for name in ("", "data", "data/quick/a", "database", "two words")
    ]
    assert found == ["overlay", "nfs4", "tmpfs", "overlay", "cifs"]
    assert merged.file_system(tmp_path, tmp_path / "nowhere") == ""


def test_a_failure_of_a_version_that_wrote_its_reason_alone_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    write_segment(path, identities([1]), {"features": [torch.ones(1, 2)]}, {"errors": {"0": "torn"}, "made_with": []})
    assert Entries(tmp_path).failures(identities([2, 1])) == {1: ("torn", "")}
