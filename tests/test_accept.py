"""What whoever has GPUs sends back: a line for each check, whatever becomes of the others, and nobody's names."""

from __future__ import annotations

import json
import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from bench import accept, machine
from bench.lines import Failed, Lines
from bench.pace import rate
from bench.training import Training, furthest, last_error
from clip_ood.errors import ConfigError, UserError

AUROC = {("ood", "knn", "auroc"): 80.0, ("ood", "msp", "auroc"): 70.0}


class Played:
    """Runs that are over at once; `others` replaces the figures of some, `fails` names those that end with an error."""

    def __init__(self, others=None, fails=(), features=None):
        self.others, self.fails, self.shifted, self.commands = others or {}, fails, features or {}, {}

    def run(self, name, *arguments):
        self.commands[name] = arguments
        if name in self.fails:
            raise Failed("OSError: [Errno 28] No space left on device: '/home/me/x.ckpt'")
        figures = AUROC | self.others.get(name, {})
        features = np.ones((3, 2)) + self.shifted.get(name, 0)
        pace = {"extraction": 100.0, "training": None}
        return SimpleNamespace(pace=pace, figures=lambda *_: figures, features=lambda: features)

    def kill(self, name, epochs, *arguments):
        return 1


def outcomes(played):
    lines = Lines()
    accept.Acceptance(played, accept.CPU, 2, lines).conduct()
    assert lines.failed == sum(line["outcome"] != "ok" for line in lines.kept)
    return {line["what"]: line for line in lines.kept if line["outcome"] != "ok"}, lines.kept


def test_equal_runs_are_accepted_and_each_is_told():
    played = Played()
    failed, lines = outcomes(played)
    assert failed == {} and len(lines) == 11
    assert lines[0]["images/s of extraction"] == 100 and lines[0]["auroc"] == {"knn": 80.0, "msp": 70.0}
    assert "--resume" in played.commands["probe_fp32_resumed"]
    same = [each for each in played.commands["probe_fp32_resumed"] if each != "--resume"]
    assert same == list(played.commands["probe_fp32_all"])


@pytest.mark.parametrize(
    ("changed", "value", "what"),
    [
        ("probe_fp32_all", 0.11, "AUROC, fp32, all devices against one"),
        ("probe_fp32_resumed", 0.02, "all figures, resumed against not killed"),
        ("probe_bf16_one", 3.1, "AUROC, one device, bf16 against fp32"),
    ],
)
def test_a_figure_that_is_further_away_than_its_limit_is_told(changed, value, what):
    others = {changed: {("ood", "knn", "auroc"): 80.0 - value}}
    if changed == "probe_fp32_all":
        others["probe_fp32_resumed"] = others[changed]
    failed, _ = outcomes(Played(others))
    assert list(failed) == [what]
    assert failed[what]["outcome"] == "above its limit" and failed[what]["value"] == pytest.approx(value)


def test_features_of_several_devices_may_not_differ_by_more_than_rounding():
    assert outcomes(Played(features={"probe_fp32_all": 1e-4}))[0] == {}
    assert list(outcomes(Played(features={"probe_fp32_all": 2e-3}))[0]) == ["features, fp32, all devices against one"]
    failed, _ = outcomes(Played(features={"probe_fp32_all": np.nan}))
    assert failed["features, fp32, all devices against one"]["error"] == "some features are no numbers"


def test_a_run_that_fails_ends_no_other_and_its_comparisons_say_so():
    failed, lines = outcomes(Played(fails=["probe_fp32_all"]))
    assert len(lines) == 11 and len(failed) == 4
    assert failed["probe_fp32_all"]["error"] == "OSError: [Errno 28] No space left on device: '<path>'"
    del failed["probe_fp32_all"]
    assert {line["error"] for line in failed.values()} == {"probe_fp32_all has not ended well"}


def test_a_detector_that_runs_in_one_precision_alone_is_named_and_in_one_run_alone_is_an_error():
    _, lines = outcomes(Played({"probe_bf16_one": {("ood", "vim", "auroc"): 60.0}}))
    assert {line["what"]: line.get("note") for line in lines}["AUROC, one device, bf16 against fp32"].endswith(": vim")
    failed, _ = outcomes(Played({"probe_fp32_resumed": {("ood", "vim", "auroc"): 60.0}}))
    assert "other rows" in failed["all figures, resumed against not killed"]["error"]
    with pytest.raises(Failed):
        furthest({}, {})


