"""The process that runs the test files one behind another: none may change it for those behind it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def left_as_found() -> Iterator[None]:
    """Puts back the environment and the handlers of signals, which libraries set; what else has changed is an error."""
    before, handlers = _state(), {number: signal.getsignal(number) for number in SIGNALS}
    with patch.dict(os.environ):
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    now = _state()
    changed = {name: (was, now[name]) for name, was in before.items() if now[name] != was}
    assert not changed, f"As found and as left: {changed}"


def _state() -> dict[str, object]:
    return {
        "running event loop": asyncio._get_running_loop(),
        "working directory": os.getcwd(),
        "threads of torch": torch.get_num_threads(),
        "type of new tensors": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
    }
