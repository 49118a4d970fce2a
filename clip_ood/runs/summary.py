"""Combines the results of several seeds into those of one run: equal values are kept, others are averaged or listed by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from clip_ood.metrics.curves import METRICS
from clip_ood.metrics.intervals import interval
from clip_ood.metrics.ood import MEAN
from clip_ood.metrics.seeds import seed_margin
from clip_ood.runs.run_folder import read_results, seed_folder
from clip_ood.runs.seed_scores import Numbers, SeedScores
from clip_ood.runs.stream_summary import joined_streams

BEST_F1 = "best_f1"  # chosen on the images that it speaks of: no interval
Results = dict[str, Any]  # the content of a results.json
Row = dict[str, Any]
Intervals = Callable[[Row, dict[int, Row]], dict[str, list[float]]]


def summarise(folder: Path, seeds: list[int]) -> Results:
    """Returns the content of results.json of a run over several seeds, from that of each seed."""
    of_seed = {seed: read_results(seed_folder(folder, seed)) for seed in seeds}
    found, first = list(of_seed.values()), of_seed[seeds[0]]
    split = joined_split([results.get("split") for results in found])
    by_folds = {name for results in found for name in results.get("by_folds") or []}
    return {
        "run": folder.name,
        "method": first["method"],  # comes from the config, as the encoder does
        "encoder": first["encoder"],
        "seeds": seeds,
        "split": split,
        "bank": _joined([results["bank"] for results in found]),
        "pseudo_labels": _joined([results["pseudo_labels"] for results in found]),
        "trained_on": _joined([results["trained_on"] for results in found], {"fewest": min, "most": max}),
        "sweep": _by_seed({seed: _chosen(results["sweep"]) for seed, results in of_seed.items()}) or None,
        "predictor": _by_seed({seed: _listed(results.get("predictor")) for seed, results in of_seed.items()}) or None,
        "negative_words": _same([results.get("negative_words") for results in found]),
        "shared_images": _by_seed({seed: results.get("shared_images") or [] for seed, results in of_seed.items()}),
        "dropped": _by_seed({seed: results.get("dropped") or [] for seed, results in of_seed.items()}),
        "decisions": _same([results.get("decisions") for results in found]),
        "versions": _versions([results.get("versions") or {} for results in found]),
        "calibration": _by_seed({seed: _listed(results.get("calibration")) for seed, results in of_seed.items()})
        or None,
        **_accuracies(found),
        "omitted": _with_seeds({seed: results["omitted"] for seed, results in of_seed.items()}),
        "notes": _with_seeds({seed: results["notes"] for seed, results in of_seed.items()}),
        "stream": joined_streams({seed: results.get("stream") for seed, results in of_seed.items()}),
        "rows": mean_rows(
            {seed: results["rows"] for seed, results in of_seed.items()}, _intervals(folder, seeds, split, by_folds)
        ),
    }


def mean_rows(of_seed: dict[int, list[Row]], intervals: Intervals = lambda row, rows: {}) -> list[Row]:
    """Returns a row for each detector, setting and OOD set that any seed has.

    It has `seeds`, the number of seeds that have it, means over these, the standard deviations over them (`std`), and 95 %
    intervals; the last two are None and {} if only one of several seeds has the row.
    """
    keyed: dict[tuple[str, str, str], dict[int, Row]] = {}
    for seed, rows in of_seed.items():
        for row in rows:
            keyed.setdefault((row["detector"], row["setting"], row["ood"]), {})[seed] = row
    joined = []
    for (detector, setting, ood), rows in keyed.items():
        values = {name: [row[name] for row in rows.values()] for name in (*METRICS, "n_id", "n_ood")}
        group = next(iter(rows.values()))["group"]  # comes from the config
        row = {"detector": detector, "setting": setting, "ood": ood, "group": group}
        row |= {name: _mean(each) for name, each in values.items()}
        row["seeds"] = len(rows)
        row["std"] = {
            name: stdev(values[name]) if len(rows) > 1 and None not in values[name] else None for name in METRICS
        }
        alone = len(rows) == 1 < len(of_seed)
        joined.append(row | {"intervals": {} if alone else intervals(row, rows)})
    return joined


def joined_split(splits: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Returns the split of several seeds with averaged numbers of images, or None if a seed's version did not record it."""
    return None if None in splits else _joined(splits, {"redrawn": any})


