"""Ctrl-C says how to go on, and that works; every command ends by naming the next step."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import judged_run
import pytest
import tiny_clip
import yaml
from tiny_clip import PROJECT

import attack
import detect
import eval as evaluation
import study
import train
from clip_ood.lightning_modules.linear_probe import LinearProbe

PROBE = {"linear_probe": {"epochs": 4, "batch_size": 16}}


@pytest.fixture(autouse=True)
def sigint():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)  # Lightning ignores it once it has stopped


def stopped(main, argv, capsys) -> str:
    """The line that a call says after Ctrl-C."""
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):  # which the scripts make an exit status of
        main(argv)
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("Stopped."))


def arguments(line, script):
    words = shlex.split(line.partition(f"python {script} ")[2])
    assert words
    return words


@pytest.fixture
def interrupt(monkeypatch):
    """Ctrl-C at the beginning of the third epoch, once."""
    times, real = [], LinearProbe.on_train_epoch_start

    def once(module):
        if module.current_epoch == 2 and not times:
            times.append(1)
            raise KeyboardInterrupt
        return real(module)

    monkeypatch.setattr(LinearProbe, "on_train_epoch_start", once)
    return times


def test_training_goes_on_by_the_line_that_it_says(root, capsys, interrupt):
    config = tiny_clip.config(root, "stopped", PROBE)
    line = stopped(train.main, ["--config", config, "--overwrite", "--seed=7"], capsys)
    words = arguments(line, "train.py")
    assert words == ["--config", config, "--seed=7", "--resume"]
    before = tiny_clip.checkpoint(root / "runs" / "stopped")["epoch"]
    train.main(words)
    assert before == 1 and tiny_clip.checkpoint(root / "runs" / "stopped")["epoch"] == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("Next: ")


def test_seeds_go_on_as_well(root, capsys, interrupt):
    config = tiny_clip.config(root, "seeds", PROBE)
    words = arguments(stopped(train.main, ["--config", config, "--seeds", "1", "2"], capsys), "train.py")
    train.main(words)
    assert tiny_clip.results(root / "runs" / "seeds")["seeds"] == [1, 2]


def test_before_anything_was_trained_the_same_call_begins_again(root, capsys, monkeypatch):
    from clip_ood.experiments import run

    config = tiny_clip.config(root, "early", PROBE)
    train.main(["--config", config])

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "load_features", interrupted)
        line = stopped(train.main, ["--config", config, "--overwrite"], capsys)
    assert (root / "runs" / "early" / "results.json").is_file()  # what was to be replaced
    assert arguments(line, "train.py") == ["--config", config, "--overwrite"]
    with monkeypatch.context() as patch:
        patch.setattr(run, "load_features", interrupted)
        line = stopped(evaluation.main, ["--run", str(root / "runs" / "early")], capsys)
    evaluation.main(arguments(line, "eval.py"))


def test_a_study_goes_on(root, capsys, interrupt):
    base = tiny_clip.config(root, "base", PROBE)
    content = {"title": "t", "config": base, "studies_root": f"{root}/studies", "shows": "table", "axes": {}}
    content["lines"] = {"MSP": {"detector": "msp", "changes": {"method": PROBE}}}
    content["lines"]["1-NN"] = {"detector": "knn", "changes": {"method": {"zero_shot": {}}}}
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    line = stopped(study.main, ["--config", str(path), "--overwrite"], capsys)
    assert arguments(line, "study.py") == ["--config", str(path)]
    study.main(arguments(line, "study.py"))
    assert capsys.readouterr().out.splitlines()[-1].startswith("Next: ")


def test_judging_goes_on_with_a_file_and_says_that_it_cannot_without(root, capsys, monkeypatch, tmp_path):
    from clip_ood.experiments import detect as conducting
    from clip_ood.lightning_modules.prediction import PredictionModule

    monkeypatch.setattr(conducting, "BATCHES", 1)
    run, real, seen = judged_run.make(root, "judged"), PredictionModule.predict_step, []

    def interrupted(module, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(module, batch, batch_idx)

    monkeypatch.setattr(PredictionModule, "predict_step", interrupted)
    argv = ["--run", str(run), str(root / "data" / "near"), "--batch-size", "4"]
    words = arguments(stopped(detect.main, [*argv, "--out", str(tmp_path / "o.csv")], capsys), "detect.py")
    with pytest.raises(SystemExit):
        detect.main(words)
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 10 and seen == [0, 1, 0, 1]
    seen.clear()
    assert "with --out FILE" in stopped(detect.main, argv, capsys)


def test_an_attack_goes_on(root, capsys, monkeypatch):
    from clip_ood.experiments.attack import conduct

    base = tiny_clip.config(root, "attacked", {"zero_shot": {}})
    content = {"config": base, "ood": "near", "pairs": 4, "steps": 2, "runs_root": f"{root}/runs", "defences": {}}
    path = root / "attack.yaml"
    path.write_text(yaml.safe_dump(content))
    with monkeypatch.context() as patch:
        patch.setattr(conduct, "craft", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        line = stopped(attack.main, ["--config", str(path)], capsys)
    assert arguments(line, "attack.py")[-1] == "--resume"
    attack.main(arguments(line, "attack.py"))
    assert capsys.readouterr().out.splitlines()[-1].startswith("Next: ")


def test_a_real_ctrl_c_leaves_no_traceback(root):
    config = tiny_clip.config(root, "real", {"linear_probe": {"epochs": 100_000, "batch_size": 16}})
    command = [sys.executable, "train.py", "--config", config]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with forked.Popen(command, cwd=PROJECT, **pipes) as process:
        try:
            last = root / "runs" / "real" / "checkpoints" / "last.ckpt"
            end = time.monotonic() + 120
            while not last.is_file() and time.monotonic() < end:
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    kept = "Features and whole epochs are kept, and an epoch that was begun is trained again."
    assert said.splitlines()[-1] == f"Stopped. {kept} Go on with: python train.py --config {config} --resume"


def test_runs_and_comparisons_name_what_can_be_done_next(root, capsys):
    judges, other = (
        judged_run.make(root, "one"),
        judged_run.make(root, "few", data={"splits": {"val": 0.1, "test": 0.3}}),
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: ")]
    assert lines[0] == f"Next: to judge new images, python detect.py --run {judges} photos/"
    assert lines[1].startswith(f"Next: to show it beside another run, python eval.py --compare {other} ")
    evaluation.main(["--compare", f"{judges}:knn", f"{judges}:msp"])
    line = capsys.readouterr().out.splitlines()[-1]
    words = arguments(line, "eval.py")
    evaluation.main(words)
    page = Path(words[words.index("--html") + 1])
    assert page.is_file() and capsys.readouterr().out.splitlines()[-1] == f"Next: open {page} in a browser"


def test_judging_names_what_can_be_done_next(root, capsys, tmp_path):
    run = judged_run.make(root, "next")
    shutil.copytree(root / "data" / "id", tmp_path / "in")
    capsys.readouterr()
    argv = ["--run", str(run), str(tmp_path / "in"), "--accept", "0.5"]
    seen = []
    for _ in range(3):
        with pytest.raises(SystemExit):
            detect.main(argv)
        seen.append(capsys.readouterr().err.splitlines()[-1])
        argv = [word if word != "odd/" else str(tmp_path / "odd") for word in arguments(seen[-1], "detect.py")]
        if "all" in argv:
            argv += ["--copy-ood", str(tmp_path / "odd")]
    assert ["--copy-ood" in seen[0], "--detector all" in seen[1], "--export" in seen[2]] == [True] * 3
