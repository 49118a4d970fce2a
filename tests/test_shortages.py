"""What a machine lacks is one line that names the file; a file that cannot be written leaves the one before it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import judged_run
import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image
from shortage_lab import bound_by_rights, full_disk
from torch.utils.data import DataLoader, Dataset

import detect
import eval as evaluation
from clip_ood.callbacks.image_writer import Parts
from clip_ood.command_line import answer
from clip_ood.data.inputs import sources
from clip_ood.experiments import extraction, set_aside
from clip_ood.experiments.study.values import write_values
from clip_ood.export.formats import FORMATS
from clip_ood.features.entries import Entries
from clip_ood.features.known_files import KnownFiles
from clip_ood.features.segment import StoreError
from clip_ood.features.store import FeatureStore
from clip_ood.files import download
from clip_ood.files.cache import NOWHERE, cache
from clip_ood.files.tensor_files import save_tensors
from clip_ood.files.writing import check_writable, write_text, written_text
from clip_ood.process.shortages import Shortage, lack
from clip_ood.report.page import write_page
from clip_ood.runs.going_on import stoppable
from clip_ood.runs.results_files import write_json, write_table
from clip_ood.runs.run_folder import choose_folder

pytestmark = pytest.mark.slow


def raised(work) -> Exception:
    with pytest.raises(Exception) as caught:
        work()
    return caught.value


def unloggable():
    """As Lightning's logger calls an error of the disk."""
    try:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a")
    except OSError as error:
        raise ValueError("you tried to log 3 which is currently not supported") from error


def store_error():
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise StoreError("features/images cannot be written; what is whole is kept") from error


def read_only():
    raise OSError(errno.EROFS, "Read-only file system", b"runs/a/report.html")


class Lacking(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "photos/a.jpg")


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda: write_text(Path("/dev/full/x"), "a"), None),
        (unloggable, "runs/a: No space left on device; free some room there, or name another folder"),
        (read_only, "runs/a/report.html: Read-only file system"),
        (store_error, "features/images cannot be written; what is whole is kept"),
        (lambda: np.empty(2**50), "the memory of this machine is full. Lower data.batch_size"),
        (lambda: torch.empty(2**55), "the memory of this machine is full. Lower data.batch_size"),
        (
            lambda: next(iter(DataLoader(Lacking(), num_workers=1))),
            "photos/a.jpg: Too many open files; raise their number",
        ),
        (lambda: {}["a fault of ours"], None),
    ],
)
def test_what_is_lacking_is_one_line(work, told):
    found = lack(raised(work))
    assert found is None if told is None else found.startswith(told) and "\n" not in found


def test_a_fault_of_ours_keeps_its_traceback():
    assert answer(KeyError("a")) is None and answer(MemoryError()) is not None


def test_the_way_on_is_told():
    def work():
        with stoppable(lambda: "Go on with: python train.py --resume"):
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "runs/a/results.json")

    error = raised(work)
    assert isinstance(error, Shortage) and answer(error).startswith("runs/a/results.json: Disk quota exceeded; ")
    assert answer(error).endswith("another folder. Go on with: python train.py --resume")


ROWS = [{"detector": "knn", "auroc": 0.5}]
WRITERS = {
    "results.json": lambda path: write_json(path, {"rows": []}),
    "results.csv": lambda path: write_table(path, []),
    "report.html": lambda path: write_page(path, "head.html.j2"),
    "state.safetensors": lambda path: save_tensors({"a": torch.ones(3)}, path),
    "study.csv": lambda path: write_values(path, [dict.fromkeys(("a", "auroc"))]),
}


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "report.html"])
def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path, name):
    path = tmp_path / name
    path.write_text("before")
    with full_disk():
        error = raised(lambda: WRITERS[name](path))
    assert lack(error).startswith(f"{path}: File too large")
    assert path.read_text() == "before" and [each.name for each in tmp_path.iterdir()] == [name]


def test_lines_that_cannot_be_written_name_their_file(tmp_path):
    def work():
        with full_disk(), written_text(tmp_path / "predictions.csv") as file:
            file.write("a\n" * 10**6)

    assert lack(raised(work)).startswith(f"{tmp_path}/predictions.csv: ") and not list(tmp_path.iterdir())


def test_a_part_of_an_attack_that_cannot_be_written_is_not_there(tmp_path):
    with full_disk():
        error = raised(lambda: Parts(tmp_path, "key").write("after", range(2), {"pixels": torch.zeros(2, 3)}))
    assert isinstance(error, OSError) and not list(tmp_path.iterdir())


