"""Makes the module that learns negative prompts, and checks what it begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clip_ood.config import method_schema
from clip_ood.config.schema import Config
from clip_ood.errors import ConfigError
from clip_ood.experiments.earlier_run import check_fits, finished_run, learnt_by
from clip_ood.lightning_modules.neg_prompt import NegPrompt

POSITIVES, TEXT = "method.negprompt.positives", "text"


def neg_prompt(
    settings: method_schema.NegPrompt, seed: int, names: Sequence[Sequence[str]], **classes: Any
) -> NegPrompt:
    """Makes the module of method.negprompt, for the names of each class. Raises: UserError for positives of other classes."""
    if settings.positives == TEXT:
        return NegPrompt(settings, seed, names, **classes)
    _, checkpoint = learnt_by(seed, settings.positives, classes["class_names"])
    context = checkpoint["prompts"]["prompts.context"]  # (1 or C, M, W)
    settings = settings.model_copy(update={"context": context.shape[1], "start": None})
    module = NegPrompt(settings, seed, names, checkpoint["state_dict"]["learnt"], **classes)
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
