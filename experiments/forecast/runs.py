"""Tells which runs a command would make: one for each seed, with the folder and the head that it would have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from clip_ood.config.schema import Config
from clip_ood.experiments.attack.craft import folder_of, image_counts
from clip_ood.experiments.attack.plan import (
    AFTER,
    BEFORE,
    CLEAN,
    SCORED,
    Plan,
    defended,
    transfer_folder,
    transferred,
    with_sets,
)
from clip_ood.experiments.kept_decisions import as_kept, kept_by, kept_in
from clip_ood.experiments.seeds import is_done, of_seed
from clip_ood.runs.run_folder import FINISHED, head_of, seed_folder


@dataclass(frozen=True)
class Run:
    """A single run: what people call it, its config, its folder, the head that it is given (None: it trains one, or needs none), and
    whether it goes on with what its folder holds, or has finished and is only looked at. `made`: image sets that do not lie anywhere
    before it begins, with their numbers of images, beside those of its config."""

    name: str
    config: Config
    folder: Path
    head: Path | None = None
    begun: bool = False
    done: bool = False
    made: Mapping[str, int] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        return self.config.method.settings.trains and self.head is None and not self.done

    @property
    def pseudo(self) -> bool:
        """Whether only the encoder decides which images it learns from."""
        return self.config.method.plp is not None


def single_runs(name: str, config: Config, folder: Path, source: Path | None, begun: bool) -> Iterator[Run]:
    """Yields the runs of an experiment in `folder` that are not finished; with `source`, heads are taken from that run."""
    given = source if config.method.settings.trains else None
    if not config.seeds:
        yield Run(name, _kept(config, folder, source, begun), folder, given and head_of(given), begun)
    for seed in config.seeds:
        of_one, place = of_seed(config, seed), seed_folder(folder, seed)
        if not (begun and is_done(of_one, place)):
            kept = _kept(of_one, place if kept_in(place).is_file() else folder, source, begun)
            yield Run(f"{name}, seed {seed}", kept, place, given and head_of(seed_folder(given, seed)), begun)


def _kept(config: Config, folder: Path, source: Path | None, begun: bool) -> Config:
    own = kept_in(folder)
    return as_kept(config, own if begun and own.is_file() else kept_by(source, config))


def attack_runs(plan: Plan, folder: Path, begun: bool) -> Iterator[Run]:
    """The runs of an attack in `folder` that are not finished, after the one of the experiment as it is. The run without the targets in
    its bank is not among them: it reads what the others have encoded."""
    plan = replace(plan, config=_kept(plan.config, folder, plan.source, begun))
    attack, config = plan.attack, plan.config
    made = {str(folder_of(plan, folder, name)): count for name, count in image_counts(attack).items()}
    main = {place: made[place] for name in (BEFORE, AFTER) if (place := str(folder_of(plan, folder, name)))}

    def run(name: str, config: Config, place: Path, source: Path | None, made: Mapping[str, int]) -> Run:
        given = head_of(source) if source is not None and config.method.settings.trains else None
        there = config.model_copy(update={"runs_root": attack.runs_root})
        return Run(name, there, place, given, begun, begun and (place / FINISHED).is_file(), made)

    clean = folder / CLEAN
    others = [run(SCORED, with_sets(config, defended(attack)), folder / SCORED, plan.source or clean, made)]
    for name, block in attack.transfer.items():
        place = transfer_folder(folder, name)
        others.append(run(place.name, with_sets(transferred(plan, name, block), {}), place, None, main))
    yield run(CLEAN, config, clean, plan.source, {})
    yield from (each for each in others if not each.done)
