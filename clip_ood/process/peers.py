"""Reaches the other processes of a run, whoever started them, through the store by which torch.distributed found them."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from datetime import timedelta

ENDED, HEARD = "clip_ood/ended", "clip_ood/heard"
PATIENCE = 3.0  # seconds


class Peers:
    """A separate connection to the store, so that a wait elsewhere does not block it. It is lost when the first process ends."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.world, self.store = dist.get_rank(), dist.get_world_size(), None
        with suppress(RuntimeError):
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self.store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=PATIENCE))

    @classmethod
    def found(cls, here: int) -> Peers | None:
        """Connects to the store, if torch.distributed has found the processes and there are more than `here`.

        `here` counts the processes that know of each other already.
        """
        dist = sys.modules.get("torch.distributed")
        met = getattr(dist, "is_initialized", None)  # absent while it is being imported
        return cls() if met is not None and met() and dist.get_world_size() > here else None

    def ended(self) -> int | None:
        """Returns the exit status with which another process ends before its time, once it says so."""
        if self.store is None:
            return None
        try:
            if not self.store.check([ENDED]):
                return None
            status = int(self.store.get(ENDED))
            self.store.add(HEARD, 1)
            return status
        except RuntimeError:
            self.store = None  # asking again would take seconds each time
            return None

    def tell(self, status: int) -> None:
        """Tells the others that this process ends with `status`; the first process waits for them, since the store ends with it."""
        if self.store is None:
            return
        with suppress(RuntimeError):
            self.store.set(ENDED, str(status))
            until = time.monotonic() + PATIENCE
            while self.rank == 0 and self.store.add(HEARD, 0) < self.world - 1 and time.monotonic() < until:
                time.sleep(0.1)
