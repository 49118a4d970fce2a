"""An attack from config to result: the run as it is, the images, every score on them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Trainer
from torch import Tensor

from clip_ood.config.data_schema import ImageSet
from clip_ood.config.schema import Config
from clip_ood.experiments.attack.craft import craft, file_names, folder_of, image_counts
from clip_ood.experiments.attack.pairs import Pairs, check_pairs, draw_pairs
from clip_ood.experiments.attack.plan import (
    AFTER,
    APART,
    BEFORE,
    CLEAN,
    SCORED,
    Plan,
    defended,
    image_set,
    score_of,
    transfer_folder,
    transferred,
    with_sets,
)
from clip_ood.experiments.attack.scoring import check_score, fit, of_last_layer
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.extraction import load_features, using_features
from clip_ood.experiments.kept_decisions import as_kept, keep_decisions, kept_by, kept_in
from clip_ood.experiments.resume import check_images
from clip_ood.experiments.seeds import experiment
from clip_ood.experiments.trainer import new_trainer
from clip_ood.files.text_files import names_as_bytes
from clip_ood.files.writing import written_whole
from clip_ood.process import stalls
from clip_ood.process.locks import alone
from clip_ood.runs.run_folder import FINISHED, is_follower
from clip_ood.terminal.shown import say

TARGETS = "targets.txt"


@dataclass(frozen=True)
class Found:
    """What an attack found, for its report: pairs and figures (n,) of them; the folders of the runs that scored the images, by
    condition; scores (n,) by detector of the pixels before they were rounded; image files by position."""

    pairs: Pairs
    figures: dict[str, Tensor]
    runs: dict[str, Path]
    exact: dict[str, Tensor]
    files: list[str]


def conduct(plan: Plan, folder: Path) -> Found | None:
    """Runs what is not there yet; None beside the first process. Raises: InUse where another attack saves its images at the same
    place."""
    with ExitStack() as held:
        if (images := plan.attack.images) is not None and not is_follower():
            held.enter_context(alone(images, "wait until it ends, or name another folder with --images"))
        held.enter_context(using_features(plan.config))
        return _conduct(plan, folder)


def _conduct(plan: Plan, folder: Path) -> Found | None:
    attack, config = plan.attack, plan.config
    stalls.wait_at_most(config.timeout)
    keep_decisions(config, folder, kept_by(plan.source, config))
    benchmark = load_benchmark(as_kept(config, kept_in(folder)))
    check_pairs(attack, benchmark)
    check_score(plan, benchmark)
    if not is_follower():
        check_images(folder / CLEAN, benchmark)
    _once(config, folder / CLEAN, plan.source)
    trainer = _trainer(config)
    features, text = load_features(config, benchmark, trainer, folder / CLEAN)
    pairs = draw_pairs(config, attack, benchmark, features, text)
    known = plan, folder, benchmark, features, text
    score = None if attack.score is None else fit(*known, [score_of(plan)]).suite.detectors[attack.score]
    if pairs.others and not is_follower():  # before craft's barrier: all processes read it
        with written_whole(folder / TARGETS) as file:
            file.write(names_as_bytes(dict.fromkeys(pairs.aims)))
    figures = craft(plan, folder, trainer, benchmark, pairs, score)
    head = plan.source or folder / CLEAN
    runs = {"": folder / SCORED}
    _once(with_sets(config, _sets(plan, folder)), folder / SCORED, head)
    both = {name: image_set(folder_of(plan, folder, name)) for name in (BEFORE, AFTER)}
    if pairs.others:
        runs["targets out of the gallery"] = folder / APART
        _once(_apart(with_sets(config, both), folder), folder / APART, head)
    for name, block in attack.transfer.items():
        runs[f"scored by {name}"] = transfer_folder(folder, name)
        _once(with_sets(transferred(plan, name, block), both), runs[f"scored by {name}"], None)
    if is_follower():
        return None
    specs, exact = of_last_layer(config.detectors), {}
    if specs is None or specs:
        exact = fit(*known, specs).scores(figures["features"], figures.get("embeddings"))
    return Found(pairs, figures, runs, exact, file_names(pairs))


def _once(config: Config, folder: Path, source: Path | None) -> None:
    """Runs an experiment, unless it is finished."""
    if (folder / FINISHED).is_file():
        return
    if not is_follower():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"{folder}", flush=True)
    kept = kept_in(folder.parent)  # that of the attack
    experiment(config, folder, source, kept if kept.is_file() else None)


def _trainer(config: Config) -> Trainer:
    """The Trainer that looks stored features up and attacks; weights take no gradients, pixels do."""
    ours = {"enable_checkpointing": False, "enable_model_summary": False, "inference_mode": False}
    return new_trainer({"logger": False}, config.trainer | ours | {"use_distributed_sampler": False})


def _sets(plan: Plan, folder: Path) -> dict[str, ImageSet]:
    """Every image set that the run's own encoder scores: before, after, and what the curves and defences ask for."""
    return {name: image_set(folder_of(plan, folder, name)) for name in image_counts(plan.attack)} | defended(
        plan.attack
    )


def _apart(config: Config, folder: Path) -> Config:
    """The experiment with the targets left out of the bank."""
    evaluation = config.evaluation.model_copy(update={"bank_without": (folder / TARGETS).resolve()})
    return config.model_copy(update={"evaluation": evaluation})
