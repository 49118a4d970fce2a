"""Runs pass without what a laptop with macOS or Windows lacks."""

from __future__ import annotations

import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import judged_run
import pytest
import tiny_clip
import yaml
from torch.utils.data import DataLoader

import attack
import detect
import train
from clip_ood.datamodules import image_data, new_images, parts_data

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]


def passes(root, *lines, before=()):
    command = [*before, sys.executable, PROJECT / "tests" / "portable.py", root]
    text = "".join(shlex.join(map(str, line)) + "\n" for line in lines)
    done = subprocess.run(command, input=text, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def without_shared_memory():
    """Begins a command that sees a /dev/shm in which nothing can be made; nothing where this system or user cannot do that."""
    if shutil.which("unshare") is None:
        return []
    hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none /dev/shm && exec "$@"', "sh"]
    return hidden if subprocess.run([*hidden, "true"], capture_output=True).returncode == 0 else []


def config(root, name, method, workers=0, **keys):
    data = {
        "root": f"{root}/data",
        "id": "id",
        "ood": {"near": "near", "far": "far"},
        "splits": judged_run.SPLITS,
        "batch_size": 8,
        "num_workers": workers,
    }
    return tiny_clip.config(root, name, method, data=data, **keys)


def test_runs_pass_without_what_other_systems_lack(root):
    attacked = {
        "config": config(root, "attacked", {"zero_shot": {}}, detectors=["knn", "mcm"]),
        "runs_root": f"{root}/runs",
    }
    attacked |= {"ood": "near", "pairs": 4, "steps": 3, "lr": 0.02, "smoothness": 10.0, "batch_size": 2}
    (root / "attack.yaml").write_text(yaml.safe_dump(attacked))
    trained = ["train", "--config", config(root, "run", judged_run.PROBE, evaluation={"figures": True})]
    judged = ["detect", "--run", root / "runs" / "run", root / "data" / "near", "--copy-ood", root / "odd"]
    said = passes(
        root,
        trained,
        [*trained, "--overwrite"],
        ["eval", "--run", root / "runs" / "run", "--detectors=[knn, msp]"],
        [*judged, "--out", root / "v.csv"],
        [*judged, "--out", root / "v.parquet"],
        ["attack", "--config", root / "attack.yaml"],
        ["eval", "--compare", root / "runs" / "run", root / "runs" / "run-eval", "--html", root / "page.html"],
        before=without_shared_memory(),
    )
    assert "could not be merged" not in said and "9 images judged" in said
    assert (root / "runs" / "run" / "report.html").is_file() and len((root / "v.csv").read_text().splitlines()) == 10
    assert not [
        each.name
        for each in (*root.iterdir(), *(root / "runs").iterdir())
        if each.name.startswith(".") or "tmp" in each.name
    ]


def test_workers_are_spawned(root):
    name = config(root, "spawned", {"zero_shot": {}}, workers=1, features_root=f"{root}/others", detectors=["knn"])
    judged = [
        "--run",
        root / "runs" / "spawned",
        root / "data" / "near",
        "--workers",
        "1",
        "--out",
        root / "spawned.csv",
    ]
    passes(root, ["eval", "--config", name], ["detect", *judged])
    assert len((root / "spawned.csv").read_text().splitlines()) == 10


def test_what_workers_need_can_be_sent_to_them_and_is_small(root, monkeypatch):
    """Of all loaders: their data sets go through a pickle, as to processes that are spawned."""
    sent = {}

    def loader(dataset, num_workers, **keys):
        assert num_workers == 1
        content = pickle.dumps(dataset)
        sent[type(dataset).__name__] = len(content)
        keys = {
            name: keys[name] for name in keys.keys() - {"prefetch_factor", "timeout"}
        }  # of no use without processes
        return DataLoader(pickle.loads(content), **keys)

    for module in (parts_data, image_data, new_images):
        monkeypatch.setattr(module, "DataLoader", loader)
    fine_tuning = {"finetune": {"epochs": 1, "warmup_epochs": 0, "batch_size": 8, "augment": "rand-m9-n2-inc1"}}
    train.main(["--config", config(root, "sent", fine_tuning, workers=1, features_root=f"{root}/sent")])
    run = str(root / "runs" / "sent")
    with pytest.raises(SystemExit, match="0"):
        detect.main(["--run", run, str(root / "data" / "near"), "--workers", "1", "--out", str(root / "sent.csv")])
    keys = {
        "config": config(root, "moved", {"zero_shot": {}}, workers=1, detectors=["knn"]),
        "runs_root": f"{root}/runs",
    }
    keys |= {
        "ood": "near",
        "pairs": 2,
        "steps": 1,
        "lr": 0.02,
        "smoothness": 10.0,
        "batch_size": 2,
        "name": "sent_attack",
    }
    (root / "sent.yaml").write_text(yaml.safe_dump(keys))
    attack.main(["--config", str(root / "sent.yaml")])
    assert set(sent) == {"Batches", "TrainingImages", "EvaluationImages", "Pictures", "AttackedImages"}
    assert max(sent.values()) < 100_000, sent
