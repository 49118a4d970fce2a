"""Adds to TensorBoard, besides a run's curves, its config and table, a line of the hparams page, and charts that compare runs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Board(TensorBoardLogger):
    """Writes the events of the run in `folder`.

    An error of the disk is an OSError that names the folder: TensorBoard meets it in a thread that knows no file, and Lightning
    would report it as a value that cannot be logged.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, name=folder.name, version="", default_hp_metric=False)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        with self.named():
            return super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.named():
            super().log_metrics(metrics, step)

    def finalize(self, status: str) -> None:
        with self.named() if status == "success" else suppress(OSError):  # after an error, that error is reported
            super().finalize(status)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Wraps what adds to the events."""
        try:
            yield
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.filename is None:
                cause.filename = self.log_dir
            raise


def describe_on_board(
    board: SummaryWriter, config: str, settings: dict[str, Any], table: str, rows: list[dict[str, Any]]
) -> None:
    """Adds the config and the table as texts, a line of the hparams page, and the charts, for a run with these rows."""
    board.add_text("config", textwrap.indent(config, "    "))
    board.add_text("results", table)
    means = {f"ood/mean/{row['detector']}/auroc": row["auroc"] for row in rows if row["ood"] == "mean"}
    for summary in hparams(settings, means):  # the means are logged already; this names them as the run's metrics
        board.file_writer.add_summary(summary)
    board.add_custom_scalars(charts(rows))


def charts(rows: list[dict[str, Any]]) -> dict[str, dict[str, list]]:
    """Returns charts with every run of the log directory: a page of the training, then one for each OOD set, by detector."""
    layout: dict[str, dict[str, list]] = {}
    for row in rows:
        tag = f"ood/{row['ood']}/{row['detector']}/auroc"
        layout.setdefault(f"AUROC, {row['ood']}", {})[row["detector"]] = ["Multiline", [tag]]
    training = {name: ["Multiline", [f"train/{name}", f"val/{name}"]] for name in ("loss", "accuracy")}
    means_first = sorted(layout, key=lambda name: name != "AUROC, mean")
    return {"training": training} | {name: layout[name] for name in means_first}
