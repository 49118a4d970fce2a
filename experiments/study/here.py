"""Keeps of a study what this machine has the images and weights for, and says what is missing, how large it is and how to get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clip_ood.config.checks import check_folders, is_there, layouts
from clip_ood.config.data_schema import REJECTED, ImageSet
from clip_ood.config.schema import BackboneConfig, Config
from clip_ood.config.sets import entry
from clip_ood.errors import ConfigError, nearest
from clip_ood.experiments.study.expected import point_of
from clip_ood.experiments.study.plan import Plan
from clip_ood.metrics.ood import MEAN


def check_expected(plan: Plan) -> None:
    """Raises ConfigError for an expected number at a place, or of a set, that the study does not have: it could never be missed."""
    for number, each in enumerate(plan.study.expected):
        point = point_of(each, plan)
        if point is None:
            raise ConfigError(f"expected.{number}.at: the line {each.line} has no such label on the axes: {each.at}")
        sets = plan.runs[point.run].data.ood
        known = [*sets, *dict.fromkeys(layouts(spec)[0].group for spec in sets.values()), REJECTED, MEAN]
        if unknown := next((ood for ood in each.values if ood not in known), None):
            raise ConfigError(
                f"expected.{number}.values: {each.line} has no OOD set or group {unknown!r}.{nearest(unknown, known)} It has "
                f"{', '.join(known)}"
            )


def of_what_is_here(plan: Plan) -> Plan:
    """Returns the plan without the OOD sets, encoders and runs that are not here, each told in `absent`, if the study leaves them out.

    Raises: ConfigError for what is not here and may not be left out, and if nothing is left.
    """
    if not plan.study.leaves_out:
        for config in plan.runs.values():
            check_folders(config)
        return plan
    runs, left_out = {}, {}
    absent: dict[str, None] = {}
    for name, config in plan.runs.items():
        if (kept := _kept(config, plan.study.leaves_out, absent)) is not None:
            runs[name] = kept
            left_out[name] = {
                ood: layouts(spec)[0].group for ood, spec in config.data.ood.items() if ood not in kept.data.ood
            }
    if not runs:
        raise ConfigError(f"Nothing that {plan.study.name} needs is on this machine:\n" + "\n".join(absent))
    points = [point for point in plan.points if point.run in runs]
    return replace(plan, runs=runs, points=points, absent=tuple(absent), left_out=left_out)


def _kept(config: Config, leaves_out: Sequence[str], absent: dict[str, None]) -> Config | None:
    """Returns the config without the sets that are not here; None if it cannot be run at all. What is missing is added to `absent`."""
    encoders = filter(None, (config.backbone, config.backbone.text_spec)) if "encoders" in leaves_out else ()
    lacking = [why for encoder in encoders if (why := _why_not(encoder))]
    if "sets" in leaves_out:
        here = {role: _here(getattr(config.data, role), config.data.root, absent) for role in ("ood", "csid")}
        if config.data.ood and not here["ood"]:
            lacking.append(f"Run {config.name}: none of its OOD sets is here")
        config = config.model_copy(update={"data": config.data.model_copy(update=here)})
    try:
        check_folders(config)
    except ConfigError as error:
        lacking.append(str(error))
    absent |= dict.fromkeys(lacking)
    return None if lacking else config


def _here(sets: Mapping[str, ImageSet], root: Path, absent: dict[str, None]) -> dict[str, ImageSet]:
    kept = {}
    for name, spec in sets.items():
        if spec.corruption is not None or any(is_there(layout, root) for layout in layouts(spec)):
            kept[name] = spec
        else:
            absent[_missing(name, spec, root)] = None
    return kept


def _missing(name: str, spec: ImageSet, root: Path) -> str:
    if spec.catalog is None:
        return f"Image set {name} is not under {root}"
    known = entry(spec.catalog)
    images = known.split(spec.split).images
    counted = "" if images is None else f", {images:,} images"
    return f"Image set {name}{counted} ({known.size or 'its size is not published'}): {known.advice(root)}"


def _why_not(encoder: BackboneConfig) -> str | None:
    """Returns why an encoder cannot be used without a download, or None if it can."""
    from clip_ood.backbones.downloads import WouldDownload, require_here  # open_clip or timm, and torch

    try:
        require_here(encoder)
    except WouldDownload as error:
        return f"Encoder {encoder.model} {encoder.pretrained or ''}: {error}. With --leaves_out=[sets] it is downloaded"
    return None
