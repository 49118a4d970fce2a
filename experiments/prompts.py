"""Makes the modules that learn prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clip_ood.config import method_schema
from clip_ood.config.schema import Config
from clip_ood.errors import ConfigError
from clip_ood.experiments.earlier_run import check_fits, finished_run
from clip_ood.lightning_modules.coop import CoOp
from clip_ood.lightning_modules.locoop import LoCoOp
from clip_ood.lightning_modules.neg_prompt import NegPrompt
from clip_ood.lightning_modules.zero_shot import check_classes
from clip_ood.runs.run_folder import head_of, of_seed

POSITIVES, TEXT = "method.negprompt.positives", "text"


def coop(config: Config, names: Sequence[Sequence[str]], classes: dict[str, Any]) -> CoOp:
    """Makes the module of method.coop, for the names of each class."""
    return CoOp(config.method.settings, config.seed, names, **classes)


def locoop(config: Config, names: Sequence[Sequence[str]], classes: dict[str, Any]) -> CoOp:
    """Makes the module of method.locoop, for the names of each class."""
    return LoCoOp(config.method.settings, config.seed, names, **classes)


def neg_prompt(config: Config, names: Sequence[Sequence[str]], classes: dict[str, Any]) -> NegPrompt:
    """Makes the module of method.negprompt, for the names of each class. Raises: UserError for positives of other classes."""
    own = config.method.settings
    if own.positives == TEXT:
        return NegPrompt(own, config.seed, names, **classes)
    run = of_seed(Path(own.positives), config.seed)
    checkpoint = torch.load(head_of(run), map_location="cpu", weights_only=True)
    check_classes(checkpoint, classes["class_names"], str(run))
    context = checkpoint["prompts"]["prompts.context"]  # (1 or C, M, W)
    own = own.model_copy(update={"context": context.shape[1], "start": None})
    module = NegPrompt(own, config.seed, names, checkpoint["state_dict"]["learnt"], **classes)
    module.start_context = context
    return module


def check_positives(config: Config) -> None:
    """Raises ConfigError for a run whose learnt prompts cannot be the positives of negative ones."""
    own = config.method.settings
    if own.positives == TEXT:
        return
    run, theirs = finished_run(config.seed, POSITIVES, own.positives, "neither text")
    settings = theirs.method.settings
    if not isinstance(settings, method_schema.CoOp) or settings.learns_negatives:
        raise ConfigError(f"{POSITIVES}: {run} is a {theirs.method.name} run; take a coop or locoop run")
    for key in ("class_position", "class_specific"):
        if (ours := getattr(own, key)) != (other := getattr(settings, key)):
            raise ConfigError(
                f"method.negprompt.{key} is {ours}, and {run} has learnt prompts with {other}: give the same"
            )
    if config.evaluation.hold_out_classes is not None:
        raise ConfigError(
            f"evaluation.hold_out_classes leaves classes out, and {run} has learnt all of them: take text"
        )
    check_fits(config, POSITIVES, run, theirs)
