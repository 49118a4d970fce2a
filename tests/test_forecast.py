"""--plan: what a run would find, need and stop for, told before it begins; what it reckons is what a run then writes."""

from __future__ import annotations

import json
import shutil
import socket
from collections import namedtuple

import pytest
import replica
import tiny_clip
import yaml
from test_studies import LINES

import eval as evaluation
import study
import train
from clip_ood.config.loading import load_config
from clip_ood.detectors.names import read_specs
from clip_ood.experiments.forecast import space
from clip_ood.experiments.forecast.forecast import Forecast, look_ahead
from clip_ood.experiments.forecast.runs import single_runs

PROBE = {"linear_probe": {"epochs": 2, "batch_size": 16}}
FINETUNE = {"finetune": {"epochs": 2, "warmup_epochs": 0, "batch_size": 8}}
DISK = namedtuple("DISK", "total used free")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A tiny encoder with images, where nothing may go to the net."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("something was asked for"))
    return tiny_clip.make(tmp_path)


def planned(main, capsys, *arguments):
    """The exit status, and what is printed: the lines, folded cells apart."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--plan"])
    return ended.value.code, capsys.readouterr().out


def row(out, name):
    """The cells of the first line that begins so."""
    return next(line.split() for line in out.splitlines() if line.split()[:1] == [name])


def forecast_of(path, *options):
    config = load_config(path, list(options))
    return look_ahead(single_runs(config.name, config, config.runs_root / config.name, None, False), Forecast())


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tree(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in sorted(folder.rglob("*"))}


def test_all_is_told_and_nothing_is_written(root, capsys):
    config = tiny_clip.config(root, "run", PROBE, detectors=["knn", "msp"])
    before = tree(root)
    status, out = planned(train.main, capsys, "--config", config, "--trainer.devices=3")
    assert status == 0 and tree(root) == before
    assert row(out, "id") == ["id", "there", "46", "46"] and row(out, "ood.lone") == ["ood.lone", "there", "1", "1"]
    images, work = [line.split() for line in out.splitlines() if line.split()[:1] == ["run"] and "train" not in line]
    assert images == ["run", "32", "0", "14", "32"] and work[:3] == ["run", "11", "2"]  # 32 among 3; 2 batches of 16
    assert "32 16 63 63" in " ".join(out.split())  # widths of g and h, images to read and to encode
    assert "Processes: 3 (trainer.devices=3, trainer.num_nodes=1), which read about 21 images each" in out
    assert "detect.py will not be able to judge images by this run" in out
    assert out.splitlines()[-1] == "The run would start."
    assert max(map(len, out.split("Processes")[0].splitlines())) <= 80


@pytest.mark.parametrize("method", [PROBE, FINETUNE, {"plp": {"epochs": 2, "batch_size": 16, "min_confidence": 0.0}}])
def test_what_is_reckoned_is_what_a_run_writes(root, method):
    config = tiny_clip.config(root, "run", method)
    forecast = forecast_of(config)
    train.main(["--config", config])
    (expected,), (encoder,) = forecast.runs, forecast.encoders
    checkpoint = (root / "runs/run/checkpoints/last.ckpt").stat().st_size
    assert expected.checkpoint < checkpoint < 1.1 * expected.checkpoint + 25_000  # names, and what a zip file adds
    assert (
        encoder.to_read == 63
        and encoder.to_encode == (0 if method is FINETUNE else 63)
        and encoder.size < size_of(root / "features") < encoder.size + 25_000
    )
    assert size_of(root / "runs/run/detector") < expected.detector + 25_000
    assert (
        root / "runs/run/scores.parquet"
    ).stat().st_size < expected.scores + 25_000  # and what parquet says of columns
    assert expected.scores == (14 + 9 + 7 + 1) * (space.ROW + 8 * len(read_specs(None)))  # images that are scored
    again = forecast_of(config)
    assert again.encoders[0].to_read == 0 and again.encoders[0].size == 0
    assert again.encoders[0]._strings == {}


def test_a_bank_is_reckoned_where_a_detector_searches_it(root):
    with_bank, without = (
        forecast_of(tiny_clip.config(root, "run", {"zero_shot": {}}, detectors=[name])) for name in ("knn", "mcm")
    )
    assert with_bank.runs[0].detector - without.runs[0].detector == 32 * (32 * 4 + 8)


def test_heads_of_a_sweep_lie_in_its_checkpoint(root):
    swept = {"linear_probe": PROBE["linear_probe"] | {"sweep": {"lr": [1e-3, 1e-2, 1e-1]}}}
    data = {"root": f"{root}/data", "id": "id", "splits": {"val": 0.2, "test": 0.3}, "batch_size": 8}
    config = tiny_clip.config(root, "run", swept, data=data)
    expected = forecast_of(config).runs[0].checkpoint
    train.main(["--config", config])
    assert expected < (root / "runs/run/checkpoints/last.ckpt").stat().st_size < 1.1 * expected + 25_000


def imagenet(root, *options):
    encoder = json.dumps({"model": f"local-dir:{root}/clip"})
    own = (f"--data.root={root}/images", f"--runs_root={root}/runs", f"--features_root={root}/features")
    return ["--config", "plp_vitg.yaml", f"--backbone={encoder}", *own, *options]


def test_a_whole_and_a_half_downloaded_imagenet(root, capsys):
    replica.imagenet(root / "images")
    status, out = planned(train.main, capsys, *imagenet(root, "--data.allow_partial=true"))
    assert status == 0 and row(out, "id.train") == ["id.train", "incomplete", "80", "1,281,167", "80"]
    shutil.rmtree(root / "images/SUN")
    status, out = planned(train.main, capsys, *imagenet(root))
    assert status == 1 and out.splitlines()[-1] == "The run would stop, for the 8 reasons above."
    assert row(out, "ood.sun") == ["ood.sun", "missing", "0", "10,000", "–"]
    assert row(out, "ood.ninco") == ["ood.ninco", "wrong", "count", "4", "5,879", "–"]
    assert "SUN is not under" in out and "catalog get SUN" in out and "NINCO_OOD_classes holds 4 images" in out
    assert "1,374,686" in out  # images to encode, by the published numbers


def test_what_would_be_downloaded_is_told(root, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "hub"))
    data = {
        "root": f"{root}/none",
        "id": {"train": {"catalog": "CIFAR10", "split": "train"}, "test": {"torchvision": "CIFAR10"}},
    }
    config = tiny_clip.config(
        root, "run", PROBE, data=data, backbone={"model": "ViT-B-16", "pretrained": "laion2b_s34b_b88k"}
    )
    before = tree(root)
    status, out = planned(train.main, capsys, "--config", config)
    assert status == 0 and tree(root) == before
    assert f"CIFAR10 would be downloaded to {root}/none: 170 MB" in out
    assert "The weights of ViT-B-16 would be downloaded from https://huggingface.co/laion/" in out
    assert "about 0.6 GB" in out and row(out, "id.test") == ["id.test", "is", "downloaded", "0", "10,000", "–"]
    assert "60,000" in out and "598." in out  # images to encode; MB that come to the hub's cache


def test_widths_that_only_the_hub_knows_are_told_as_such(root, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "hub"))
    config = tiny_clip.config(root, "run", PROBE, backbone={"model": "hf-hub:somebody/something"})
    status, out = planned(train.main, capsys, "--config", config)
    assert status == 0 and "the size is not known without asking there" in out
    assert "The widths of hf-hub:somebody/something are known only once its weights are loaded" in out


def test_a_full_disk_stops_the_run(root, capsys, monkeypatch):
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: DISK(10**9, 10**9 - 20_000, 20_000))
    status, out = planned(train.main, capsys, "--config", tiny_clip.config(root, "run", FINETUNE))
    assert status == 1 and f"The run would stop: The disk of {root}/features, {root}/runs has room for 20.0 kB" in out


def test_folders_on_one_disk_need_its_room_together(monkeypatch, tmp_path):
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: DISK(100, 40, 60))
    one, other = space.Writing(tmp_path / "a" / "b", "", 40), space.Writing(tmp_path / "c", "", 40)
    assert space.check_room([one]) == [] and len(space.check_room([one, other])) == 1
    assert len(space.check_room([one, other, space.Writing(tmp_path, "", None)])) == 1


def test_a_batch_that_does_not_divide_and_an_average_that_is_too_long(root, capsys):
    config = tiny_clip.config(root, "run", FINETUNE)
    status, out = planned(train.main, capsys, "--config", config, "--trainer.devices=3")
    assert status == 1 and "method.finetune.batch_size = 8 does not divide by 3 devices × 1 accumulated batches" in out
    status, out = planned(train.main, capsys, "--config", config, "--method.finetune.ema_decay=0.9999")
    assert status == 1 and "averages over 10000 steps, and the run has 8" in out


def test_averaged_weights_lie_in_the_checkpoint_as_well(root):
    config = tiny_clip.config(root, "run", FINETUNE)
    averaged, alone = (forecast_of(config, *more).runs[0].checkpoint for more in ([], ["--method.finetune.ema=null"]))
    values = 4 * (forecast_of(config).encoders[0].shape.values + 3 * 33)
    assert averaged - alone == values


def test_several_seeds_are_several_runs_of_one_store(root, capsys):
    config = tiny_clip.config(root, "run", PROBE)
    one, three = forecast_of(config), forecast_of(config, "--seeds=[1, 2, 3]")
    assert [each.run.name for each in three.runs] == ["run, seed 1", "run, seed 2", "run, seed 3"]
    assert three.encoders[0].to_read == one.encoders[0].to_encode == 63
    assert [each.run.folder.name for each in three.runs] == ["seed-1", "seed-2", "seed-3"]
    kept = sum(each.size for each in three.writings if each.what == "checkpoints")
    assert kept == 4 * one.runs[0].checkpoint  # one of them twice, while it is replaced
    status, out = planned(train.main, capsys, "--config", config, "--seeds", 1, 2)
    assert status == 0 and out.splitlines()[-1] == "The 2 runs would start."


def test_what_a_run_goes_on_with_is_looked_at(root, capsys):
    config = tiny_clip.config(root, "run", PROBE)
    train.main(["--config", config])
    (root / "runs/run/results.json").unlink()
    status, out = planned(train.main, capsys, "--config", config)
    assert status == 1 and "holds an unfinished run. Add --resume" in out
    assert planned(train.main, capsys, "--config", config, "--resume")[0] == 0
    assert planned(train.main, capsys, "--config", config, "--overwrite")[0] == 0
    status, out = planned(train.main, capsys, "--config", config, "--resume", "--method.linear_probe.lr=1")
    assert status == 1 and "was begun with other settings (method.linear_probe.lr" in out
    (root / "data/id/cat/0.png").unlink()
    (root / "runs/run/checkpoints/last.ckpt").write_bytes(b"cut off")
    status, out = planned(train.main, capsys, "--config", config, "--resume")
    assert status == 1 and "was begun with other images" in out


def test_problems_that_do_not_hang_together_are_all_told(root, capsys):
    shutil.rmtree(root / "data/near")
    (root / "data/far/sub").mkdir()
    for each in (root / "data/far").glob("*.png"):
        each.unlink()
    config = tiny_clip.config(root, "run", {"plp": {}}, runs_root=f"{root}/clip/open_clip_config.json/runs")
    status, out = planned(train.main, capsys, "--config", config)
    assert status == 1 and out.splitlines()[-1] == "The run would stop, for the 3 reasons above."
    assert (
        "Image set near: there is no folder" in out and "far holds no images" in out and "open_clip_config.json" in out
    )


def test_a_method_that_the_images_cannot_serve_is_told(root, capsys):
    for path in (root / "data/id").glob("*/*"):
        path.rename(root / "data/id" / f"{path.parent.name}{path.name}")
    for path in (root / "data/id").glob("*/"):
        path.rmdir() if path.is_dir() else None
    status, out = planned(train.main, capsys, "--config", tiny_clip.config(root, "run", PROBE))
    assert status == 1 and "method.linear_probe needs labels" in out.splitlines()[-1]


def test_an_evaluation_of_heads_looks_for_them(root, capsys):
    config = tiny_clip.config(root, "run", PROBE)
    train.main(["--config", config])
    assert planned(evaluation.main, capsys, "--run", root / "runs/run")[0] == 0
    (root / "runs/run/checkpoints/last.ckpt").unlink()
    status, out = planned(evaluation.main, capsys, "--run", root / "runs/run")
    assert status == 1 and "holds no trained head" in out


def test_the_runs_of_a_study_are_told_together(root, capsys):
    written = {"config": tiny_clip.config(root, "base", PROBE), "studies_root": f"{root}/studies", "shows": "table"}
    written |= {"axes": {"seed": {"seed": [1, 2]}}, "lines": LINES}
    (root / "table.yaml").write_text(yaml.safe_dump(written))
    before = tree(root)
    status, out = planned(study.main, capsys, "--config", root / "table.yaml")
    assert status == 0 and tree(root) == before and out.splitlines()[-1] == "The 4 runs would start."
    assert out.count("ood.near") == 1 and "32 16 63 63" in " ".join(out.split())  # looked for, and counted, once
    shutil.rmtree(root / "data/near")
    status, out = planned(study.main, capsys, "--config", root / "table.yaml")
    assert status == 1 and "Image set near" in out.splitlines()[-1]
