"""Words what a user should know of a run's images before it is trained; none of it stops the run."""

from __future__ import annotations

from math import ceil, floor

import numpy as np

from clip_ood.calibration import needed
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.features.stored_set import Features
from clip_ood.leaks import Shared, shared_images

ROLES = ("train", "val", "ood_val", "id", "csid", "ood")  # the bank is a part of train


def too_few_to_calibrate(config: Config, benchmark: Benchmark) -> str | None:
    """Returns one line if ID val has too few images for a threshold, which says how many it takes; otherwise None."""
    count, accept = len(benchmark.parts["val"].rows), config.evaluation.accept
    takes = needed(accept)
    if count >= takes or not config.evaluation.save_detector:
        return None
    ways = ["name more in data.id.val"] if config.data.id.val else [_more_images(config, takes)]
    if count:
        ways.append(f"accept fewer (evaluation.accept={floor(100 * count / (count + 1)) / 100:g} or lower)")
    return (
        f"detect.py will not be able to judge images by this run: a threshold that accepts {100 * accept:g} % of new ID images "
        f"takes {takes} ID val images, and there are {count}. To change that, {' or '.join(ways)}"
    )


def _more_images(config: Config, takes: int) -> str:
    if not (share := config.data.splits.val):
        return "hold some out (data.splits.val)"
    return f"add ID images (about {ceil(takes / share):,} at data.splits.val={share:g}), hold out a larger share"


def shared_by_sets(benchmark: Benchmark, features: dict[str, Features]) -> list[Shared]:
    """Returns the readable images that parts of different roles share, by their content."""
    sets = {}
    for part in sorted(benchmark.parts.values(), key=lambda part: ROLES.index(part.role) if part.role in ROLES else -1):
        stored = features[part.images]
        if part.role in ROLES and stored.identities is not None:
            rows = np.asarray(part.rows, int)
            sets[part.key] = part.role, stored.identities[rows[stored.valid.numpy()[rows]]]
    return shared_images(sets)
