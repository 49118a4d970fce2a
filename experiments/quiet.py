"""Silences messages of Lightning that are of no use to a user."""

from __future__ import annotations

import logging
import warnings


def hush() -> None:
    """Silences lists of absent devices, and advice on loaders and on what the first process logs alone, which are as they are meant to be."""
    for name in ("utilities.rank_zero", "accelerators.cuda"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore",
        module="lightning.pytorch",
        message=".*(does not have many workers|LeafSpec|callbacks used to create|in eval mode|`srun` command is available|log.'train/(images_per_second|peak_memory_gib)).*",
    )
