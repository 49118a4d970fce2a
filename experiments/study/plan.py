"""Reads a study's file and plans the runs that it needs; nothing heavy is imported."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clip_ood.config.help import section_of
from clip_ood.config.loading import CONFIGS, change, divide, explain, find_config, override, plain, read, validate
from clip_ood.config.schema import Config, Method
from clip_ood.config.study_schema import Changes, Line, Study
from clip_ood.config.yaml_text import says_none
from clip_ood.detectors.names import read_specs
from clip_ood.errors import ConfigError, nearest
from clip_ood.runs.run_folder import CONFIG, check_name, check_twin

STAR = "method.*."
MOST_POINTS = 10_000  # in one line


@dataclass(frozen=True)
class Point:
    """One value of a study: its axis labels and its line, the run that has it, and its column there."""

    labels: dict[str, str]
    line: str
    run: str
    detector: str


@dataclass(frozen=True)
class Plan:
    """A study's points, and the config of each of the runs that they share, by folder name.

    absent: what is not on this machine and was left out, each as a text that says how to get it; left_out: by run, the OOD sets that it
    lacks therefore, with their groups.
    """

    study: Study
    points: list[Point]
    runs: dict[str, Config]
    absent: tuple[str, ...] = ()
    left_out: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.study.studies_root / self.study.name


def read_study(name: str, arguments: list[str] | None = None) -> Plan:
    """Reads the study `name` (a path, or looked up in configs/studies/).

    Arguments `--key=value` change keys of the study (title, axes, lines, …), or otherwise of every run.

    Raises: ConfigError for wrong keys of the study or of any of its runs.
    """
    path = find_config(name, CONFIGS / "studies")
    ours, theirs = divide(arguments or [], Study)
    try:
        study = Study.model_validate(override({"name": path.stem} | plain(path, "lines"), ours, Study))
    except ValidationError as error:
        raise ConfigError(explain(error, Study)) from None
    check_name(study.name)
    check_twin(study.studies_root / study.name)
    return _plan(study, theirs)


def remove_runs(plan: Plan) -> None:
    """Removes what a study has left in its folder: its runs, and the files that have its name; nothing else."""
    for path in plan.folder.glob("*"):
        if path.is_dir() and (path / CONFIG).is_file():
            shutil.rmtree(path)
        elif path.is_file() and path.stem in (plan.study.name, f"{plan.study.name}.expected"):
            path.unlink()


def _plan(study: Study, arguments: list[str]) -> Plan:
    axes = {axis: _labelled(axis, given) for axis, given in study.axes.items()}
    _check_expected(study, axes)
    _check_arguments(study, axes, arguments)
    base = change(read(find_config(study.config)), study.changes)
    if study.shows == "shift":
        base = change(base, {"data.ood": _shifted(study)})
    points, contents, shown = [], {}, {}
    for name, line in study.lines.items():
        for labels in _combinations(name, line, axes):
            changes = [axes[axis][label] for axis, label in labels.items()]
            run = _slug([*labels.values(), _first_with(study, line)])
            content = _content(base, line, changes)
            content = override(content, [each for each in map(partial(_starred, content), arguments) if each])
            if contents.setdefault(run, content) != content:
                raise ConfigError(
                    f"lines.{name}: the folder of its run would be {run or 'nameless'!r}, as that of another one: folders take "
                    "the letters a to z and the digits of labels and lines; call them otherwise"
                )
            shown.setdefault(run, [])
            if line.detector not in shown[run]:
                shown[run].append(line.detector)
            points.append((labels, name, run, line.detector))
    _check_starred(
        list(contents.values()),
        [*(key for _, labels in axes.items() for each in labels.values() for key in each), *arguments],
    )
    for run in contents:
        check_name(run, "the folder of a run, called by the labels of axes and lines")
    columns = {run: _columns(specs) for run, specs in shown.items()}
    runs = {
        run: validate(
            content | {"name": run, "runs_root": str(study.studies_root / study.name), "detectors": shown[run]}
        )
        for run, content in contents.items()
    }
    return Plan(
        study,
        [Point(labels, name, run, columns[run][shown[run].index(spec)]) for labels, name, run, spec in points],
        runs,
    )


def _columns(specs: list[str | dict[str, Any]]) -> list[str]:
    return [spec.label for spec in read_specs(specs)]


def _labelled(axis: str, given: dict[str, Any]) -> dict[str, Changes]:
    """Returns an axis as label -> changes. `{key: [values]}` labels each value by itself, and a block by its file's stem."""
    if len(given) == 1 and isinstance(values := next(iter(given.values())), list):
        key = next(iter(given))
        return {_label(value): {key: value} for value in values}
    labelled = {str(label): {} if says_none(changes) else changes for label, changes in given.items()}
    if wrong := [label for label, changes in labelled.items() if not isinstance(changes, dict)]:
        raise ConfigError(f"axes.{axis}.{wrong[0]} must be a mapping of keys to change, as {{data.prompts: [...]}}")
    return labelled


