"""What TensorBoard shows of a run beside its curves: the config, a line of the hparams page, charts to compare runs."""

from __future__ import annotations

import textwrap
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from clip_ood.shown import shown
from configs.loading import dump
from configs.schema import Config


def describe(logger: TensorBoardLogger, config: Config, results: dict[str, Any]) -> None:
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
