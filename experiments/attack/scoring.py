"""The run's detectors in this process: for a score with a gradient, and for features that no file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clip_ood.data.benchmark import Benchmark
from clip_ood.detectors.build import REASONS, inside, required
from clip_ood.detectors.names import read_specs
from clip_ood.errors import ConfigError
from clip_ood.evaluation import DetectorSuite
from clip_ood.experiments.attack.plan import CLEAN, Plan, score_of
from clip_ood.experiments.models import build
from clip_ood.features.store import TextEmbeddings
from clip_ood.features.stored_set import Features
from clip_ood.lightning_modules.zero_shot import ZeroShot
from clip_ood.outputs import OF_WORDS, Outputs
from clip_ood.runs.run_folder import head_of


@dataclass(frozen=True)
class Fitted:
    """A method with its head, and detectors that were fitted on its bank."""

    module: ZeroShot
    suite: DetectorSuite

    @torch.no_grad()
    def scores(self, features: torch.Tensor, embeddings: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Scores (n,) by detector of features (n, D) and embeddings (n, E)."""
        outputs = Outputs(features, embeddings, indices=torch.arange(len(features)))
        return self.suite.score(self.module.outputs(outputs)).scores


@torch.no_grad()
def fit(
    plan: Plan,
    folder: Path,
    benchmark: Benchmark,
    features: dict[str, Features],
    text: TextEmbeddings | None,
    specs: Sequence[str | dict[str, Any]] | None,
) -> Fitted:
    """The run's method with its trained head, and the detectors `specs` fitted on the whole bank."""
    module, data = build(plan.config, benchmark, features, text)
    if plan.config.method.settings.trains:
        checkpoint = torch.load(head_of(plan.source or folder / CLEAN), map_location="cpu", weights_only=True)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    suite = DetectorSuite(module.reference(), specs)
    bank = data.tables["bank"]
    for positions in torch.arange(len(bank)).split(plan.config.evaluation.batch_size):
        suite.update(module.bank_outputs(bank[positions]))
    suite.fit()
    return Fitted(module, suite)


def of_last_layer(specs: Sequence[str | dict[str, Any]] | None) -> list[str | Mapping[str, Any]] | None:
    """Returns the detectors that look at g, h and logits alone, which is what an attack keeps of the images that it makes."""
    if not inside(specs):
        return specs
    kept = [spec for spec in read_specs(specs) if not inside([spec.as_asked()])]
    return [spec.as_asked() for spec in kept]


def check_score(plan: Plan, benchmark: Benchmark) -> None:
    """Raises ConfigError for a score that the run cannot give, before any image is read."""
    if plan.attack.score is None:
        return
    config = plan.config
    if inside([score_of(plan)]):
        raise ConfigError(
            f"score: {plan.attack.score} looks at layers or patches, and attacks are made on the last features. Take another score"
        )
    given = {"features"}
    if config.backbone.reads_text:
        given |= {"embeddings", "logit_scale", "logit_bias", "text_tower"}
        given |= {"text_embeddings", "class_names"} if benchmark.class_names else set()
        given |= set(OF_WORDS) if config.data.negative_words else set()
    if config.method.settings.trains_head:  # through any other, no gradient is taken
        given |= {"logits", "weight", "bias"}
    if config.method.settings.learns_negatives:
        given |= {"negprompt"}
    if benchmark.labelled or config.method.settings.needs_text:
        given |= {"labels"}
    if missing := sorted(required([score_of(plan)]) - given):
        reason = REASONS[missing[0]]
        if "logits" in missing and config.method.settings.gives_logits:
            reason = f"needs the logits of a linear head to be attacked, and method.{config.method.name} has another"
        raise ConfigError(f"score: {plan.attack.score} {reason}. Take another score, or another experiment")
