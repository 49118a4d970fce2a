"""Turns `joint` of a results.json into the table of a page: a line for each detector."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from clip_ood.class_predictions import CALLED
from clip_ood.joint import ALONE
from clip_ood.metrics.ood import MEAN
from clip_ood.report.results import Value, with_interval


@dataclass(frozen=True)
class JointTable:
    """AURC and AUGRC of each detector (`lines`), then AUOSCR and SCOD's AURC of each OOD set, their mean first (`sets`: numbers of images).

    predicted_by: what predicts the classes, in words; absent: why metrics are missing, by the reason.
    """

    n_id: int
    predicted_by: str
    ood_cost: float
    sets: dict[str, int]
    lines: dict[str, list[Value]]
    absent: dict[str, list[str]]


def joint_table(joint: dict[str, Any] | None) -> JointTable | None:
    """Returns the table; None for a run of an earlier version, and where nothing predicts classes."""
    if joint is None or joint["predicted_by"] is None:
        return None
    rows = {(row["detector"], row["ood"]): row for row in joint["rows"]}
    sets = {row["ood"]: row["n_ood"] for row in joint["rows"] if row["ood"] != ALONE}
    ordered = {name: sets[name] for name in sorted(sets, key=lambda name: name != MEAN)}
    lines = {}
    for detector in dict.fromkeys(row["detector"] for row in joint["rows"]):
        alone = rows.get((detector, ALONE), {})
        lines[detector] = [with_interval(alone.get(name)) for name in ("aurc", "augrc")]
        for name in ordered:
            row = rows[detector, name]
            lines[detector].append(with_interval(row["auoscr"], *row["intervals"].get("auoscr", ())))
            lines[detector].append(with_interval(row["scod_aurc"]))
    absent = defaultdict(list)
    for each in joint["absent"]:
        absent[each["reason"]].append(each["metric"].replace("_", " "))
    return JointTable(joint["n_id"], CALLED[joint["predicted_by"]], joint["ood_cost"], ordered, lines, dict(absent))
