"""Writes a run's checkpoint whole or not at all, and checks it before anything long relies on it."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from pydantic import ConfigDict
from torch import Tensor

from clip_ood.errors import ConfigError, UserError, brief
from clip_ood.files.records import Count, Record, Text, fitting
from clip_ood.files.shapes import HEAD, check_shapes
from clip_ood.files.writing import LateErrors, written_whole

HEADS = (  # on standardised features; on the features of a tuned encoder
    {"head.mean", "head.std", "head.linear.weight", "head.linear.bias"},
    {"head.weight", "head.bias"},
)


class Checkpoint(Record):
    """The entries of a checkpoint that Lightning and our modules need."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    epoch: Count
    global_step: Count
    state_dict: dict[Text, Tensor]
    loops: dict[Text, dict[str, Any]]
    callbacks: dict[Text, Any]
    optimizer_states: list[dict[str, Any]]
    lr_schedulers: list[dict[str, Any]]
    class_names: list[Text] = []  # noqa: RUF012
    sweep: list[dict[str, Any]] | None = None
    heads: dict[Text, Tensor] | None = None
    prompts: dict[Text, Tensor] | None = None


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, syncs it to the disk, and only then replaces the old one.

    Lightning's own writer overwrites the last one, from a file in the system's temporary folder.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves a checkpoint.

        Raises: OSError, with the last checkpoint left as it is; UserError for a callback whose state could not be read again.
        """
        check_states(checkpoint.get("callbacks", {}))
        with written_whole(Path(path)) as file:
            late = LateErrors(file)
            torch.save(checkpoint, late)
            late.check()


def check_states(states: Mapping[str, Any]) -> None:
    """Raises UserError for the state of a callback, by its name, that holds more than is ever read from a checkpoint."""
    for name, state in states.items():
        file = io.BytesIO()
        try:
            torch.save(state, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except (pickle.PickleError, AttributeError, TypeError) as error:
            kind = re.search(r"(?:global|class|object|Can't \w+) '?([\w.]+)", str(error))
            raise UserError(
                f"trainer.callbacks: the state_dict() of {name.partition('{')[0]} holds more than tensors, numbers, texts, lists and "
                f"dictionaries{f' ({kind[1]})' if kind else ''}, and nothing else is ever read from a checkpoint: --resume would fail. "
                "Keep the state in these"
            ) from error


def check_checkpoint(path: Path) -> None:
    """Raises ConfigError for a file that is no Lightning checkpoint, is truncated, or was changed. Tensors are not kept."""
    try:
        with zipfile.ZipFile(path) as parts:
            if broken := parts.testzip():  # reads all of it once, now and not after the extraction
                raise UserError(f"its part {broken} was changed")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        fitting(content, Checkpoint)
        head = {name: tensor for name, tensor in content["state_dict"].items() if name.startswith("head.")}
        if head and head.keys() not in HEADS:
            raise UserError("the head in it is not whole")
        check_shapes(head, HEAD, {"C": len(content["class_names"])} if content.get("class_names") else {})
    except pickle.UnpicklingError as error:
        raise _damaged(path, "it holds more than tensors and plain values, which is never loaded") from error
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
        raise _damaged(path, brief(error)) from error


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{path} is damaged ({reason}). Remove it, and train that run again: --resume begins an unfinished one anew, --overwrite a "
        "finished one (features are kept)"
    )
