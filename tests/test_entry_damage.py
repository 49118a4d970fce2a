"""Segments of the feature store that are damaged or cannot be written: what is whole is kept, and what is not is named."""

from __future__ import annotations

import resource

import pytest
import torch
from stored_entries import fill, identities, values

from clip_ood.experiments.commands import features as command
from clip_ood.features import entries as entries_module
from clip_ood.features.entries import Entries
from clip_ood.features.segment import StoreError, is_whole, write_segment


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


def test_a_write_that_fails_names_the_file(tmp_path):
    (tmp_path / "images").write_bytes(b"a file where the folder should be")
    with pytest.raises(OSError, match="images"):
        write_segment(tmp_path / "images" / "x.safetensors", identities([1]), {"features": [torch.ones(1, 2)]}, {})


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


def test_a_link_to_nothing_is_named_and_passed_over(tmp_path):
    said = []
    fill(Entries(tmp_path), [1])
    (tmp_path / "z.safetensors").symlink_to(tmp_path / "nowhere")
    entries = Entries(tmp_path, said.append)
    assert values(entries, [1]) == [1] and len(said) == 1 and "z.safetensors" in said[0]
