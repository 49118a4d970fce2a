"""The benchmark that a config describes."""

from __future__ import annotations

from clip_ood.config.checks import check_folders, decisions_of, image_sets
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark, arrange, list_set
from clip_ood.data.decided import Decided, find_decided
from clip_ood.data.image_list import ImageList
from clip_ood.features.known_files import KnownFiles
from clip_ood.process.ranks import say_once
from clip_ood.review.decisions import counting


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
    keys = bank | {"scores_train": drawn.cross_fit is not None, "decided": decided_by(config, images)}
    return arrange(config.data, images, config.seed, config.backbone.reads_text, **keys)


def decided_by(config: Config, images: dict[str, ImageList]) -> Decided | None:
    """Finds the ID images that data.decisions is about, and says what changes; None without that key."""
    if config.data.decisions is None:
        return None
    decisions = decisions_of(config.data)
    for number in decisions.cut:
        say_once(f"data.decisions: line {number} of {config.data.decisions} lost its end, and changes nothing")
    of_id = {key: listed for key, listed in images.items() if key.partition(".")[0] == "id"}
    decided = find_decided(counting(decisions.lines), of_id, KnownFiles(config.features_root))
    for line in decided.told():
        say_once(line)
    return decided
