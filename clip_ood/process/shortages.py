"""Says in one line, which names the file, what a machine lacks: room, rights, memory, or files that may be open."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

_ROOM = "free some room there, or name another folder"
_RIGHTS = "its rights do not allow it, or its file system can only be read"
_FILES = "raise their number (ulimit -n), or lower data.num_workers (detect.py: --workers)"
ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "files there may not be that large (ulimit -f)",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
}
OUT_OF_MEMORY = (
    "the memory of this machine is full. Lower data.batch_size and data.num_workers (detect.py: --batch-size, --workers), or the "
    "batch_size of the method"
)
OUT_OF_GPU_MEMORY = (
    "the GPU's memory is full. Extraction and evaluation: lower data.batch_size, or backbone.precision=bf16. Fine-tuning: "
    "method.finetune.gradient_checkpointing=true, trainer.accumulate_grad_batches=2 (or more; the global batch stays), "
    "trainer.precision=bf16-mixed, or a smaller method.finetune.batch_size. Sweeps: fewer heads, or a smaller batch_size"
)
OURS = "clip_ood."  # errors of these modules say what they mean, and what is kept


class Shortage(OSError):
    """A machine lacks something that the work needs; the message says what, and what is kept."""


def lack(error: BaseException) -> str | None:
    """Returns what a machine lacked, if an error says that or was raised because of one that does; otherwise None.

    >>> lack(OSError(errno.ENOSPC, "No space left on device", "runs/demo/results.json"))
    'runs/demo/results.json: No space left on device; free some room there, or name another folder'
    """
    for each in _causes(error):
        if type(each).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            return f"{OUT_OF_GPU_MEMORY}\n({each})"
        if _no_memory(each):
            return f"{OUT_OF_MEMORY} ({_last_line(each)})"
        if isinstance(each, OSError) and (told := _of_file(each)):
            own = type(error).__module__.startswith(OURS)
            return str(error) if own or (each is not error and each.filename is None) else told
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and those that it was raised from, because loggers wrap errors in their own."""
    while error is not None:
        yield error
        error = error.__cause__


def _no_memory(error: BaseException) -> bool:
    """Says whether memory was short: by MemoryError, or by a RuntimeError of torch's allocator or mmap."""
    told = "can't allocate memory" in str(error) or "Cannot allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError | OSError) and told)


def _of_file(error: OSError) -> str | None:
    number, reason, name = error.errno, error.strerror, error.filename
    if number is None:  # the message of a DataLoader's worker ends with what was raised there
        found = re.match(r"\w+: \[Errno (\d+)\] ([^:]*)(?:: '(.*)')?$", _last_line(error))
        if found is None:
            return None
        number, reason, name = int(found[1]), found[2], found[3]
    if number not in ADVICE:
        return None
    shown = os.fsdecode(name) if isinstance(name, bytes) else name
    return f"{shown or 'standard output, or a file that a library wrote'}: {reason}; {ADVICE[number]}"


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
