"""One process works at a place, the others hear who that is, and nothing of it outlives the process."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from clip_ood.errors import ConfigError
from clip_ood.experiments import set_aside
from clip_ood.experiments.set_aside import Aside
from clip_ood.process import locks
from clip_ood.process.locks import InUse, alone, in_turn, sharing
from clip_ood.runs import run_folder
from clip_ood.runs.run_folder import chosen_folder, replacing, started

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
HOLD = """
import sys
from pathlib import Path
from clip_ood.process import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2]), *sys.argv[3:]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.5)


@contextmanager
def holder(place, how="alone"):
    """A process that holds a place until it is killed or its standard input ends."""
    command = [sys.executable, "-c", HOLD, how, place, *(["wait"] if how == "alone" else [])]
    process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(20)


@contextmanager
def ends(process):
    yield
    process.stdin.close()
    process.wait(20)


@pytest.mark.parametrize("kind", ["file", "folder", "nothing yet"])
def test_the_second_one_hears_who_is_there(tmp_path, kind):
    place = tmp_path / "place"
    {"file": place.touch, "folder": place.mkdir, "nothing yet": lambda: None}[kind]()
    with holder(place) as process, pytest.raises(InUse) as told, alone(place, "take another"):
        raise AssertionError("two are at it")
    expected = (
        rf"{place} is in use by process {process.pid} on {socket.gethostname()} since 20.* \(.*python.*\): take another"
    )
    assert told.match(expected)
    with alone(place, ""):
        pass
    assert sorted(tmp_path.iterdir()) == ([] if kind == "nothing yet" else [place])


@pytest.mark.parametrize("how", ["alone", "sharing"])
def test_a_lock_ends_with_its_process_and_what_that_leaves_is_used_again(tmp_path, how):
    with holder(tmp_path / "place", how) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    left = list(tmp_path.iterdir())
    assert left and all(path.name.startswith(".place.") for path in left)
    with alone(tmp_path / "place", ""):
        pass
    assert not list(tmp_path.iterdir())


def test_a_note_alone_keeps_nobody_out(tmp_path):
    (tmp_path / ".place.lock").touch()
    (tmp_path / ".place.lock.json").write_text(json.dumps(dict.fromkeys(("process", "host", "since", "command"), 1)))
    with alone(tmp_path / "place", ""):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"process": 1}', "\x00", '{"process": "{0.__class__}"}'])
def test_a_note_that_says_nothing_is_another_process(tmp_path, note):
    with holder(tmp_path / "place"):
        (tmp_path / ".place.lock.json").write_text(note)
        with (
            pytest.raises(InUse, match="place is in use by another process: take another"),
            alone(tmp_path / "place", "take another"),
        ):
            pass


def test_what_a_note_says_steers_no_terminal(tmp_path):
    with holder(tmp_path / "place"):
        about = {"process": 1, "host": "h", "since": "now", "command": "\x1b[2Jgone"}
        (tmp_path / ".place.lock.json").write_text(json.dumps(about))
        with pytest.raises(InUse) as told, alone(tmp_path / "place", ""):
            pass
    assert "\\x1b[2Jgone" in str(told.value)


def test_a_process_may_ask_again_for_what_it_has(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    with alone(tmp_path / "real", ""):
        with alone(tmp_path / "link", ""), in_turn(tmp_path / "real" / ".." / "real"):
            pass
        command = [sys.executable, "-c", HOLD, "in_turn", tmp_path / "real"]
        other = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert "waiting until that ends" in other.stdout.readline()
    assert other.stdout.readline() == "held\n" and other.wait(20) == 0


def test_whoever_comes_in_turn_waits_and_says_for_whom(tmp_path):
    said = []
    with holder(tmp_path / "place") as process:
        threading.Timer(2.5, process.stdin.close).start()
        with in_turn(tmp_path / "place", said.append):
            assert process.wait(20) == 0
    assert len(said) == 1 and f"in use by process {process.pid} on" in said[0]


def test_those_who_share_a_place_let_nobody_have_it_alone(tmp_path):
    place = tmp_path / "place"
    with holder(place, "sharing") as first, holder(place, "sharing"), sharing(place):
        with pytest.raises(InUse, match=r"in use by process \d+ on .*: wait"), alone(place, "wait"):
            pass
        with ends(first), alone(tmp_path / "place.b", ""), alone(tmp_path / "plac", ""):  # others of a like name
            pass
        with pytest.raises(InUse), alone(place, ""):
            pass
    with alone(place, ""):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".place.lock", ".place.lock.json"]


