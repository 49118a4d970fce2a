"""Explains errors of torch whose cause is the loss of workers that decode images, other processes of the run, or shared memory."""

from __future__ import annotations

import re
import time
import traceback

from clip_ood.process import stalls
from clip_ood.process.stopping import ending

SHARED = (
    "the shared memory that passes images from the processes which decode them is full or too small: in a container start it with "
    "--shm-size=2g (or --ipc=host); or decode in the process itself, data.num_workers=0 (detect.py: --workers 0)."
)
MEMORY = "Most likely memory ran out: lower data.num_workers or data.batch_size (detect.py: --workers, --batch-size)."
SEEN_AFTER = 3.0  # seconds after which the death of another process is noticed here


def reason(error: Exception) -> str | None:
    """Returns why a process beside this one made `error` be raised here, as a message, or None if it is an error of another kind.

    If the watch over this process (`clip_ood.process.watch`) sees what has died, its message says more.
    """
    text = str(error)
    if isinstance(error, ConnectionError | EOFError) and _of_multiprocessing(error):
        return f"a process that decodes images has died. {MEMORY}"
    if not isinstance(error, RuntimeError):
        return None
    if re.search(r"shared memory|Bus error|unable to .*</?torch_", text):
        return SHARED
    if re.search(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)", text):
        return f"a process that decodes images has died. {MEMORY}"
    if "DataLoader timed out" in text:
        return (
            f"no image has come for {stalls.limit():g} s from the processes that decode them, so the disk or network behind them hangs. "
            f"{stalls.LONGER}"
        )
    if "gloo" in text or type(error).__name__.startswith("Dist"):
        return _of_peers(text)
    return None


def _of_multiprocessing(error: Exception) -> bool:
    """Says whether the connection to a process that was started for this one broke."""
    return any("multiprocessing" in frame.filename for frame in traceback.extract_tb(error.__traceback__))


def _of_peers(text: str) -> str | None:
    until = time.monotonic() + SEEN_AFTER
    while ending.status is None and time.monotonic() < until:
        time.sleep(0.1)
    if ending.status is not None:
        return None
    if re.search("[Tt]imed out|timeout", text):
        return f"another process of the run has not answered for {stalls.limit():g} s. {stalls.LONGER}"
    return "another process of the run has died, or cannot be reached any more."
