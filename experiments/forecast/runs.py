"""Tells which runs a command would make: one for each seed, with the folder and the head that it would have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clip_ood.config.schema import Config
from clip_ood.experiments.seeds import is_done, of_seed
from clip_ood.runs.run_folder import head_of, seed_folder


@dataclass(frozen=True)
class Run:
    """A single run: its name, its config, its folder, the head that it is given (None: it trains one, or needs none), and
    whether it continues what its folder holds.
    """

    name: str
    config: Config
    folder: Path
    head: Path | None = None
    begun: bool = False

    @property
    def trains(self) -> bool:
        return self.config.method.settings.trains and self.head is None

    @property
    def pseudo(self) -> bool:
        """Whether only the encoder decides which images it learns from."""
        return self.config.method.plp is not None


def single_runs(name: str, config: Config, folder: Path, source: Path | None, begun: bool) -> Iterator[Run]:
    """Yields the runs of an experiment in `folder` that are not finished; with `source`, heads are taken from that run."""
    given = source if config.method.settings.trains else None
    if not config.seeds:
        yield Run(name, config, folder, given and head_of(given), begun)
    for seed in config.seeds:
        of_one, place = of_seed(config, seed), seed_folder(folder, seed)
        if not (begun and is_done(of_one, place)):
            yield Run(f"{name}, seed {seed}", of_one, place, given and head_of(seed_folder(given, seed)), begun)
