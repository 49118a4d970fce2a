"""The benchmark that a config describes."""

from __future__ import annotations

from clip_ood.config.checks import check_folders, image_sets
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark, arrange, list_set
from clip_ood.data.image_list import ImageList


def load_benchmark(config: Config) -> Benchmark:
    """Lists the images of a config.

    Raises: ConfigError for a missing folder, an empty set or class, or another number of images, classes or names than
    there must be.
    """
    check_folders(config)
    listed = {
        key: list_set(config.data, key, spec, config.seed)
        for key, spec in image_sets(config.data).items()
        if spec.corruption is None
    }
    return benchmark_of(config, listed)


def benchmark_of(config: Config, images: dict[str, ImageList]) -> Benchmark:
    """Makes the benchmark of a config from its listed sets. Raises as `clip_ood.data.benchmark.arrange`."""
    drawn = config.evaluation
    bank = {"bank_per_class": drawn.bank_per_class, "bank_without": drawn.bank_without}
    scores_train = drawn.cross_fit is not None
    return arrange(config.data, images, config.seed, config.backbone.reads_text, **bank, scores_train=scores_train)
