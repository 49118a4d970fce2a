"""Pairs finished runs by seed and image: AUROC by detector and OOD set, and differences to the first run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa

from clip_ood.errors import ConfigError, nearest
from clip_ood.metrics.ood import MEAN
from clip_ood.metrics.paired import Difference, Line, auroc_difference, holm, seed_difference
from clip_ood.process.called import called
from clip_ood.runs.results_table import over_seeds
from clip_ood.runs.run_folder import FINISHED, of_seed, read_results, read_scores
from clip_ood.runs.seed_scores import Numbers, SeedScores
from clip_ood.runs.summary import joined_split


@dataclass(frozen=True)
class Finished:
    """A finished run, and the detector that represents it (None: every one, by its own name)."""

    folder: Path
    detector: str | None
    results: dict[str, Any]

    @property
    def title(self) -> str:
        return self.folder.name + (f":{self.detector}" if self.detector else "")

    @property
    def seeds(self) -> list[int]:
        return self.results["seeds"]

    def place(self, seed: int) -> Path:
        """Returns the folder of a seed; for a run of a single seed, it is the run's own."""
        return of_seed(self.folder, seed if len(self.seeds) > 1 else self.seeds[0])

    @cached_property
    def of_seed(self) -> dict[int, dict[str, Any]]:
        """The content of results.json of each seed."""
        return {seed: read_results(self.place(seed)) for seed in self.seeds}

    def auroc(self, seed: int, detector: str, ood: str) -> float | None:
        """Returns the AUROC of a detector in a seed, on an OOD set or the mean over them; None if that seed lacks the detector."""
        results = self.of_seed[seed if len(self.seeds) > 1 else self.seeds[0]]
        wanted = (self.detector or detector, ood, "standard")
        found = (row for row in results["rows"] if (row["detector"], row["ood"], row["setting"]) == wanted)
        return next((row["auroc"] for row in found), None)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: the lines of the table, what the intervals are computed from, and what must be said besides."""

    runs: list[Finished]
    lines: list[Line]
    over: str
    remarks: list[str]
    redrawn: bool

    @property
    def tested(self) -> int:
        """The number of differences in the table."""
        return sum(len(line.differences) for line in self.lines)

    def method(self) -> str:
        """Returns a paragraph on what was done, for a paper: the test, the numbers of images, the correction."""
        first = self.runs[0].results
        sizes = {
            row["ood"]: row["n_ood"] for row in first["rows"] if row["ood"] != MEAN and row["setting"] == "standard"
        }
        listed = ", ".join(f"{name} {count:g}" for name, count in sizes.items())
        n_id = next(row["n_id"] for row in first["rows"] if row["setting"] == "standard")
        test = (
            "the corrected resampled t-test (Nadeau and Bengio 2003)"
            if self.redrawn
            else "DeLong's test for correlated curves (1988)"
        )
        return (
            f"AUROCs were compared on the same {n_id:g} ID images and OOD images ({listed}), each of {self.tested} differences to "
            f"{self.runs[0].title} by {test}, two-sided; p-values were corrected for all {self.tested} differences, means over OOD sets "
            "included, by Holm's method (1979), at a level of 5 %. Intervals are single 95 % intervals, without correction."
        )


def open_run(spec: str) -> Finished:
    """Opens a run given as `FOLDER` or `FOLDER:detector`.

    Raises: ConfigError for a folder without results, and for a detector that it does not have.
    """
    folder, detector = Path(spec), None
    if not folder.exists() and ":" in spec:
        place, _, detector = spec.rpartition(":")
        folder = Path(place)
    path = folder / FINISHED
    if not path.is_file():
        raise ConfigError(f"--compare: {folder} is no finished run: there is no {path}")
    results = read_results(folder)
    known = dict.fromkeys(row["detector"] for row in results["rows"])
    if not known:
        raise ConfigError(f"--compare: {folder} was scored against no OOD set (data.ood), so it has no AUROC")
    if detector is not None and detector not in known:
        raise ConfigError(f"--compare: {folder} has no detector {detector!r}.{nearest(detector, known)}")
    return Finished(folder, detector, results)


def compare(runs: list[Finished]) -> Comparison:
    """Returns a line for each detector and OOD set that all runs have, and for the mean over the sets, on ID test images only.

    Intervals of a single seed are DeLong's over the images, paired. Over several seeds they come from the seeds, corrected for
    what their splits share (`seed_difference`), if each seed redraws the ID test images, and otherwise from the images.
    Raises: ConfigError for runs that cannot be paired.
    """
    _check(runs)
    seeds = _common_seeds(runs)
    split = _split(runs, seeds)
    for seed in seeds:
        _check_images(runs, seed)
    redrawn = split is not None and split["redrawn"]
    differences = _over_splits(split["test"] / split["train"]) if redrawn else _over_images(runs, seeds)
    lines, remarks = [], _by_folds(runs)
    for detector in _detectors(runs):
        having = [seed for seed in seeds if all(run.auroc(seed, detector, MEAN) is not None for run in runs)]
        if len(having) < len(seeds):
            few = f"{detector}: {len(having)} of {len(seeds)} seeds"
            remarks.append(few if len(having) > 1 else f"Left out: {few}, and a mean over seeds needs two or more")
        if len(having) > 1 or having == seeds:
            sets = _sets(runs)
            lines += [_line(runs, having, detector, [ood], ood, differences) for ood in sets]
            lines.append(_line(runs, having, detector, sets, MEAN, differences))
    if not lines:
        raise ConfigError(f"--compare: no detector is in two seeds or more of all runs ({'; '.join(remarks)})")
    over = "the same images, paired (DeLong)" if split is None else over_seeds(split, len(seeds))
    return Comparison(runs, holm(lines), over, remarks, redrawn)


# A function of runs, seeds, detector, the OOD sets of a column and its name, which returns the differences to the first run.
Differences = Callable[[list[Finished], list[int], str, list[str], str], list[Difference]]


def _line(
    runs: list[Finished], seeds: list[int], detector: str, sets: list[str], ood: str, differences: Differences
) -> Line:
    aurocs = [fmean(run.auroc(seed, detector, ood) for seed in seeds) for run in runs]
    return Line(detector, ood, aurocs, differences(runs, seeds, detector, sets, ood), len(seeds))


def _over_splits(test_to_train: float) -> Differences:
    def differences(runs, seeds, detector, sets, ood) -> list[Difference]:
        first, *others = ([run.auroc(seed, detector, ood) for seed in seeds] for run in runs)
        return [seed_difference(first, other, test_to_train) for other in others]

    return differences


def _over_images(runs: list[Finished], seeds: list[int]) -> Differences:
    numbers: Numbers = {}
    scores = {run.folder: {seed: SeedScores(run.place(seed), numbers) for seed in seeds} for run in runs}

    def differences(runs, seeds, detector, sets, ood) -> list[Difference]:
        first, *others = (
            [scores[run.folder][seed].influence(run.detector or detector, sets) for seed in seeds] for run in runs
        )
        return [auroc_difference(first, other) for other in others]

    return differences


def _check(runs: list[Finished]) -> None:
    if len(runs) < 2:
        raise ConfigError("--compare needs two runs or more")
    places = [(run.folder.resolve(), run.detector) for run in runs]
    if twice := next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None):
        raise ConfigError(
            f"--compare: {twice.title} is named twice, and differs from itself in nothing: name each run once, or other detectors of it "
            f"({twice.folder}:DETECTOR)"
        )
    if len({run.detector is None for run in runs}) > 1:
        raise ConfigError("--compare: name a detector for each run (runs/demo:msp), or for none")
    if len({len(run.results["seeds"]) > 1 for run in runs}) > 1:
        raise ConfigError(
            "--compare: runs over several seeds can only be compared with each other; use --seeds for all"
        )


def _common_seeds(runs: list[Finished]) -> list[int]:
    if len(runs[0].seeds) == 1:
        return runs[0].seeds
    common = [seed for seed in runs[0].seeds if all(seed in run.seeds for run in runs)]
    if len(common) < 2:
        raise ConfigError(f"--compare: the runs share {len(common)} seeds; intervals over seeds need two or more")
    return common


def _split(runs: list[Finished], seeds: list[int]) -> dict[str, Any] | None:
    """Returns how the seeds divide the ID images, or None for a single seed, whose interval does not need it."""
    if len(seeds) == 1:
        return None
    for run in runs:
        if joined_split([run.of_seed[seed].get("split") for seed in seeds]) is None:
            raise ConfigError(
                f"--compare: {run.folder} was run by an earlier version, which did not record how each seed divided the ID "
                f"images, and intervals over seeds need that. Score it again ({called('eval')} --run {run.folder}) and compare "
                f"{run.folder.name}-eval"
            )
    splits = [joined_split([run.of_seed[seed]["split"] for seed in seeds]) for run in runs]
    return max(splits, key=lambda split: split["test"] / split["train"])  # which gives the longest interval


def _ranked(run: Finished) -> list[str]:
    """Returns the detectors whose scores of ID images come from several folds, so that they have no scores that can be paired."""
    return sorted({name for results in run.of_seed.values() for name in results.get("by_folds") or []})


def _by_folds(runs: list[Finished]) -> list[str]:
    """Returns what is said of detectors that cannot be compared because they are scored in folds."""
    names = dict.fromkeys(name for run in runs for name in _ranked(run))
    if not names:
        return []
    return [
        f"Left out: {', '.join(names)}: scored in folds, whose scores are ranks within each fold; to compare them, hold out test images "
        "(data.splits.test)"
    ]


def _detectors(runs: list[Finished]) -> list[str]:
    if runs[0].detector is not None:
        for run in runs:
            if run.detector in _ranked(run):
                raise ConfigError(f"--compare: {_by_folds([run])[0].removeprefix('Left out: ')}")
        return [" / ".join(dict.fromkeys(run.detector for run in runs))]
    of_run = [
        dict.fromkeys(row["detector"] for row in run.results["rows"] if row["detector"] not in _ranked(run))
        for run in runs
    ]
    if shared := [name for name in of_run[0] if all(name in names for names in of_run)]:
        return shared
    have = "; ".join(f"{run.title}: {', '.join(names)}" for run, names in zip(runs, of_run, strict=True))
    raise ConfigError(f"--compare: the runs have no detector in common ({have}); name one of each (FOLDER:detector)")


def _sets(runs: list[Finished]) -> list[str]:
    of_run = [dict.fromkeys(row["ood"] for row in run.results["rows"] if row["ood"] != MEAN) for run in runs]
    shared = [name for name in of_run[0] if all(name in names for names in of_run)]
    if any(len(names) != len(shared) for names in of_run):
        raise ConfigError(f"--compare: the runs have different OOD sets ({', '.join(map(str, map(list, of_run)))})")
    return shared


def _check_images(runs: list[Finished], seed: int) -> None:
    first = _images(runs[0], seed)
    for run in runs[1:]:
        if not _images(run, seed).equals(first):
            raise ConfigError(
                f"--compare: {run.folder} was scored on other images than {runs[0].folder}; paired differences need the "
                "same data and the same seed"
            )


def _images(run: Finished, seed: int) -> pa.Table:
    return read_scores(run.place(seed), ["set", "path"])
