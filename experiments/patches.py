"""Says of which images patch tokens are wanted: those that are scored by them, and those that a method learns them from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from clip_ood.backbones.shape import Unknown, shapes_inside
from clip_ood.config.schema import Config
from clip_ood.cross_fit import FEWEST_CLASSES, groups_of_classes
from clip_ood.data.benchmark import Benchmark
from clip_ood.data.image_list import ImageList
from clip_ood.data.labelled import ImageTable
from clip_ood.detectors.build import inside, patched
from clip_ood.errors import ConfigError, UserError
from clip_ood.features.stored_set import Features
from clip_ood.lightning_modules.linear_probe import few_shot
from clip_ood.lightning_modules.locoop import check_rank
from clip_ood.outputs import Inside

PATCHES = "the patches of "  # stands before the key of an image set


def check_patches(config: Config, benchmark: Benchmark) -> None:
    """Raises UserError for a method that learns from patches if it keeps too many classes, or the encoder gives no such tokens."""
    settings, classes = config.method.settings, len(benchmark.class_names)
    if (count := config.evaluation.hold_out_classes) is not None and classes >= FEWEST_CLASSES:
        classes -= -(-classes // groups_of_classes(count, classes))  # the largest group
    check_rank(settings, classes)
    try:
        shapes_inside(config.backbone, Inside(tokens=(settings.patches,)))
    except Unknown:
        pass  # it is refused once its weights are loaded
    except UserError as error:
        raise ConfigError(
            f"method.{config.method.name} learns from patches, and this encoder has none that serve ({error}): take another encoder, or "
            "method.coop, which needs none"
        ) from error


def token_arrays(config: Config, benchmark: Benchmark) -> tuple[str, ...]:
    """Returns the names of the arrays that are stored of images whose patches detectors look at."""
    has_texts = config.backbone.reads_text and benchmark.class_names is not None
    return Inside(tokens=inside(config.detectors, () if has_texts else ("text_embeddings",)).tokens).arrays


def patched_images(config: Config, benchmark: Benchmark) -> tuple[dict[str, ImageList], dict[str, Tensor]]:
    """Returns the images whose patches detectors look at, by the key of their set behind `PATCHES`, and their rows (n,) in it.

    They are those that are scored and, of the bank, those from whose patches a detector learns.
    """
    if not token_arrays(config, benchmark) or config.method.settings.tunes_encoder:
        return {}, {}
    bank, *scored = benchmark.evaluated
    learnt = patched(config.detectors, torch.tensor(bank.rows)).tolist()
    wanted = [*scored, replace(bank, rows=learnt)] if learnt else scored
    if fits_again(config):
        wanted.append(benchmark.parts["train"])
    rows: dict[str, set[int]] = {}
    for part in wanted:
        rows.setdefault(part.images, set()).update(part.rows)
    chosen = {PATCHES + key: sorted(each) for key, each in rows.items()}
    images = {key: benchmark.images[key.removeprefix(PATCHES)].subset(each) for key, each in chosen.items()}
    return images, {key: torch.tensor(each) for key, each in chosen.items()}


def training_rows(config: Config, benchmark: Benchmark, features: Mapping[str, Features] | None = None) -> Tensor:
    """Returns the rows (n,) of the training images from whose patches the method learns, ascending in their image set.

    They are those of its draw or, if folds or held-out classes have draws of their own, all that can be read. Without `features`, all
    images count as readable.
    """
    part = benchmark.parts["train"]
    table = ImageTable(part, benchmark.labels(part), None if features is None else features[part.images].valid)
    own = config.method.settings
    drawn = table.labels if fits_again(config) else few_shot(table.labels, own.per_class, config.seed)
    return table.rows[drawn >= 0].sort().values


def fits_again(config: Config) -> bool:
    """Says whether the method is fitted on other training images, too."""
    return config.evaluation.cross_fit is not None or config.evaluation.hold_out_classes is not None
