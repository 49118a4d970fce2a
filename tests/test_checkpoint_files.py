"""The last checkpoint of a run stands until the next one is whole."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import forked
import pytest
import torch

from clip_ood.experiments.checkpoints import WholeCheckpoints

PROJECT = Path(__file__).parents[1]
WRITER = """
import os, signal, sys
sys.path.insert(0, {project!r})
import torch
from clip_ood.experiments.checkpoints import WholeCheckpoints

torch.save = lambda content, file: (file.write(b"half of it"), file.flush(), os.kill(os.getpid(), signal.SIGKILL))
WholeCheckpoints().save_checkpoint({{"epoch": 2}}, {path!r})
"""


def epoch(path):
    return torch.load(path, weights_only=True)["epoch"]


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"epoch": 1}, path)
    killed = forked.run([sys.executable, "-c", WRITER.format(project=str(PROJECT), path=str(path))])
    assert killed.returncode == -signal.SIGKILL and epoch(path) == 1 and len(os.listdir(path.parent)) == 2
    WholeCheckpoints().save_checkpoint({"epoch": 3}, path)
    assert epoch(path) == 3 and os.listdir(path.parent) == ["last.ckpt"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"epoch": 1}, str(path))

    def full(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"No space left on device.*last\.ckpt"):
            WholeCheckpoints().save_checkpoint({"epoch": 2}, path)
    assert epoch(path) == 1 and os.listdir(tmp_path) == ["last.ckpt"]


def test_no_temporary_folder_of_the_system_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    WholeCheckpoints().save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    assert epoch(tmp_path / "last.ckpt") == 1
