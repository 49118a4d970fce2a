"""Training that is stopped as by Ctrl-C."""

from __future__ import annotations

import pytest

import train


def train_until(epoch: int, module: type, config: str) -> None:
    """Trains a method, whose module is of this class, until an epoch begins."""
    original = module.on_train_epoch_start

    def stop(self):
        if self.current_epoch == epoch:
            raise KeyboardInterrupt
        original(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(module, "on_train_epoch_start", stop)
        train.main(["--config", config])
