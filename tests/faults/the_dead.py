"""What dies or hangs beside a command: one process of two, one that decodes images, the disk that they come from, shared memory. The
command ends with the reason, nothing of it stays behind, and it goes on to the results of one that was never stopped."""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from faults import lab
from faults.process import Started, run
from faults.trial import Trial

TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
LONG = {"linear_probe": {"epochs": 10_000, "batch_size": 16}}
LINE = re.compile(r"^(?:Stopped\.|error: ).*(?:Go on|Start again) with: python (.*)$", re.MULTILINE)


def trials() -> list[Trial]:
    found = []
    for stage, begun in (("extraction", "features/*/encoder.json"), ("training", "runs/*/checkpoints/last.ckpt")):
        for place, which in enumerate(("first", "second")):
            for number in (signal.SIGKILL, signal.SIGTERM):
                name = f"{number.name} to the {which} of two processes in {stage}"
                sample = (stage, which, number) == ("training", "second", signal.SIGKILL)
                found.append(Trial(name, partial(_one_of_two, begun, place, number), sample))
    found.append(Trial("a process that decodes images is killed", _worker_killed))
    found += [Trial(f"a disk that hangs, read by {n} processes", partial(_disk_hangs, n), n == 0) for n in (0, 2)]
    return [*found, Trial("shared memory of 1 MB", _little_shared_memory)]


def _one_of_two(begun: str, place: int, number: signal.Signals, folder: Path) -> None:
    asked = [*lab.train(folder, "two", LONG), *TWO]
    started = Started(asked, folder / "log", partial(_slow_encoder, 0.3))
    _wait_for(folder, begun, started)
    processes = _group(started.process.pid)
    second = next(pid for pid, variables in processes.items() if "LOCAL_RANK=1" in variables)
    os.kill(second if place else started.process.pid, number)
    started.process.join(60)
    _gone(started)
    ended = started.finish(1)
    dead = number is signal.SIGKILL and place == 0
    assert ended.status == (-9 if dead else 2 if number is signal.SIGKILL else 143), ended.said
    words = _told(ended.said)
    assert "--resume" in words


def _worker_killed(folder: Path) -> None:
    config = lab.config(folder, "killed", {"zero_shot": {}})
    asked = ["eval.py", "--config", config, "--data.num_workers=2", "--data.batch_size=2"]
    started = Started(asked, folder / "log", partial(_slow_encoder, 0.3))
    _wait_for(folder, "features/*/encoder.json", started)
    workers = [pid for pid in _group(started.process.pid) if pid != started.process.pid]
    os.kill(workers[0], signal.SIGKILL)
    started.process.join(60)
    _gone(started)
    ended = started.finish(1)
    assert ended.status == 2 and not ended.traceback and "decodes images has died" in ended.said, ended.said
    _goes_on(ended.said, folder)


def _disk_hangs(workers: int, folder: Path) -> None:
    config = lab.config(folder, "hangs", {"zero_shot": {}})
    asked = ["eval.py", "--config", config, f"--data.num_workers={workers}", "--timeout=3"]
    started = Started(asked, folder / "log", _never_read)
    started.process.join(60)
    _gone(started)
    ended = started.finish(1)
    assert ended.status == 2 and not ended.traceback and "hangs" in ended.said, ended.said
    _goes_on(ended.said, folder)


def _little_shared_memory(folder: Path) -> None:
    config = lab.config(folder, "small", {"zero_shot": {}})
    ended = run(["eval.py", "--config", config, "--data.num_workers=2"], folder / "log", _a_megabyte)
    assert ended.status == 0 and "--shm-size" in ended.said, ended.said


def _told(said: str) -> list[str]:
    lines = LINE.findall(said)
    assert len(lines) == 1, said
    return shlex.split(lines[0])


def _goes_on(said: str, folder: Path) -> None:
    ended = run(_told(said), folder / "log")
    assert ended.status == 0, ended.said


def _wait_for(folder: Path, pattern: str, started: Started, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert started.process.is_alive() and time.monotonic() < until, started.said
        time.sleep(0.05)


def _group(leader: int) -> dict[int, list[str]]:
    """The processes of a group and their variables."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == leader and ") Z " not in (folder / "stat").read_text():
                found[int(folder.name)] = (folder / "environ").read_text().split("\0")
        except OSError:
            continue
    return found


def _gone(started: Started, seconds: float = 20) -> None:
    """Raises: AssertionError where a process of the command is left."""
    until = time.monotonic() + seconds
    while left := _group(started.process.pid):
        assert time.monotonic() < until, f"left: {list(left)}\n{started.said}"
        time.sleep(0.2)


def _slow_encoder(seconds: float) -> None:
    """Lets every batch of an extraction take so long. Images are decoded by forked processes."""
    multiprocessing.set_start_method("fork", force=True)
    from clip_ood.lightning_modules.feature_extractor import FeatureExtractor

    real: Callable = FeatureExtractor.predict_step

    def slow(*arguments, **keywords):
        time.sleep(seconds)
        return real(*arguments, **keywords)

    FeatureExtractor.predict_step = slow


def _never_read() -> None:
    """Lets a file be opened for ever, by this process and by those that it forks."""
    multiprocessing.set_start_method("fork", force=True)
    real = Path.open

    def hangs(path, *arguments, **keywords):
        if path.parent.name == "near" and path.stem == "3":
            os.read(os.pipe()[0], 1)
        return real(path, *arguments, **keywords)

    Path.open = hangs


def _a_megabyte() -> None:
    """Lets /dev/shm have room for a few small images."""
    import shutil

    real = shutil.disk_usage
    small = type(real("/"))(2**20, 2**20 - 2**16, 2**16)
    shutil.disk_usage = lambda path: small if str(path) == "/dev/shm" else real(path)
