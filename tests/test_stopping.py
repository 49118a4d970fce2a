"""Commands that signals, dead processes or disks that hang end before their time. Stages of all commands: faults/signals.py."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import forked
import pytest
import tiny_clip

from clip_ood.datamodules import workers
from clip_ood.experiments.trainer import new_trainer
from clip_ood.files.writing import written_whole
from clip_ood.process import stalls
from clip_ood.process.launchers import PARENT, started_by
from clip_ood.process.lost import reason
from clip_ood.process.stopping import Stopped, ending, heeded
from clip_ood.process.watch import watched

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_ends():
    yield
    ending.__init__()
    stalls.wait_at_most(stalls.LIMIT)


def me(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 143)]
)
def test_a_file_becomes_whole_before_a_signal_ends_the_command(tmp_path, monkeypatch, number, status):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(Stopped) as stopped, heeded(), written_whole(tmp_path / "file") as file:
        file.write(b"one ")
        me(number)
        file.write(b"two")
    assert stopped.value.code == status
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"one two"]


def test_what_is_ignored_stays_ignored_and_sigusr1_ends_jobs_of_slurm_alone(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with heeded() as taken:
            me(signal.SIGHUP)
        assert signal.SIGUSR1 not in taken and signal.SIGTERM in taken
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("files", [0, 1100])
def test_a_read_that_stalls_ends_the_command_and_names_the_file(files, capfd, monkeypatch):
    """However many files are open."""
    monkeypatch.setattr(stalls, "_limit", 0.2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 2048:
        pytest.skip("no process may have so many files open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(2048, limits[0]), limits[1]))
    with ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(files):
            held.enter_context(open(os.devnull, "rb"))
        with pytest.raises(Stopped) as stopped, watched(None), stalls.reading("photos/a.jpg"):
            time.sleep(8)
    told = capfd.readouterr().err
    assert stopped.value.code == 2 and "photos/a.jpg cannot be read: nothing has come for 0.2 s" in told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_none_of_the_reads_of_its_parent(monkeypatch):
    monkeypatch.setattr(stalls, "_limit", 0.0)
    with stalls.reading("a.jpg"):
        if not (child := os.fork()):
            os._exit(int(stalls.overdue() is not None))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and stalls.overdue() is not None


def test_of_the_reads_of_several_threads_the_oldest_that_goes_on_is_named(monkeypatch):
    monkeypatch.setattr(stalls, "_limit", 0.1)
    reads = [stalls.reading("a.jpg"), stalls.reading("b.jpg")]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for thread, read in zip((one, other), reads, strict=True):
            thread.submit(read.__enter__).result()
        time.sleep(0.2)
        assert stalls.overdue().startswith("a.jpg cannot be read")
        one.submit(reads[0].__exit__, None, None, None).result()
        assert stalls.overdue().startswith("b.jpg cannot be read")
        other.submit(reads[1].__exit__, None, None, None).result()
    assert stalls.overdue() is None


def test_a_command_that_is_done_does_not_wait_for_the_watch(monkeypatch):
    monkeypatch.setattr("clip_ood.process.watch.TICK", 60.0)
    begun = time.monotonic()
    with watched(None):
        time.sleep(0.1)  # the watch listens by now
    assert time.monotonic() - begun < 10


def started(*command, **variables):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return forked.Popen([sys.executable, *command], cwd=PROJECT, env=environment, **pipes)


def test_a_command_that_waits_in_a_library_ends_all_the_same():
    code = (
        "import ctypes; from clip_ood.command_line import guarded; print('go', flush=True);"
        "lock, buffer = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64);"
        "guarded(lambda: [lock(buffer), lock(buffer)])"  # no signal ends that wait
    )
    process = started("-c", code)
    try:
        assert process.stdout.readline() == "go\n"
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 143 and "Stopped. Nothing is left half-written. Start again with: python" in said


def test_sigterm_ends_training_with_its_status_and_the_way_on(root):
    config = tiny_clip.config(root, "trained", {"linear_probe": {"epochs": 100_000, "batch_size": 16}})
    process, last = started("train.py", "--config", config), root / "runs" / "trained" / "checkpoints" / "last.ckpt"
    try:
        until = time.monotonic() + 120
        while not last.is_file() and time.monotonic() < until:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143 and "Traceback" not in said
    kept = "Features and whole epochs are kept, and an epoch that was begun is trained again."
    assert said.splitlines()[-1] == f"Stopped. {kept} Go on with: python train.py --config {config} --resume"


def test_a_process_whose_starter_has_died_does_not_begin_a_run_of_its_own(monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(PARENT, str(os.getppid()))
    assert started_by() == os.getppid()
    monkeypatch.setenv(PARENT, str(dead.pid))
    with pytest.raises(SystemExit, match=r"the first process of the run .* has died"):
        started_by()


def test_lightning_neither_hears_signals_nor_queues_a_job_again(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    for name, value in {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(name, value)
    stalls.wait_at_most(77)
    trainer = new_trainer({"logger": False}, {"accelerator": "cpu", "devices": 1, "strategy": "ddp"})
    connector, before = trainer._signal_connector, signal.getsignal(signal.SIGTERM)
    connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not trainer._accelerator_connector.cluster_environment.auto_requeue
    assert trainer.strategy._timeout.total_seconds() == 77


@pytest.mark.parametrize(
    ("free", "devices", "fit"),
    [(10**9, 1, 4), (900, 1, 4), (899, 1, 3), (500, 1, 2), (300, 1, 1), (299, 1, 0), (900, 2, 1)],
)
def test_as_many_processes_decode_as_shared_memory_has_room_for(monkeypatch, capsys, free, devices, fit):
    """Two batches of 100 bytes of each of 4 wait, and one is in use."""
    monkeypatch.setattr(workers, "_told", set())
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    monkeypatch.setattr(workers, "SHARED", Path("/"))
    monkeypatch.setattr(workers.sys, "platform", "linux")
    assert [workers._that_fit(4, 100, devices) for _ in range(2)] == [fit, fit]
    assert capsys.readouterr().err.count("--shm-size=") == (fit < 4)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "DataLoader worker (pid 12) is killed by signal: Killed. ",
            "a process that decodes images has died. Most likely mem",
        ),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "a process that decodes images has died"),
        ("DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that …", "--shm-size"),
        ("unable to write to file </torch_12_3>: No space left on device (28)", "--shm-size"),
        ("DataLoader timed out after 5 seconds", r"no image has come for 1800 s .* --timeout=SECONDS"),
        ("[…/gloo/transport/tcp/pair.cc:534] Connection closed by peer", "another process of the run has died"),
        ("[…/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5ms for recv", "has not answered for 1800 s"),
    ],
)
def test_errors_of_what_died_are_told_in_words(error, told, monkeypatch):
    monkeypatch.setattr("clip_ood.process.lost.SEEN_AFTER", 0.0)
    assert re.search(told, reason(RuntimeError(error)))


def test_other_errors_keep_their_traceback():
    assert (
        reason(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None and reason(ValueError("gloo")) is None
    )
