"""Looks at some runs before they begin: what they find, what they need, and everything for which they would stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from clip_ood.backbones.library import library
from clip_ood.config.checks import check_places, check_texts, image_sets
from clip_ood.config.schema import Config, FineTune
from clip_ood.data.benchmark import Benchmark, list_set
from clip_ood.data.image_list import ImageList
from clip_ood.errors import UserError
from clip_ood.experiments.benchmarks import benchmark_of
from clip_ood.experiments.cautions import too_few_to_calibrate
from clip_ood.experiments.forecast.encoders import Encoder
from clip_ood.experiments.forecast.images import FoundSet, find_set, sets_of
from clip_ood.experiments.forecast.making import Making
from clip_ood.experiments.forecast.runs import Run
from clip_ood.experiments.forecast.space import Writing, check_room, checkpoint_size, detector_size, scores_size
from clip_ood.experiments.loggers import check_loggers
from clip_ood.experiments.models import check_detectors, check_method
from clip_ood.experiments.run import check_begun, scoring
from clip_ood.experiments.run_trainer import decay_of
from clip_ood.process.launchers import processes


@dataclass
class Expected:
    """What is expected of one run.

    benchmark is None where images are missing; checkpoint, detector and scores are bytes, None where they are not known; steps, those
    of the optimizer an epoch, None where nothing is trained or nobody knows.
    """

    run: Run
    processes: int
    benchmark: Benchmark | None = None
    checkpoint: int | None = None
    detector: int | None = None
    scores: int | None = None
    steps: int | None = None


@dataclass
class Forecast:
    """What was found out: `sets`, the image sets of each run that has others than those before it; `making`, what an attack makes;
    `problems` are what runs would stop for, each with their names; `cautions` stop none."""

    sets: list[dict[str, FoundSet]] = field(default_factory=list)
    encoders: list[Encoder] = field(default_factory=list)
    runs: list[Expected] = field(default_factory=list)
    making: Making | None = None
    writings: list[Writing] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    _found: dict[tuple[str, ...], FoundSet] = field(default_factory=dict)

    @contextmanager
    def checking(self, run: str = "") -> Iterator[None]:
        """Wraps checks of a run: what they raise becomes a problem of that run, or of all."""
        try:
            yield
        except (UserError, OSError) as error:
            self.problems.setdefault(str(error), []).append(run)

    def encoder(self, config: Config) -> Encoder:
        """The encoder of a run, which others may have as well."""
        for encoder in self.encoders:
            if (encoder.config.backbone, encoder.config.features_root) == (config.backbone, config.features_root):
                return encoder
        self.encoders.append(Encoder(config))
        return self.encoders[-1]

    def found(self, config: Config) -> dict[str, FoundSet]:
        """The image sets of a run; one that another run has as well is looked for once."""
        place = config.data.model_dump_json(include={"root", "allow_partial"})
        found = {}
        for key, (named, spec) in sets_of(config).items():
            known = place, key, named.model_dump_json()
            if known not in self._found:
                self._found[known] = find_set(config, key, named, spec)
                if problem := self._found[known].problem:
                    self.problems[problem] = [""]
            found[key] = self._found[known]
        if not any(found.items() <= others.items() for others in self.sets):
            self.sets.append(found)
        return found


def look_ahead(runs: Iterable[Run], forecast: Forecast) -> Forecast:
    """Returns everything about these runs. No image is read, no weights are loaded, no host is contacted and nothing is written."""
    for run in runs:
        forecast.runs.append(Expected(run, processes(run.config.trainer)))
        _look_at(forecast.runs[-1], forecast)
    for encoder in forecast.encoders:
        forecast.writings.append(Writing(encoder.config.features_root, "features", encoder.size))
        forecast.writings += [Writing(folder, "weights", size) for folder, size in encoder.incoming.items()]
    for each in forecast.runs:
        root = each.run.config.runs_root
        forecast.writings.append(Writing(root, "checkpoints", each.checkpoint))
        forecast.writings.append(Writing(root, "detectors", each.detector))
        forecast.writings.append(Writing(root, "scores", each.scores))
    replaced = [each for each in forecast.runs if each.checkpoint and each.run.config.method.settings.epochs > 1]
    if replaced:  # the new file is whole before the old one is removed
        largest = max(replaced, key=lambda each: each.checkpoint)
        forecast.writings.append(Writing(largest.run.config.runs_root, "checkpoints", largest.checkpoint))
    for error in check_room(forecast.writings):
        forecast.problems[str(error)] = [""]
    return forecast


def _look_at(expected: Expected, forecast: Forecast) -> None:
    run, config = expected.run, expected.run.config
    found, encoder = forecast.found(config), forecast.encoder(config)
    for name, count in run.made.items():
        encoder.add_count(config, name, count)
    for check in (check_places, check_texts):
        with forecast.checking(run.name):
            check(config)
    listed = {key: each.images for key, each in found.items() if each.images is not None}
    if len(listed) == len(found):
        with forecast.checking(run.name):
            expected.benchmark = benchmark_of(config, _of_its_seed(config, listed))
    if expected.benchmark is not None:
        _look_at_benchmark(expected, encoder, forecast)
        return
    encoder.add_images(config, listed)
    for key, each in found.items():
        if each.images is None:
            encoder.add_count(config, f"{config.data.root} {key}", each.count)


def _look_at_benchmark(expected: Expected, encoder: Encoder, forecast: Forecast) -> None:
    run, benchmark, averaged = expected.run, expected.benchmark, False
    config = scoring(run.config, run.head)
    settings, shape = config.method.settings, encoder.shape
    with forecast.checking(run.name):
        check_loggers(config.trainer)
        check_method(config, benchmark)
    if (run.begun or run.head is not None) and not run.made:
        with forecast.checking(run.name):
            check_begun(run.config, run.folder, run.head, benchmark)
    if run.trains and isinstance(settings, FineTune):
        images = len(benchmark.parts["train"].rows)
        expected.steps = images // settings.batch_size
        accumulated = config.trainer.get("accumulate_grad_batches", 1)
        with forecast.checking(run.name):
            averaged = decay_of(settings, images, expected.processes, accumulated) is not None
        with forecast.checking(run.name), torch.device("meta"):
            if shape is not None:
                library(config.backbone.library).image_side(config.backbone).train_images(
                    settings.gradient_checkpointing
                )
    elif run.trains:
        expected.steps = -(-_trained_on(config, benchmark) // settings.batch_size)
    expected.scores = 0 if run.done else scores_size(config, benchmark, sum(run.made.values()))
    encoder.add_images(config, benchmark.images)
    encoder.add_start(config, benchmark)
    encoder.add_patches(config, benchmark, run.trains)
    encoder.add_texts(config, benchmark)
    if caution := too_few_to_calibrate(config, benchmark):
        forecast.cautions += [caution] if caution not in forecast.cautions else []
    if shape is None:
        return
    expected.checkpoint = (
        checkpoint_size(config, shape, len(benchmark.class_names or ()), averaged) if run.trains else 0
    )
    with forecast.checking(run.name):
        check_detectors(config, benchmark, shape.features, shape.embeddings)
        size = detector_size(config, shape, benchmark, encoder.item)
        expected.detector = size if config.evaluation.save_detector and not run.done else 0


def _trained_on(config: Config, benchmark: Benchmark) -> int:
    """Returns the number of images that a head learns from; for PLP, the largest possible one."""
    train, most = benchmark.parts["train"], getattr(config.method.settings, "per_class", None)
    if most is None or not benchmark.labelled:
        return len(train.rows)
    return sum(min(count, most) for label, count in Counter(benchmark.labels(train)).items() if label >= 0)


def _of_its_seed(config: Config, images: dict[str, ImageList]) -> dict[str, ImageList]:
    """Returns the sets of a run; those of which it takes some images of each class draw them by its seed."""
    specs = image_sets(config.data)
    drawn = {key: specs[key] for key in images if specs[key].per_class is not None}
    return images | {key: list_set(config.data, key, spec, config.seed, download=False) for key, spec in drawn.items()}
