"""What a test file may leave behind in its process."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from own_process import left_as_found


def test_handlers_and_variables_are_put_back():
    was = signal.getsignal(signal.SIGTERM)
    with left_as_found():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.environ["CLIP_OOD_LEFT"] = "1"
    assert signal.getsignal(signal.SIGTERM) == was and "CLIP_OOD_LEFT" not in os.environ


def test_a_loop_that_still_runs_is_an_error():
    """As that of a browser which outlives its file."""
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(AssertionError, match="running event loop"), left_as_found():
            asyncio._set_running_loop(loop)
    finally:
        asyncio._set_running_loop(None)
        loop.close()
