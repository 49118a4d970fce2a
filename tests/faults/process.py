"""Commands of the project in processes of their own, forked from one that has imported the libraries: a start takes no seconds."""

from __future__ import annotations

import os
import re
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from forked import CONTEXT

TESTS = Path(__file__).parents[1]
PROJECT = TESTS.parent
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(PROJECT), str(TESTS)]
)  # of the server, and of the ranks that Lightning starts
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (minus the signal that ended it) and all that it printed."""

    status: int
    said: str

    @property
    def traceback(self) -> bool:
        return re.search(r"^ *Traceback \(most recent call last\)", self.said, re.MULTILINE) is not None


class Started:
    """A command that runs: `Started(["train.py", "--config", "x.yaml"], folder / "log")`.

    `before()`, a function of a module or a partial of one, is called in the new process before the command. All processes that the
    command starts are in its group, which `kill` and `finish` end.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        before: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self.process = CONTEXT.Process(target=_run, args=(command, str(log), before, dict(environment or {})))
        self.process.start()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="backslashreplace") if self.log.is_file() else ""

    def send(self, number: signal.Signals) -> None:
        """A signal to the command's first process alone."""
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Ends the command and all that it has started, at once."""
        if self.process.exitcode is not None and Path(f"/proc/{self.process.pid}").exists():
            return  # its number is another process's by now
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def finish(self, seconds: float = 120) -> Ended:
        """Waits for the command's end. Raises: AssertionError where it hangs."""
        self.process.join(seconds)
        hangs = self.process.exitcode is None
        self.kill()
        assert not hangs, f"hung for {seconds} seconds:\n{self.said}"
        return Ended(self.process.exitcode, self.said)


def run(command: list[str], log: Path, before: Callable[[], None] | None = None, **environment: str) -> Ended:
    return Started(command, log, before, environment).finish()


def _run(command: list[str], log: str, before: Callable[[], None] | None, environment: dict[str, str]) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (open(stream, "w", 1, errors="backslashreplace", closefd=False) for stream in (1, 2))  # noqa: SIM115
    os.environ.update(environment)
    if before is not None:
        before()
    script, *arguments = command
    sys.argv = [str(PROJECT / script) if script.endswith(".py") else script, *arguments]
    if script.endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:  # as python -m
        runpy.run_module(script, run_name="__main__", alter_sys=True)
