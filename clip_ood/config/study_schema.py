"""The keys of a study: many runs of one experiment, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from clip_ood.config.schema import Config, Detector
from clip_ood.config.section import Root, Section
from clip_ood.config.values import KeysOf
from clip_ood.errors import UserError

Changes = Annotated[dict[str, Any], KeysOf(Config)]


class Line(Section):
    """One line of the table or figure: a detector of the runs that `changes` make."""

    detector: Detector
    """The score shown: a name, or {name: knn, k: 50}."""
    changes: Changes = {}
    """Keys of the experiment that the line changes: {method: {plp: {}}, data.batch_size: 64}."""
    axes: list[str] | None = None
    """The axes that vary it (default: all; []: one run, drawn as a level)."""
    only: dict[str, list[str]] = {}
    """Axis -> the labels for which the line exists (default: all)."""


class Study(Section):
    """A study: the experiment `config` with every combination of axes and lines changed in it."""

    name: str
    """The folder under studies_root (default: the study's file name)."""
    title: str = ""
    """What stands above the table and the figure."""
    studies_root: Root = Path("runs/studies")
    """Folder of all studies; each holds its runs."""
    config: str
    """The experiment that is varied: a config's name or path."""
    changes: Changes = {}
    """Keys of the experiment that are changed in every run; `--key=value` on the command line does the same."""
    shows: Literal["table", "scatter", "curve", "shift"]
    """table: a row an axis label and line, a column an OOD set. scatter: mean AUROC over ID k-NN accuracy, with R².
    curve: mean AUROC over the one axis, whose labels are numbers. shift: detection rate and accuracy a corruption."""
    axes: dict[str, dict[str, Any]] = {}
    """Name -> {label: changes}, or {key: [values]} where each value is its own label. `method.*.key` stands for the
    method of the run, and is left as it is where that method has no such key."""
    lines: dict[str, Line] = Field(min_length=1)
    """The scores that are shown, by name."""
    corruptions: list[str] = []
    """shows: shift: the corruptions of the ID test images that take the place of the OOD sets."""
    severities: list[int] = [1, 2, 3, 4, 5]
    """shows: shift: their severities."""

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        for name, line in self.lines.items():
            if unknown := {*(line.axes or []), *line.only} - self.axes.keys():
                raise UserError(f"lines.{name} names an axis that there is not: {', '.join(sorted(unknown))}")
        if self.shows == "curve" and len(self.axes) != 1:
            raise UserError(f"shows: curve needs one axis, not {len(self.axes)}")
        if (self.shows == "shift") != bool(self.corruptions):
            raise UserError("corruptions and shows: shift go together")
        if self.shows == "shift" and self.axes:
            raise UserError("shows: shift varies corruption and severity; it takes no axes")
        return self
