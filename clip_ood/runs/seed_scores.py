"""Reads the scores of a run, seed by seed, as each image's contribution to an AUROC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from clip_ood.errors import ConfigError
from clip_ood.metrics.influence import Influence, auroc_influence, average
from clip_ood.metrics.ranking import rank_scores
from clip_ood.process.called import called
from clip_ood.runs.run_folder import SCORES
from clip_ood.runs.scores import read_scores
from clip_ood.table import settings_of

Numbers = dict[tuple[str, str] | int, int]  # its content, or set and path -> the number that an image has in every seed


class SeedScores:
    """The scores.parquet in the folder of a single seed. `numbers`, shared by the seeds of a comparison, says which images are
    the same.
    """

    def __init__(self, folder: Path, numbers: Numbers) -> None:
        self.path = folder / SCORES
        self.sets = {each.name: each for each in read_scores(self.path)}
        self.settings = settings_of({name: each.role for name, each in self.sets.items()})
        self.images = {
            name: torch.tensor(
                [numbers.setdefault(key, len(numbers)) for key in each.images or _named(name, each.paths)]
            )
            for name, each in self.sets.items()
        }

    def influence(self, detector: str, ood: Sequence[str], setting: str = "standard") -> Influence:
        """Returns how a detector's AUROC, averaged over OOD sets, depends on each image."""
        for name in {*self.settings.get(setting, ["standard"]), *ood}:
            if name not in self.sets or detector not in self.sets[name].scores:
                raise ConfigError(
                    f"{self.path} holds no scores of {detector} on {name}, and results.json says that there are some: score the "
                    f"run again, {called('eval')} --run RUN"
                )
        positives = self.settings[setting]
        inside = torch.cat([self._scores(name, detector) for name in positives])
        images = torch.cat([self.images[name] for name in positives])
        return average(
            [
                auroc_influence(rank_scores(inside, self._scores(name, detector)), images, self.images[name])
                for name in ood
            ]
        )

    def _scores(self, name: str, detector: str) -> torch.Tensor:
        return torch.from_numpy(self.sets[name].scores[detector])


def _named(name: str, paths: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, path) for path in paths]
