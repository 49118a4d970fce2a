"""What a command checks of loggers and callbacks before it takes the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIGHT = (None, False, "tensorboard", "csv")  # loggers that need nothing else


def check_named(trainer: Mapping[str, Any]) -> None:
    """Raises UserError for a logger or callback that cannot be had. Lightning is imported only where some are named that could not."""
    loggers = trainer.get("logger")
    if trainer.get("callbacks") or any(
        each not in LIGHT for each in (loggers if isinstance(loggers, list) else [loggers])
    ):
        from clip_ood.experiments.loggers import check_loggers

        check_loggers(trainer)
