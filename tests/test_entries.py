"""Segments of the feature store: whole or not there, found by identity, merged without a loss."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from stored_entries import fill, identities, values

from clip_ood.features import entries as entries_module
from clip_ood.features.entries import Entries
from clip_ood.features.identity import find
from clip_ood.features.rows import Rows
from clip_ood.features.segment import Failure, is_whole, open_segment, write_segment


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


def test_a_failure_of_a_version_that_wrote_its_reason_alone_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    write_segment(path, identities([1]), {"features": [torch.ones(1, 2)]}, {"errors": {"0": "torn"}, "made_with": []})
    assert Entries(tmp_path).failures(identities([2, 1])) == {1: ("torn", "")}


def test_entries_can_be_forgotten(tmp_path):
    entries = Entries(tmp_path)
    fill(entries, [1, 2], [3, 4], [5])
    entries.remove(identities([2, 5, 9]))
    assert entries.has(identities([1, 2, 3, 4, 5]), ["features"]).tolist() == [True, False, True, True, False]


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


# Merging


def test_an_entry_that_comes_twice_is_stored_once(tmp_path, monkeypatch):
    monkeypatch.setattr(entries_module, "SMALL", 1)
    entries = Entries(tmp_path)
    fill(entries, [1, 2, 1], [2, 3])
    entries.refresh()
    assert len(entries) == 4
    entries.merge()
    assert len(entries) == 3 and values(entries, [1, 2, 3]) == [1, 2, 3]


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


@pytest.mark.slow
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


def test_what_was_added_is_seen_by_who_added_it_and_merged_once_it_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(entries_module, "LARGE", 10)
    entries = Entries(tmp_path)
    fill(entries, [1, 2, 3], [4, 5, 6])
    assert values(entries, [5, 1]) == [5, 1] and len(entries.segments) == 2
    fill(entries, [7, 8, 9, 10])
    assert [len(segment) for segment in entries.segments] == [10] and values(entries, [10, 1]) == [10, 1]
