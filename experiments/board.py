"""What TensorBoard shows of a run beside its curves: the config, a line of the hparams page, charts to compare runs."""

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

from clip_ood.config.loading import dump
from clip_ood.config.schema import Config
from clip_ood.terminal.shown import shown


class Board(TensorBoardLogger):
    """The events of the run in `folder`. What the disk objects to is an OSError that names the folder: TensorBoard meets it in a
    thread that knows no file, and Lightning calls it a value that cannot be logged."""

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
        with self.named() if status == "success" else suppress(OSError):  # after an error, that is told
            super().finalize(status)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Around what adds to the events."""
        try:
            yield
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.filename is None:
                cause.filename = self.log_dir
            raise


def describe(logger: Board, config: Config, results: dict[str, Any]) -> None:
    """Adds all three to a finished run's events, and closes them."""
    board: SummaryWriter = logger.experiment
    board.add_text("config", textwrap.indent(dump(config), "    "))
    settings = {"method": results["method"], "encoder": results["encoder"], "seed": config.seed}
    settings |= config.method.settings.model_dump(exclude_none=True, exclude={"sweep"})
    settings |= next((head for head in results["sweep"] or [] if head["chosen"]), {})
    rows = [row for row in results["rows"] if row["setting"] == "standard"]
    means = {f"ood/mean/{row['detector']}/auroc": row["auroc"] for row in rows if row["ood"] == "mean"}
    settings = {name: shown(value) if isinstance(value, str) else value for name, value in settings.items()}
    for summary in hparams(settings, means):  # the means are logged already; this names them as the run's metrics
        board.file_writer.add_summary(summary)
    board.add_custom_scalars(charts(rows))
    logger.finalize("success")


def charts(rows: list[dict[str, Any]]) -> dict[str, dict[str, list]]:
    """A page of charts an OOD set, a chart a detector, with every run of the log directory in it."""
    layout: dict[str, dict[str, list]] = {}
    for row in rows:
        tag = f"ood/{row['ood']}/{row['detector']}/auroc"
        layout.setdefault(f"AUROC, {row['ood']}", {})[row["detector"]] = ["Multiline", [tag]]
    return {name: layout[name] for name in sorted(layout, key=lambda name: name != "AUROC, mean")} | {
        "training": {"loss": ["Multiline", ["train/loss"]], "accuracy": ["Multiline", ["train/accuracy"]]}
    }
