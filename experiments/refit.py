"""Fits method and detectors anew on other images than the run does, from stored features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.experiments.models import build
from clip_ood.experiments.trainer import new_trainer
from clip_ood.features.store import TextEmbeddings
from clip_ood.features.stored_set import Features


def refit(
    config: Config,
    benchmark: Benchmark,
    features: dict[str, Features],
    text: TextEmbeddings | None,
    specs: Sequence[str | Mapping[str, Any]] | None,
) -> OODEvaluation:
    """Trains the head, if the method has one, fits these detectors on the bank and scores all other sets.

    Nothing is written or logged, and the run's own callbacks do not see it. All processes call this together.
    """
    module, data = build(config, benchmark, features, text)
    evaluation = OODEvaluation(
        specs, data.evaluated, every_n_epochs=0, accept=config.evaluation.accept, intervals=False
    )
    settings = config.method.settings
    ours = {
        "max_epochs": getattr(settings, "epochs", 1),
        "callbacks": [evaluation],
        "enable_checkpointing": False,
        "logger": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "gradient_clip_val": getattr(settings, "clip_gradient", None),
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    trainer = new_trainer(ours, config.trainer)
    if settings.trains:
        trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return evaluation