def test_a_copy_that_cannot_be_written_is_not_there(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    with full_disk():
        error = raised(lambda: set_aside.Aside(tmp_path / "odd").take("a.png", str(tmp_path / "a.png"), None))
        in_shard = raised(
            lambda: set_aside.Aside(tmp_path / "odd").take("b.png", str(tmp_path / "a.png"), ["a.png", 0, 7])
        )
    assert isinstance(error, OSError) and isinstance(in_shard, OSError) and not list((tmp_path / "odd").iterdir())


def test_a_download_does_not_try_a_full_disk_again(tmp_path, monkeypatch):
    tries = []

    def go_on(*arguments):
        tries.append(arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_go_on", go_on)
    with pytest.raises(download.DownloadError, match=r"x\.tar\.part cannot be written \(No space left.* are kept"):
        download.download("https://example.org/x.tar", tmp_path / "x.tar", pause=0)
    assert len(tries) == 1


# Rights


def test_a_folder_for_runs_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs").chmod(0o555)
    (tmp_path / "runs" / "old").chmod(0o555)
    with bound_by_rights():
        for name in ("new", "old"):
            assert lack(raised(lambda name=name: choose_folder(tmp_path / "runs", name))).startswith(f"{tmp_path}/runs")


def test_a_folder_that_will_be_made_is_looked_for_above(tmp_path):
    check_writable(tmp_path / "a" / "b")
    tmp_path.chmod(0o555)
    with bound_by_rights():
        error = raised(lambda: check_writable(tmp_path / "a" / "b"))
    assert lack(error).startswith(f"{tmp_path}: Permission denied, so no file can be written there")


# Room


def test_a_store_without_room_is_told_before_it_is_filled(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, {"precision": "fp32", "model": "a"})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    store.check_writable(10**6)
    with pytest.raises(
        StoreError, match=r"has room for 1\.0 MB, and the features that are to come take 2\.0 MB: free some"
    ):
        store.check_writable(2 * 10**6)


# Caches


@pytest.mark.parametrize("place", ["/dev/null/x", "locked/x"])
def test_without_a_cache_what_files_hold_must_go_into_the_store(tmp_path, monkeypatch, place):
    (tmp_path / "locked").mkdir(mode=0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    stamps = np.arange(4, dtype=np.uint64).reshape(2, 2)
    (tmp_path / "store").mkdir(mode=0o555)
    with bound_by_rights():
        known = KnownFiles(tmp_path / "store")
        with pytest.raises(StoreError, match=r"store/files cannot be written .*Permission denied") as raised:
            known.remember(stamps, stamps)
        assert "Permission denied" in lack(raised.value) and not known.contents(stamps)[1].any()


def test_without_a_home_there_is_no_cache(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert cache() == NOWHERE and not Entries(NOWHERE / "files").segments


# Open files and memory


def test_too_many_open_files_say_nothing_of_a_folder(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    monkeypatch.setattr(
        os, "scandir", lambda folder: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files"))
    )
    with pytest.raises(OSError, match="Too many open files"):
        list(sources([str(tmp_path)]))


def test_too_many_open_files_say_nothing_of_a_segment(tmp_path, monkeypatch):
    entries = Entries(tmp_path)
    entries.add(np.ones((1, 2), np.uint64), {"features": torch.ones(1, 2)})
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(OSError, match="Too many open files"):
        Entries(tmp_path)


class Hungry:
    """Turns images into pixels, but for those of one colour, for which there is no memory."""

    def __init__(self, transform, work):
        self.transform, self.work = transform, work

    def __call__(self, image):
        return self.work() if image.size == (7, 7) else self.transform(image)


@pytest.mark.parametrize("work", [lambda: np.empty(2**50), lambda: torch.empty(2**55)], ids=["numpy", "torch"])
def test_an_image_without_memory_is_one_that_cannot_be_read_this_time(root, monkeypatch, work):
    folder = root / "data" / "big"
    if not folder.exists():
        shutil.copytree(root / "data" / "far", folder)
        Image.new("RGB", (7, 7)).save(folder / "big.png")
    config = tiny_clip.config(root, "big", {"zero_shot": {}}, **_with("big", root))
    run = root / "runs" / "big"
    created = extraction.create_backbone

    def hungry(spec):
        backbone = created(spec)
        backbone.transform = Hungry(backbone.transform, work)
        return backbone

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "create_backbone", hungry)
        evaluation.main(["--config", config, "--overwrite"])
    assert "big.png,there was not enough memory for it" in (run / "unreadable.csv").read_text()
    evaluation.main(["--config", config, "--overwrite"])
    assert not (run / "unreadable.csv").exists()
    shutil.rmtree(root / "features")


def _with(ood, root):
    return {"data": {"root": f"{root}/data", "id": "id", "ood": {"big": ood}, "batch_size": 8}, "detectors": ["knn"]}


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_graph_that_cannot_be_written_is_not_there(root, suffix, monkeypatch):
    run = judged_run.make(root, f"graph{suffix[1:]}", detectors=["knn"])
    out = root / f"model{suffix}"
    kind = FORMATS[suffix]
    write = kind.write

    def on_full_disk(*arguments):
        with full_disk():
            write(*arguments)

    detect.main(["--run", str(run), "--export", str(out)])
    assert out.stat().st_size and kind.load(out)
    out.unlink()
    monkeypatch.setattr(kind, "write", staticmethod(on_full_disk))
    error = raised(lambda: detect.main(["--run", str(run), "--export", str(out)]))
    assert lack(error).startswith(f"{out}: File too large") and not list(root.glob(f"*model{suffix}*"))