@pytest.mark.parametrize("refused", [errno.ENOTSUP, errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch, refused):
    def refuse(*_):
        raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr("fcntl.flock", refuse)
    with alone(tmp_path / "a", ""), alone(tmp_path / "a", ""), in_turn(tmp_path / "a"), sharing(tmp_path / "a"):
        pass


def test_another_users_lock_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / ".place.lock").touch()
    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    with (
        pytest.raises(InUse, match=r"place.lock belongs to another user.*remove the file"),
        alone(tmp_path / "place", ""),
    ):
        pass
    (tmp_path / ".place.lock").unlink()
    with alone(tmp_path / "place", ""):  # where nothing can be written, nobody can be in the way
        pass


def test_a_name_of_any_length_has_a_lock(tmp_path):
    with alone(tmp_path / ("x" * 255), ""), alone(tmp_path / ("y" * 255), ""):
        assert len(list(tmp_path.iterdir())) == 4


# Runs


def test_a_run_has_one_writer(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("first")
    with holder(tmp_path / "run"):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with (
                pytest.raises(InUse, match=r"in use by process.*--name.*trainer\.devices"),
                chosen_folder(tmp_path, "run", **options),
            ):
                raise AssertionError("two are at it")
        with pytest.raises(InUse), started(tmp_path / "run", "second"):
            raise AssertionError("two are at it")
        assert (tmp_path / "run" / "config.yaml").read_text() == "first"
    with chosen_folder(tmp_path, "run", resume=True) as folder, started(folder, "third"):
        assert folder == tmp_path / "run" and (folder / "config.yaml").read_text() == "third"


def test_the_next_number_is_looked_for_again_once_it_is_free(tmp_path):
    """Two begin while a third finishes: each has a folder of its own."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").touch()
    with chosen_folder(tmp_path, "run") as folder:
        assert folder == tmp_path / "run-2"
        (folder / "results.json").touch()
    with chosen_folder(tmp_path, "run") as third:
        assert third == tmp_path / "run-3"
    with holder(tmp_path / "run-3"), pytest.raises(InUse, match="run-3 is in use"), chosen_folder(tmp_path, "run"):
        pass


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="no unfinished run"), chosen_folder(tmp_path / "runs", "run", resume=True):
        pass
    assert not list(tmp_path.iterdir())


def test_other_processes_of_a_run_are_not_kept_out_by_their_first(tmp_path, monkeypatch):
    with holder(tmp_path / "run"):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with (
            chosen_folder(tmp_path, "run") as folder,
            replacing(folder),
            started(folder, ""),
            run_folder.alone_in(folder),
        ):
            assert folder == tmp_path / "run"


def test_whoever_comes_while_a_killed_ones_workers_end_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 20)
    with holder(tmp_path / "run") as process:
        threading.Timer(1, process.stdin.close).start()
        with chosen_folder(tmp_path, "run") as folder:
            assert process.wait(20) == 0 and folder.is_dir()


def test_two_calls_put_their_flagged_images_into_one_folder(tmp_path, monkeypatch):
    """The second comes while the first copies an image of the same name: both are there in the end."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text(name)
    code = "import sys; from pathlib import Path; from clip_ood.experiments.set_aside import Aside; Aside(Path(sys.argv[1])).take('1.png', sys.argv[2], None)"
    other, copy = [], shutil.copyfile

    def slow(source, target):
        copied = copy(source, target)
        command = [sys.executable, "-c", code, tmp_path / "odd", tmp_path / "b" / "1.png"]
        other.append(subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True))
        with suppress(subprocess.TimeoutExpired):
            other[0].wait(6)
        return copied

    monkeypatch.setattr(set_aside.shutil, "copyfile", slow)
    Aside(tmp_path / "odd").take("1.png", str(tmp_path / "a" / "1.png"), None)
    error = other[0].communicate(timeout=20)[1]
    assert other[0].returncode == 0, error
    assert sorted(path.read_text() for path in (tmp_path / "odd").iterdir()) == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "odd"]
