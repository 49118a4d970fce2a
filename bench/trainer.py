"""Makes the Trainer of benchmarks, which runs on the CPU and keeps nothing."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

OFF = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "use_distributed_sampler")


def quiet_trainer(*callbacks: Callback, **keys: Any) -> Trainer:
    """Makes a Trainer with these callbacks that neither logs nor shows anything, unless `keys` say otherwise."""
    ours = {"accelerator": "cpu", "devices": 1, "callbacks": list(callbacks)} | dict.fromkeys(OFF, False)
    return Trainer(**ours | keys)
