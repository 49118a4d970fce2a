"""Scripts of the project without what a laptop with macOS or Windows lacks: python tests/portable.py FOLDER, a line of arguments a
command on standard input.

Gone are fcntl, resource, pwd and grp; processes by fork; signals that Windows lacks; system calls of POSIX alone. Folders cannot be
opened, open files cannot be renamed, replaced or removed, and links cannot be made. Only files in FOLDER are treated so: what Python
itself does elsewhere is of this system.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import tempfile
from importlib import import_module
from pathlib import Path

PROJECT = Path(__file__).parents[1]
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "posix_ipc")
CALLS = "fork forkpty getuid geteuid getgid getpgid setsid killpg mkfifo statvfs sched_getaffinity posix_fadvise"
FLAGS = "O_DIRECTORY O_NOFOLLOW O_SYNC O_DIRECT O_TMPFILE"
SIGNALS = "SIGUSR1 SIGUSR2 SIGHUP SIGKILL SIGQUIT SIGALRM SIGPIPE SIGCONT SIGSTOP SIGTSTP"


def take_away(folder: str) -> None:
    free = shutil.disk_usage(folder)  # which Windows tells in another way
    shutil.disk_usage = lambda path: free
    sys.modules |= dict.fromkeys(MODULES)  # None: an import raises
    for module, names in ((os, CALLS), (os, FLAGS), (signal, SIGNALS)):
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)

    windows = {signal.SIGINT, signal.SIGTERM, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
    signal.valid_signals = lambda: windows

    def refused(call, *positions):
        """`call`, which fails where one of the arguments at these positions is open in this process."""

        def run(*arguments, **more):
            for position in positions:
                path = os.path.realpath(arguments[position]) if not more else ""
                if path.startswith(folder) and is_open(path):
                    raise PermissionError(13, "The process cannot access the file because it is being used", path)
            return call(*arguments, **more)

        return run

    def opened(path, flags, *arguments, call=os.open, **more):
        if os.path.isdir(path) and str(path).startswith(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return call(path, flags, *arguments, **more)

    def linked(*arguments, **more):
        raise OSError(1314, "A required privilege is not held by the client")

    tempfile.TemporaryFile, shutil._use_fd_functions = tempfile.NamedTemporaryFile, False  # as there
    os.open, os.symlink, os.link = opened, linked, linked
    os.replace, os.rename = refused(os.replace, 0, 1), refused(os.rename, 0, 1)
    os.unlink, os.remove = refused(os.unlink, 0), refused(os.remove, 0)


def is_open(path: str) -> bool:
    """Whether this process has a file open, or mapped."""
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == path:
                return True
        except FileNotFoundError:  # of the listing itself
            continue
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return any(line.rstrip("\n").endswith(f" {path}") for line in maps)


if __name__ in ("__main__", "__mp_main__"):  # in processes that are spawned, too
    take_away(os.environ.setdefault("PORTABLE", os.path.realpath(sys.argv[1])))

if __name__ == "__main__":
    sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]
    multiprocessing.set_start_method("spawn")
    signals = import_module("lightning.pytorch.trainer.connectors.signal_connector")
    signals._IS_WINDOWS = True  # as it finds out by itself there
    for line in sys.stdin:
        script, *arguments = shlex.split(line)
        print(f"{script}: ", end="", flush=True)
        try:
            import_module(script).main(arguments)
        except SystemExit as ended:
            assert not ended.code, ended.code
