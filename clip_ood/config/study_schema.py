"""The keys of a study: many runs of one experiment, and the table or figure made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from clip_ood.config.schema import Config, Detector
from clip_ood.config.section import Root, Section
from clip_ood.config.values import KeysOf
from clip_ood.errors import UserError, nearest

Changes = Annotated[dict[str, Any], KeysOf(Config)]


class Line(Section):
    """One line of the table or figure: one detector of the runs that `changes` make."""

    detector: Detector
    """The score that is shown: a name, or {name: knn, k: 50}."""
    changes: Changes = {}
    """Keys of the experiment that the line changes, as in {method: {plp: {}}, data.batch_size: 64}."""
    axes: list[str] | None = None
    """The axes that vary the line (default: all; [] makes one run, drawn as a level)."""
    only: dict[str, list[str]] = {}
    """The labels for which the line exists, by axis (default: all labels)."""


class Expected(Section):
    """Numbers that one line of a study is expected to have, from one source."""

    line: str
    """The line."""
    at: dict[str, str] = {}
    """The labels of the axes at which it is expected, by axis (default: the first)."""
    metric: Literal["auroc", "fpr95", "fpr95_ood_positive", "aupr_in", "aupr_out"] = "auroc"
    """The metric."""
    values: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(min_length=1)
    """The number in percent by OOD set, by a group of sets (near, far), whose mean is meant, or as `mean` over all sets."""
    within: float | None = Field(default=None, ge=0)
    """How many points the obtained number may differ, before the study ends with status 1 (default: any number)."""
    source: str
    """Where the numbers were published."""
    convention: str = ""
    """What must be known to compare with them: encoder, prompts, which images, which class is positive."""


class Study(Section):
    """A study runs the experiment `config` with every combination of axes and lines."""

    name: str
    """Name of the folder under studies_root (default: the study's file name)."""
    title: str = ""
    """Title above the table and the figure."""
    studies_root: Root = Path("runs/studies")
    """Folder that holds all studies; each study's folder holds its runs."""
    config: str
    """The experiment that is varied, by a config's name or path."""
    changes: Changes = {}
    """Keys of the experiment that are changed in every run; `--key=value` on the command line does the same."""
    shows: Literal["table", "scatter", "curve", "shift", "expected"]
    """What the study shows. table has a row for each axis label and line, and a column for each OOD set. scatter shows mean AUROC
    over ID k-NN accuracy, with R². curve shows mean AUROC over the only axis, whose labels are numbers. shift shows detection rate and
    accuracy for each corruption. expected shows the numbers in `expected` beside those obtained."""
    axes: dict[str, dict[str, Any]] = {}
    """The axes by name. An axis is {label: changes}, or {key: [values]}, where each value is its own label. `method.*.key` stands
    for the method of the run, and changes nothing if that method has no such key."""
    lines: dict[str, Line] = Field(min_length=1)
    """The lines that are shown, by name."""
    corruptions: list[str] = []
    """Goes with `shows: shift`: the corruptions of the ID test images that replace the OOD sets."""
    severities: list[int] = [1, 2, 3, 4, 5]
    """Goes with `shows: shift`: the severities of these corruptions."""

    expected: list[Expected] = []
    """Goes with `shows: expected`: the numbers to compare with."""
    leaves_out: list[Literal["sets", "encoders"]] = []
    """What may be missing on this machine: OOD sets, and runs without ID images (sets), and runs whose encoder would have to be downloaded
    (encoders). What is left out is named, with its size and how to get it (default: nothing may be missing; encoders are downloaded)."""

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        for name, line in self.lines.items():
            if unknown := {*(line.axes or []), *line.only} - self.axes.keys():
                raise UserError(f"lines.{name} names an axis that there is not: {', '.join(sorted(unknown))}")
        if self.shows == "curve" and len(self.axes) != 1:
            raise UserError(f"shows: curve needs one axis, not {len(self.axes)}")
        if (self.shows == "shift") != bool(self.corruptions):
            raise UserError("corruptions and shows: shift go together")
        if (self.shows == "expected") != bool(self.expected):
            raise UserError("expected and shows: expected go together")
        for number, each in enumerate(self.expected):
            if each.line not in self.lines:
                raise UserError(
                    f"expected.{number} names the line {each.line!r}, which the study does not have.{nearest(each.line, self.lines)}"
                )
            if unknown := each.at.keys() - self.axes.keys():
                raise UserError(
                    f"expected.{number}.at names an axis that the study does not have: {', '.join(sorted(unknown))}"
                )
        if self.shows == "shift" and self.axes:
            raise UserError("shows: shift varies corruption and severity; it takes no axes")
        return self
