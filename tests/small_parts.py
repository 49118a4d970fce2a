"""train.py or eval.py with parts of 16 images: python tests/small_parts.py train --config …

A few hundred images then fill many parts, as ImageNet does with parts of the real size. With KILL_AT=n in the environment segments
are merged at 64 entries, and the process kills itself before the n-th time that it brings a file to the disk, renames or removes one.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from clip_ood.command_line import guarded
from clip_ood.features import entries, store
from clip_ood.files import writing as files


def kill_at(number: int) -> None:
    steps = count(1)

    def counted(step):
        def run(*arguments, **more):
            if next(steps) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **more)

        return run

    files.os.fsync = counted(os.fsync)
    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
    entries.LARGE = 64


if __name__ == "__main__":
    store.PART = 16
    if "KILL_AT" in os.environ:
        kill_at(int(os.environ["KILL_AT"]))
    guarded(lambda: import_module(sys.argv[1]).main(sys.argv[2:]))
