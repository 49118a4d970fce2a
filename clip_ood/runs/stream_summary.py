"""Joins what the seeds of a run say of test-time methods: all their orders, one seed after the other."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from clip_ood.stream.evaluation import METRICS

Stream = dict[str, Any]  # `stream` in a results.json


def joined_streams(of_seed: Mapping[int, Stream | None]) -> Stream | None:
    """Returns the `stream` of a run over several seeds, by that of each seed that has one; None if none has.

    Its values are those of all orders of all seeds; `seeds` has the seed of each order, and `run_seeds` that of the run in which it was.
    Numbers of images are means over the seeds, to a tenth.
    """
    known = {seed: stream for seed, stream in of_seed.items() if stream is not None}
    if not known:
        return None
    first, streams = next(iter(known.values())), known.values()
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for stream in streams:
        for row in stream["rows"]:
            rows.setdefault((row["method"], row["ood"]), []).append(row)
    return {
        "seeds": [order for stream in streams for order in stream["seeds"]],
        "run_seeds": [seed for seed, stream in known.items() for _ in stream["seeds"]],
        **{key: first[key] for key in ("batch_size", "ood_share", "methods")},  # come from the config
        "rows": [_joined(listed) for listed in rows.values()],
    }


def _joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    values = {metric: [value for row in rows for value in row[metric]] for metric in METRICS}
    return rows[0] | values | {name: _images([row[name] for row in rows]) for name in ("n_id", "n_ood")}


def _images(numbers: list[int]) -> float:
    return numbers[0] if len(set(numbers)) == 1 else round(fmean(numbers), 1)
