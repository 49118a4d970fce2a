"""What a kill, a full disk or a copy leaves of a run's checkpoint and results is named in one line, before anything is trained."""

from __future__ import annotations

import io
import json
import shutil
import zipfile

import pytest
import tiny_clip
import torch
from test_resume import PROBE, stopped

import eval as evaluation
import study
import train
from clip_ood.errors import ConfigError
from clip_ood.report.compare import show
from clip_ood.runs.files import read_results


class Bomb:
    def __reduce__(self):
        return print, ("exploded",)


@pytest.fixture(scope="module")
def finished(root):
    train.main(["--config", tiny_clip.config(root, "finished", PROBE)])
    return root / "runs" / "finished"


@pytest.fixture(scope="module")
def unfinished(root):
    stopped(tiny_clip.config(root, "unfinished", PROBE))
    return root / "runs" / "unfinished"


def flipped(content):
    """One byte of a tensor is another."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        largest = max(file.infolist(), key=lambda info: info.file_size)
        place = content.index(file.read(largest)) + largest.file_size // 2
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "changed": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "noise": lambda path: path.write_bytes(b"noise" * 500),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "something else": lambda path: torch.save({"weights": torch.zeros(2)}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "objects": lambda path: torch.save(torch.load(path, weights_only=True) | {"hyper_parameters": Bomb()}, path),
}


def refused(work, *told):
    with pytest.raises(ConfigError) as error:
        work()
    said = str(error.value)
    assert all(each in said for each in told) and "\n" not in said and "weights_only" not in said, said
    return said


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_before_any_work(damage, root, unfinished, finished, monkeypatch, capsys):
    monkeypatch.setattr("clip_ood.experiments.run.load_features", None)
    heads = {}
    for run in (unfinished, finished):
        path = run / "checkpoints" / "last.ckpt"
        heads[path] = path.read_bytes()
        DAMAGES[damage](path)
    try:
        way_out = ("last.ckpt is damaged (", "Remove it", "--resume", "--overwrite")
        refused(lambda: train.main(["--config", str(root / "unfinished.yaml"), "--resume"]), str(unfinished), *way_out)
        refused(lambda: evaluation.main(["--run", str(finished), "--overwrite"]), str(finished), *way_out)
        method = {"finetune": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16, "head": str(finished)}}
        tuned = tiny_clip.config(root, "tuned", method)
        refused(lambda: train.main(["--config", tuned]), str(finished), *way_out)
        assert "exploded" not in capsys.readouterr().out
    finally:
        for path, content in heads.items():
            path.write_bytes(content)


def test_the_way_out_of_a_damaged_checkpoint_works(root, unfinished, finished):
    run = root / "runs" / "mended"
    shutil.copytree(unfinished, run)
    (run / "checkpoints" / "last.ckpt").unlink()
    train.main(["--config", tiny_clip.config(root, "mended", PROBE), "--resume"])
    assert tiny_clip.results(run)["rows"] == tiny_clip.results(finished)["rows"]


# Seeds


@pytest.fixture(scope="module")
def seeds(root):
    train.main(["--config", tiny_clip.config(root, "seeds", PROBE), "--seeds", "1", "2"])
    return root / "runs" / "seeds"


@pytest.fixture
def copy(root, seeds, request):
    run = root / "runs" / "seeds_copy"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(seeds, run)
    return run, tiny_clip.config(root, "seeds_copy", PROBE)


BROKEN = {
    "cut off": '{"rows": [',
    "empty": "",
    "null": "null",
    "a list": "[]",
    "no rows": "{}",
    "rows that are none": '{"rows": 3}',
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_damaged_seed_is_named_before_another_is_trained(content, copy, monkeypatch):
    run, config = copy
    (run / "results.json").unlink()
    shutil.rmtree(run / "seed-1")
    path = run / "seed-2" / "results.json"
    path.write_text(BROKEN[content])
    monkeypatch.setattr("clip_ood.experiments.seeds.run", None)
    refused(
        lambda: train.main(["--config", config, "--resume", "--seeds", "1", "2"]),
        f"{path} is damaged",
        "Remove the results.json in its folder",
    )


def test_a_damaged_head_of_a_seed_is_named_before_another_is_trained(copy, monkeypatch):
    run, config = copy
    (run / "results.json").unlink()
    shutil.rmtree(run / "seed-1")
    (run / "seed-2" / "results.json").unlink()
    DAMAGES["half"](run / "seed-2" / "checkpoints" / "last.ckpt")
    monkeypatch.setattr("clip_ood.experiments.seeds.run", None)
    refused(
        lambda: train.main(["--config", config, "--resume", "--seeds", "1", "2"]),
        "seed-2/checkpoints/last.ckpt is damaged",
    )


@pytest.mark.parametrize("place", ["results.json", "seed-2/results.json"])
@pytest.mark.parametrize("content", BROKEN)
def test_a_damaged_run_is_not_compared(place, content, copy, seeds):
    run, _ = copy
    (run / place).write_text(BROKEN[content])
    refused(lambda: show([str(seeds), str(run)]), f"{run / place} is damaged")


def test_the_way_out_of_a_damaged_seed_works(copy, seeds):
    run, config = copy
    (run / "seed-2" / "results.json").write_text("{")
    (run / "seed-2" / "results.json").unlink()
    (run / "results.json").unlink()
    train.main(["--config", config, "--resume", "--seeds", "1", "2"])
    assert tiny_clip.results(run)["rows"] == tiny_clip.results(seeds)["rows"]


def test_a_damaged_run_of_a_study_is_named(root, monkeypatch):
    keys = {"config": tiny_clip.config(root, "base", PROBE), "studies_root": f"{root}/studies", "shows": "table"}
    keys |= {"axes": {}, "lines": {"knn": {"detector": "knn", "changes": {"method": {"zero_shot": {}}}}}}
    (root / "study.yaml").write_text(json.dumps(keys))
    study.main(["--config", str(root / "study.yaml")])
    (path,) = (root / "studies" / "study").glob("*/results.json")
    path.write_text("{")
    refused(lambda: study.main(["--config", str(root / "study.yaml")]), f"{path} is damaged")


def test_the_best_f1_of_an_earlier_version_is_not_taken_for_f1_at_a_threshold(finished, tmp_path):
    content = json.loads((finished / "results.json").read_text())
    for row in content["rows"]:
        row["f1"] = row.pop("best_f1")
        row["intervals"]["f1"] = [0.1, 0.9]
    (tmp_path / "results.json").write_text(json.dumps(content))
    rows = read_results(tmp_path / "results.json")["rows"]
    assert [row["best_f1"] for row in rows] == [row["best_f1"] for row in tiny_clip.results(finished)["rows"]]
    assert all(row["f1"] is None and "f1" not in row["intervals"] for row in rows)