def _same(told: list[Results | None]) -> Results | None:
    """Returns what all seeds say, or None if they differ."""
    return told[0] if all(each == told[0] for each in told) else None


def _intervals(folder: Path, seeds: list[int], split: dict[str, Any] | None, by_folds: set[str]) -> Intervals:
    """Returns how the rows get their intervals: from a single seed's own, from the spread over redrawn splits, or from the
    images. Detectors whose scores of ID images come from several folds (`by_folds`) have none from the images, since these scores
    are compared within their fold alone.
    """
    if len(seeds) == 1:
        return lambda row, rows: rows[seeds[0]]["intervals"]
    if split is None:
        return lambda row, rows: {}
    if split["redrawn"]:
        return lambda row, rows: _over_splits(row, rows, split["test"] / split["train"])
    numbers: Numbers = {}
    scores = {seed: SeedScores(seed_folder(folder, seed), numbers) for seed in seeds}
    return lambda row, rows: {} if row["detector"] in by_folds else _over_images(row, [scores[seed] for seed in rows])


def _over_splits(row: Row, rows: dict[int, Row], test_to_train: float) -> dict[str, list[float]]:
    values = {name: [each[name] for each in rows.values()] for name in METRICS if name != BEST_F1}
    margins = {name: seed_margin(each, test_to_train) for name, each in values.items() if None not in each}
    return {name: _around(row[name], margin) for name, margin in margins.items()}


def _over_images(row: Row, scores: list[SeedScores]) -> dict[str, list[float]]:
    sets = [row["ood"]] if row["ood"] != MEAN else [name for name, each in scores[0].sets.items() if each.role == "ood"]
    ends = interval([each.influence(row["detector"], sets, row["setting"]) for each in scores])
    return {} if ends is None else {"auroc": list(ends)}


def _around(value: float, margin: float) -> list[float]:
    return [max(0.0, value - margin), min(1.0, value + margin)]


def _accuracies(of_seed: list[Results]) -> dict[str, float | int | None]:
    """Returns the mean accuracies, each with the number of seeds that have one."""
    found = {}
    for name in ("accuracy", "knn_accuracy"):
        values = [results[name] for results in of_seed]
        found |= {name: _mean(values), f"{name}_seeds": len(values) - values.count(None)}
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean over the seeds that have a value; of integers, it is rounded to a tenth if it is no integer."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return round(found, 1) if isinstance(found := mean(known), float) and _whole(known) else found


def _whole(values: Sequence[float]) -> bool:
    return all(isinstance(value, int) for value in values)


def _joined(
    of_seed: Sequence[dict[str, Any] | None], otherwise: dict[str, Callable[[list], Any]] | None = None
) -> dict[str, Any] | None:
    """Returns each value's mean over the seeds that have one, or what `otherwise` makes of them; None if no seed has any."""
    known = [values for values in of_seed if values is not None]
    ways = otherwise or {}
    return {key: ways.get(key, _mean)([values[key] for values in known]) for key in known[0]} if known else None


def _by_seed(of_seed: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [{"seed": seed} | each for seed, listed in of_seed.items() for each in listed]


def _listed(value: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [] if value is None else [value]


def _chosen(heads: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    return [head for head in heads or [] if head["chosen"]]


def _with_seeds(of_seed: dict[int, list[dict[str, str]]]) -> list[dict[str, Any]]:
    """Returns what is said of detectors in any seed, once; with `seeds`, those that say it, if others do not."""
    said: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for seed, listed in of_seed.items():
        for each in listed:
            said.setdefault(tuple(each.items()), []).append(seed)
    return [dict(each) | ({} if len(seeds) == len(of_seed) else {"seeds": seeds}) for each, seeds in said.items()]


def _versions(of_seed: list[dict[str, str]]) -> dict[str, str]:
    """Returns each version, or all of them if seeds were run with several."""
    names = dict.fromkeys(name for versions in of_seed for name in versions)
    return {name: ", ".join(dict.fromkeys(each[name] for each in of_seed if name in each)) for name in names}
