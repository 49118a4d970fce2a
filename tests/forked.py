"""Python commands as `subprocess` starts them, in processes that are forked from one that has imported the libraries: `Popen`, `run`.

A new interpreter that imports torch and Lightning takes seconds, a fork hundredths of one. Nothing of this project is imported
beforehand, so that a command may lie in a copy of it. Signals, pipes and exit statuses are those of real processes, and each command
is a session of its own. The processes that Lightning starts beside a command are forked by the command before it begins, and wait
until Lightning asks for them. Tests of what an interpreter does when it starts (encodings, imports that are not made) need
`subprocess`.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TESTS = Path(__file__).parent
OURS = (str(TESTS.parent), str(TESTS))
IMPORTED = [
    "lightning.pytorch",
    "matplotlib.pyplot",
    "open_clip",
    "pyarrow.parquet",
    "pytest",
    "timm",
    "torch.utils.tensorboard",
    "torchmetrics",
    "torchvision",
    "forked",
]
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)
SERVER = {"PYTHONPATH": os.pathsep.join(OURS), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


class Popen(subprocess.Popen):
    """`subprocess.Popen([sys.executable, …])` with its arguments for streams, `cwd` and `env`; others are not heeded."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest: Any) -> None:
        stdin, to_stdin, from_stdout, stdout, from_stderr, stderr = rest[3:9]
        ends = [end if end != -1 else number for number, end in enumerate((stdin, stdout, stderr))]
        streams = [Connection(os.dup(end)) for end in ends]
        command = [os.fsdecode(each) for each in args]
        _start_server()
        about = (command, streams, os.fspath(cwd or os.getcwd()), dict(os.environ if env is None else env))
        self._process = CONTEXT.Process(target=_begin, args=about)
        self._process.start()
        self.pid, self._child_created = self._process.pid, True
        for each in streams:
            each.close()
        for end, other in ((stdin, to_stdin), (stdout, from_stdout), (stderr, from_stderr)):
            if other != -1 and end != -1:  # the child's end of a pipe
                os.close(end)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            self._process.join(timeout)
            self.returncode = self._process.exitcode
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


def run(command: list[Any], timeout: float | None = None, check: bool = False, **streams: Any) -> Any:
    """As `subprocess.run(command, capture_output=True, text=True)`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
    with Popen(command, **pipes) as process:
        try:
            out, error = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    ended = subprocess.CompletedProcess(command, process.returncode, out, error)
    if check:
        ended.check_returncode()
    return ended


def _start_server() -> None:
    before = {name: os.environ.get(name) for name in SERVER}
    os.environ.update(SERVER)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# In the new process


def _begin(command: list[str], streams: list[Connection], cwd: str, environment: dict[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    waiting = []
    asked = re.search(r"--trainer\.devices=(\d+)", " ".join(command))
    for _ in range(int(asked[1]) - 1 if asked else 1):
        ours, theirs = os.pipe()
        if (pid := os.fork()) == 0:
            for _, pipe in waiting:
                os.close(pipe)
            os.close(theirs)
            with open(ours) as file:
                told = file.read()  # until Lightning asks, or the command has ended
            if not told:
                os._exit(0)
            return _execute(*json.loads(told))
        os.close(ours)
        waiting.append((pid, theirs))
    start = lambda *arguments, **keys: Rank(waiting, *arguments, **keys)  # noqa: E731
    from lightning.pytorch.strategies.launchers import subprocess_script

    subprocess_script.subprocess = SimpleNamespace(Popen=start)
    return _execute(command, environment)


class Rank(subprocess.Popen):
    """One of the processes that wait, which becomes the command that it is given."""

    def __init__(self, waiting: list[tuple[int, int]], *arguments: Any, **keys: Any) -> None:
        self._waiting = waiting
        super().__init__(*arguments, **keys)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest: Any) -> None:
        self.pid, pipe = self._waiting.pop()
        self._child_created = True
        with open(pipe, "w") as file:
            json.dump((args, env), file)


def _execute(command: list[str], environment: dict[str, str]) -> None:
    """What the interpreter does with its arguments: -c code, -m module, or a script."""
    _, first, *arguments = command
    os.environ.clear()
    os.environ.update(environment)
    beside = str(Path(first).resolve().parent) if not first.startswith("-") else os.getcwd()
    found = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [beside, *found, *(path for path in sys.path if path not in ("", *OURS))]
    sys.orig_argv = command
    if first == "-c":
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    elif first == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *arguments]
        runpy.run_path(first, run_name="__main__")