@pytest.mark.parametrize(("worst", "status"), [(0.0, None), (1.0, 1)])
def test_the_file_holds_the_machine_and_every_line_and_nobodys_names(tmp_path, monkeypatch, capsys, worst, status):
    out = tmp_path / "new" / "sent.json"
    monkeypatch.setattr(sys, "argv", ["accept", "--tiny", "--out", str(out)])
    monkeypatch.setattr(accept, "make", lambda *_: None)
    others = {"probe_fp32_resumed": {("ood", "knn", "auroc"): 80 + worst}}
    monkeypatch.setattr(accept, "Training", lambda *_: Played(others, fails=["finetune_bf16_one"] if worst else ()))
    monkeypatch.setattr(machine.platform, "node", lambda: "gpu-7.example.org")
    if status is None:
        accept.main()
    else:
        with pytest.raises(SystemExit, match="2 of 9 lines are not ok"):
            accept.main()
    text = out.read_text()
    sent = json.loads(text)
    assert sent["machine"]["cores"] == os.cpu_count() and "torch" in sent["machine"]["versions"]
    assert [line["what"] for line in sent["lines"]] == [
        line.partition("  ")[0] for line in capsys.readouterr().out.splitlines() if "  " in line
    ]
    assert not any(name in text for name in ("/home/", str(tmp_path), "gpu-7"))


def test_what_cannot_be_written_or_run_on_is_refused_before_anything_runs(tmp_path, monkeypatch):
    (tmp_path / "there.json").write_text("kept")
    for arguments, error in (
        (["--out", str(tmp_path / "there.json")], ConfigError),
        (["--out", str(tmp_path), "--overwrite"], ConfigError),
        (["--tiny", "--accelerator", "gpu"], UserError),
    ):
        monkeypatch.setattr(sys, "argv", ["accept", *arguments])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(error):
            accept.options()
    assert (tmp_path / "there.json").read_text() == "kept"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("OSError: /home/me/runs/x.ckpt is full", "OSError: <path> is full"),
        ("no file '~/runs/x y'", "no file '<path> y'"),
        (r"no file C:\Users\me\x.png", "no file <path>"),
        ("bf16 and/or fp32, 3/4 of it", "bf16 and/or fp32, 3/4 of it"),
        ("no route to gpu-7.example.org from gpu-7: ada", "no route to <name> from <name>: <name>"),
    ],
)
def test_texts_lose_paths_and_names(monkeypatch, text, told):
    monkeypatch.setattr(machine.platform, "node", lambda: "gpu-7.example.org")
    monkeypatch.setattr(machine.getpass, "getuser", lambda: "ada")
    assert machine.nameless(text) == told


def test_the_error_of_a_process_comes_before_that_another_has_ended():
    said = (
        "Traceback\nValueError: no such layer\nerror: process 1 of the run's 2 has ended with status 1; it says why.\n"
    )
    assert last_error(said) == "ValueError: no such layer"
    assert last_error("torch.OutOfMemoryError: CUDA out of memory\nwarning: leaked\n").endswith("out of memory")
    assert last_error("Killed\n\n") == "Killed" and last_error("") == ""


def test_the_pace_is_that_of_the_second_half():
    assert rate([(0.0, 8), (5.0, 8), (6.0, 8), (7.0, 4)]) == 6.0
    assert rate([(1.0, 8), (3.0, 8)]) == 4.0 and rate([(1.0, 8)]) == rate([]) == 0


# A train.py that plays a run: it starts a process beside it, writes its checkpoint, and goes on for long.
PLAYED = """
import pathlib, shutil, subprocess, sys, time, yaml
config = yaml.safe_load(open(sys.argv[2]))
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("other.pid").write_text(str(other.pid))
folder = pathlib.Path(config["runs_root"], "run", "checkpoints")
folder.mkdir(parents=True)
shutil.copy("made.ckpt", folder / "new.ckpt")
(folder / "new.ckpt").rename(folder / "last.ckpt")
time.sleep(600)
"""


@pytest.fixture
def training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 0}, "made.ckpt")
    return Training(tmp_path, {"trainer": {}})


def is_there(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # it waits for whoever has become its parent
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_kill_ends_all_processes_of_a_run_and_tells_what_was_trained(tmp_path, training):
    (tmp_path / "train.py").write_text(PLAYED)
    assert training.kill("run", 2) == 1
    until = time.monotonic() + 10
    while is_there(pid := (tmp_path / "other.pid").read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_there(pid)
    with open(tmp_path / "run.yaml") as file:
        assert yaml.safe_load(file)["trainer"]["callbacks"][0]["class_path"] == "bench.pace.Pace"


def test_a_kill_that_comes_too_late_is_an_error(tmp_path, training):
    (tmp_path / "train.py").write_text(PLAYED)
    with pytest.raises(Failed, match="had trained all 1 epochs"):
        training.kill("run", 1)
    (tmp_path / "train.py").write_text("")
    with pytest.raises(Failed, match="it ended before it could be killed"):
        training.kill("early", 2)


def test_a_run_that_fails_tells_its_error(tmp_path, training):
    (tmp_path / "train.py").write_text("raise LookupError('no such bank')")
    with pytest.raises(Failed, match=r"^LookupError: no such bank$"):
        training.run("run")
