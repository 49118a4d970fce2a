"""Checks, and reads, the earlier run from whose weights another one starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clip_ood.config.loading import load_config
from clip_ood.config.schema import Config
from clip_ood.errors import ConfigError
from clip_ood.experiments.checkpoints import check_checkpoint
from clip_ood.experiments.resume import check_division
from clip_ood.lightning_modules.zero_shot import check_classes
from clip_ood.runs.run_folder import CONFIG, FINISHED, head_of, of_seed


def finished_run(seed: int, key: str, place: str, neither: str) -> tuple[Path, Config]:
    """Returns a finished run from which a key takes what it has learnt, and its config. Raises: ConfigError for anything else."""
    run = of_seed(Path(place), seed)
    if not ((run / FINISHED).is_file() and head_of(run).is_file()):
        raise ConfigError(f"{key}: {str(run)!r} is {neither} nor a finished run with a head")
    check_checkpoint(head_of(run))
    return run, load_config(str(run / CONFIG))


def learnt_by(seed: int, place: str, class_names: Sequence[str] | None) -> tuple[Path, dict[str, Any]]:
    """Returns a finished run and what it has learnt, its checkpoint. Raises: UserError for a run of other classes."""
    run = of_seed(Path(place), seed)
    checkpoint = torch.load(head_of(run), map_location="cpu", weights_only=True)
    check_classes(checkpoint, class_names, str(run))
    return run, checkpoint


def check_fits(config: Config, key: str, run: Path, theirs: Config) -> None:
    """Raises: ConfigError if what a run has learnt is of another encoder, or of another division of the images."""
    if theirs.backbone.model_copy(update={"label": None, "text": None}) != config.backbone.model_copy(
        update={"label": None, "text": None}
    ):
        raise ConfigError(
            f"{key}: {run} has another encoder ({theirs.backbone.model}), and what it has learnt does not fit: "
            "train a probe, or prompts, of this one"
        )
    try:
        check_division(run, config)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