def _label(value: Any) -> str:
    return Path(value).stem if isinstance(value, str) and value.endswith((".yaml", ".yml")) else str(value)


def _combinations(name: str, line: Line, axes: dict[str, dict[str, Changes]]) -> Iterator[dict[str, str]]:
    varied = [axis for axis in axes if line.axes is None or axis in line.axes]
    for axis, labels in line.only.items():
        if unknown := [label for label in labels if label not in axes[axis]]:
            raise ConfigError(f"lines.{name}.only.{axis}: there is no {unknown[0]!r}.{nearest(unknown[0], axes[axis])}")
    choices = [[label for label in axes[axis] if label in line.only.get(axis, axes[axis])] for axis in varied]
    if (points := prod(map(len, choices))) > MOST_POINTS:
        raise ConfigError(
            f"lines.{name}: the axes {', '.join(varied)} make {points:,} combinations, and at most {MOST_POINTS:,} are run: leave labels "
            "out (lines.….only), or axes (lines.….axes)"
        )
    return (dict(zip(varied, combination, strict=True)) for combination in product(*choices))


def _content(base: dict[str, Any], line: Line, changes: list[Changes]) -> dict[str, Any]:
    """Returns the keys of one run: the line's changes, then those of the axes."""
    content = change(base, line.changes)
    for each in changes:
        content = change(content, _of_method(content, each))
    return content


def _of_method(content: dict[str, Any], changes: Changes) -> Changes:
    """Puts the run's method in place of the star of `method.*.key`, which is left out if that method has no such key."""
    return {named: value for key, value in changes.items() if (named := _starred(content, key))}


def _starred(content: dict[str, Any], key: str) -> str:
    """Returns a key, or `--key=value`, with the method's name for its star; it is empty if the method has no such key."""
    if not key.removeprefix("--").startswith(STAR):
        return key
    name = _method(content)
    return key.replace("*", name, 1) if _of_star(key) in _keys_of(name) else ""


def _method(content: dict[str, Any]) -> str:
    """Returns the name of a run's method; it is empty if none is named, which the schema then reports."""
    given = content.get("method")
    return next(iter(given), "") if isinstance(given, dict) else ""


def _of_star(key: str) -> str:
    """Returns the first part of a key after its star."""
    return key.split(".")[2].partition("=")[0]


def _keys_of(method: str) -> Collection[str]:
    return section_of(Method.model_fields[method].annotation).model_fields if method in Method.model_fields else ()


def _check_starred(contents: list[dict[str, Any]], keys: Iterable[str]) -> None:
    """Raises ConfigError for a `method.*.key` that no run's method has, because it would change nothing."""
    known = sorted({key for content in contents for key in _keys_of(_method(content))})
    for key in keys:
        if key.removeprefix("--").startswith(STAR) and _of_star(key) not in known:
            raise ConfigError(
                f"{key.removeprefix('--').partition('=')[0]}: no method of this study has a key {_of_star(key)!r}.{nearest(_of_star(key), known)}"
            )


def _first_with(study: Study, line: Line) -> str:
    """Returns the first line that makes the same changes; both are columns of the same run."""
    return next(name for name, other in study.lines.items() if other.changes == line.changes)


def _check_arguments(study: Study, axes: dict[str, dict[str, Changes]], arguments: list[str]) -> None:
    """Raises ConfigError for an argument that fixes for all runs what the study varies."""
    varied = {key for labels in axes.values() for changes in labels.values() for key in changes}
    varied |= {key for line in study.lines.values() for key in line.changes} | {"detectors", "runs_root"}
    if study.shows == "shift":
        varied.add("data.ood")
    for argument in arguments:
        key = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and any(key == each or each.startswith(f"{key}.") for each in varied):
            raise ConfigError(
                f"--{key} would set what the study {study.name} itself varies or sets; change its axes, lines, corruptions or "
                "studies_root"
            )


def _check_expected(study: Study, axes: dict[str, dict[str, Changes]]) -> None:
    """Raises ConfigError for an expected number at a label that there is not."""
    for number, each in enumerate(study.expected):
        for axis, label in each.at.items():
            if label not in axes[axis]:
                raise ConfigError(
                    f"expected.{number}.at.{axis}: there is no {label!r}.{nearest(label, axes[axis])} It has {', '.join(axes[axis])}"
                )


def _shifted(study: Study) -> dict[str, Any]:
    return {
        f"{corruption}-{severity}": {"corruption": corruption, "severity": severity}
        for corruption in study.corruptions
        for severity in study.severities
    }


def _slug(labels: list[str]) -> str:
    return "--".join(re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") for label in labels)
