"""Whoever may read other new files may read all that a run writes."""

from __future__ import annotations

import os
from stat import S_IMODE

import judged_run
import pytest
import tiny_clip
import torch
from safetensors.torch import load_file

import detect
from clip_ood.callbacks.image_writer import Parts
from clip_ood.files.tensor_files import save_tensors


@pytest.fixture(params=[0o022, 0o007], ids=oct)
def mode(request):
    """The mode of new files under a umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def modes(folder):
    return {path.name: S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def test_tensors_follow_the_umask_and_a_file_that_is_replaced_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "x.safetensors"
    save_tensors({"a": torch.arange(3)}, path, {"about": "x"})
    assert S_IMODE(path.stat().st_mode) == mode and load_file(path)["a"].tolist() == [0, 1, 2]
    path.chmod(0o604)
    save_tensors({"a": torch.arange(2)}, path)
    assert S_IMODE(path.stat().st_mode) == 0o604 and load_file(path)["a"].tolist() == [0, 1]


def test_all_files_of_a_run_do(tmp_path, mode):
    root = tiny_clip.make(tmp_path)
    run = judged_run.make(root, "modes", detectors=["knn", "msp"])
    detect.main(["--run", str(run), "--with-encoder"])
    detect.main(["--run", str(run), "--export", str(root / "runs" / "graph.pt2")])
    found = modes(root / "runs") | modes(root / "features")
    del found["last.ckpt"]  # fsspec, which Lightning writes it by, takes the umask that the process began with
    assert {"state.safetensors", "bank-00000.safetensors", "image_encoder.safetensors", "graph.pt2"} <= found.keys()
    assert {name for name, its in found.items() if its != mode} == set()


def test_parts_of_an_attack_do(tmp_path, mode):
    parts = Parts(tmp_path, "key")
    parts.write("after", range(2), {"pixels": torch.zeros(2, 3)})
    assert set(modes(tmp_path).values()) == {mode}
