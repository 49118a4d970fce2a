"""Several processes at one feature store, and processes that are killed: no entry is lost."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from stored_entries import fill, values

from clip_ood.features import entries as entries_module
from clip_ood.features import merged
from clip_ood.features import segment as segment_module
from clip_ood.features.entries import Entries
from clip_ood.features.segment import is_whole
from clip_ood.files import writing as files

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]


def merge(folder, paths):
    code = f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
    code += "from pathlib import Path; from clip_ood.features.entries import Entries\n"
    code += f"Entries(Path({str(folder)!r})).merge([Path(p) for p in {[str(p) for p in paths]!r}])"
    forked.run([sys.executable, "-c", code], check=True)


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
from stored_entries import identities, row
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
    return forked.Popen([sys.executable, "-c", code], **pipes, env=environment, text=True)


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
