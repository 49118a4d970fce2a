"""detect.py --shard: processes that know nothing of each other judge the parts of the inputs, and one writes what one alone would."""

from __future__ import annotations

import shutil
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
from judged_run import judged

import detect
from clip_ood.callbacks.prediction_writer import PredictionParts
from clip_ood.config.new_files import alone_at_file
from clip_ood.config.shard import Shard
from clip_ood.data.inputs import sources
from clip_ood.datamodules.new_images import NewImages
from clip_ood.errors import ConfigError
from clip_ood.experiments import detect as conducting
from clip_ood.lightning_modules.prediction import PredictionModule
from clip_ood.process.locks import InUse

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(conducting, "BATCHES", 1)


@pytest.fixture
def seen(monkeypatch):
    """The parts whose batches are judged, in order."""
    real, found = PredictionModule.predict_step, []
    monkeypatch.setattr(PredictionModule, "predict_step", lambda *a: found.append(a[1].batch.part) or real(*a))
    return found


@pytest.fixture
def images(root, tmp_path):
    """Two folders, and a file that is no image between them."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    return [root / "data" / "id", tmp_path / "bad.png", root / "data" / "near"]


def shard(number: int, of: int, *arguments) -> None:
    """Judges one shard."""
    detect.main([*map(str, arguments), "--shard", f"{number}/{of}"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("of", [1, 3])
def test_shards_give_the_file_of_one_process(run, images, tmp_path, seen, of, suffix):
    one, out = tmp_path / f"one{suffix}", tmp_path / f"out{suffix}"
    judged("--run", run, *images, "--out", one)
    every, judged_by = seen[:], []
    for number in reversed(range(of)):
        seen.clear()
        shard(number, of, "--run", run, *images, "--out", out)
        judged_by.append(seen[:])
        assert not out.exists()
    assert sorted(part for parts in judged_by for part in parts) == every and len(every) == len(set(every))
    assert max(map(len, judged_by)) - min(map(len, judged_by)) <= 1
    seen.clear()
    judged("--run", run, *images, "--out", out)
    assert not seen and out.read_bytes() == one.read_bytes()
    assert (tmp_path / f"out{suffix}.unreadable.csv").read_bytes() == (
        tmp_path / f"one{suffix}.unreadable.csv"
    ).read_bytes()
    assert not (tmp_path / f"out{suffix}.parts").exists()


def test_who_joins_decides_over_all_images_and_sets_flagged_ones_aside(run, images, tmp_path):
    command = ["--run", run, *images, "--fdr", "0.5"]
    judged(*command, "--out", tmp_path / "one.csv", "--copy-ood", tmp_path / "one")
    command += ["--out", tmp_path / "out.csv", "--copy-ood", tmp_path / "two"]
    shard(0, 2, *command)
    shard(1, 2, *command)
    assert not (tmp_path / "two").exists()
    judged(*command)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert b",true," in (tmp_path / "out.csv").read_bytes()
    assert sorted(each.name for each in (tmp_path / "one").rglob("*.png")) == sorted(
        each.name for each in (tmp_path / "two").rglob("*.png")
    )


def test_who_joins_judges_what_a_shard_has_left(run, images, tmp_path, seen, capsys):
    judged("--run", run, *images, "--out", tmp_path / "one.csv")
    every = seen[:]
    shard(1, 2, "--run", run, *images, "--out", tmp_path / "out.csv")
    assert "Next: when all shards are judged, write" in (told := capsys.readouterr().err)
    assert "Shard 1/2 is judged" in told and "--shard" not in told.partition("Next:")[2]
    seen.clear()
    judged("--run", run, *images, "--out", tmp_path / "out.csv")
    assert seen == every[::2] and (tmp_path / "out.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_parts_of_other_settings_are_told(run, images, tmp_path, capsys):
    shard(0, 2, "--run", run, *images, "--out", tmp_path / "out.csv", "--accept", "0.8")
    judged("--run", run, *images, "--out", tmp_path / "out.csv")
    assert "were of other inputs or settings, and were judged anew" in capsys.readouterr().err


@pytest.mark.parametrize("world, of", [(1, 1), (1, 4), (2, 3), (3, 5)])
def test_devices_and_shards_have_each_part_once(root, world, of):
    parts = []
    for shard in range(of):
        for rank in range(world):
            data = NewImages(
                lambda: sources([str(root / "data")]), lambda *a: False, None, 2, 2, 0, shard=Shard(shard, of)
            )
            data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
            parts += [batch.part for batch in data.batches() if batch.last]
    assert sorted(parts) == list(range(data.parts)) and data.parts > of * world


@pytest.mark.parametrize(
    "given, told",
    [
        (["--shard", "4/4"], "0/4 to 3/4"),
        (["--shard", "1"], "must be I/N"),
        (["--shard", "0/0"], "1 shard or more"),
        (["--shard", "-1/2"], "--shard"),
    ],
)
def test_wrong_shards_are_refused(given, told, run, images, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        detect.main(["--run", str(run), str(images[0]), "--out", str(tmp_path / "a.csv"), *given])
    assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize(
    "more", [[], ["--out", "a.csv", "-"], ["--out", "a.csv", "--adapt", "oodd", "--memory", "a.safetensors"]]
)
def test_what_has_no_shards_is_refused(more, run, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--shard"):
        detect.main(["--run", str(run), str(images[0]), "--shard", "0/2", *more])


def hold(arguments, entered, leave) -> None:
    """Works as another process at a shard."""
    with alone_at_file(arguments):
        entered.set()
        leave.wait(60)


@pytest.fixture
def other_shard(tmp_path):
    """Another process judges shard 1 of 2 of out.csv."""
    context = get_context("spawn")
    entered, leave = context.Event(), context.Event()
    arguments = SimpleNamespace(out=tmp_path / "out.csv", export=None, shard=Shard(1, 2), overwrite=False)
    process = context.Process(target=hold, args=(arguments, entered, leave))
    process.start()
    assert entered.wait(60)
    yield
    leave.set()
    process.join()


def test_shards_work_beside_each_other_and_nobody_joins_meanwhile(run, images, tmp_path, monkeypatch, other_shard):
    monkeypatch.setattr("clip_ood.process.locks.PATIENCE", 0.2)
    command = ["--run", str(run), str(images[0]), "--out", str(tmp_path / "out.csv")]
    shard(0, 2, *command)
    assert PredictionParts(tmp_path / "out.csv.parts", "").path(0).is_file()
    with pytest.raises(InUse, match=r"out\.csv is in use"):
        detect.main(command)
    with pytest.raises(InUse, match="this shard is being judged"):
        shard(1, 2, *command)


def test_a_file_that_is_there_is_kept(run, images, tmp_path):
    shutil.copy(images[1], tmp_path / "out.csv")
    with pytest.raises(ConfigError, match="is there already"):
        detect.main(["--run", str(run), str(images[0]), "--out", str(tmp_path / "out.csv"), "--shard", "0/2"])
