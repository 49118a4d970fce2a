"""A run's checkpoint: written whole or not at all, and looked at before anything long relies on it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from clip_ood.files import LateErrors, written_whole
from configs.errors import ConfigError

HOLDS = ("state_dict", "epoch", "global_step")


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, brings it to the disk, and only then takes its place: Lightning's own
    writer overwrites the last one, from a file in the system's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises: OSError, with the last checkpoint left as it is."""
        with written_whole(Path(path)) as file:
            late = LateErrors(file)
            torch.save(checkpoint, late)
            late.check()


def check_checkpoint(path: Path) -> None:
    """Raises ConfigError for a checkpoint of Lightning's that is cut off, changed, or something else. Tensors are not kept."""
    try:
        with zipfile.ZipFile(path) as parts:
            if broken := parts.testzip():  # reads all of it once: torch.load would meet it after the extraction
                raise ValueError(f"its part {broken} was changed")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(content, dict) or not all(name in content for name in HOLDS):
            raise ValueError("it is no checkpoint of a run")
    except pickle.UnpicklingError as error:
        raise _damaged(path, "it holds more than tensors and plain values, which is never loaded") from error
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
        raise _damaged(path, " ".join(str(error).split())[:120]) from error


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{path} is damaged ({reason}). Remove it, and train that run again: --resume begins an unfinished one anew, --overwrite a "
        "finished one (features are kept)"
    )
