"""Words what a user should know of a run's images before it is trained; none of it stops the run."""

from __future__ import annotations

from math import ceil, floor

from clip_ood.calibration import needed
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark


def too_few_to_calibrate(config: Config, benchmark: Benchmark) -> str | None:
    """Returns one line if too few images calibrate a threshold, which says how many it takes; otherwise None."""
    count, accept = len(benchmark.parts["val"].rows), config.evaluation.accept
    takes = needed(accept)
    alone = benchmark.scores_train and not count
    count = len(benchmark.parts["bank"].rows) if alone else count
    if count >= takes or not config.evaluation.save_detector:
        return None
    if alone:
        return (
            f"detect.py will not be able to judge images by this run: a threshold that accepts {100 * accept:g} % of new ID images takes "
            f"{takes} ID images, and there are {count}"
        )
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
