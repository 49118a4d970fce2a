"""Gives every logger what it takes of a finished run besides its curves.

Lightning's own wrappers are recognised by their class; any other logger is given what its methods take that it shares with them:
`log_image`, `log_table`, `log_hyperparams`.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager, nullcontext
from functools import singledispatch
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image

from clip_ood.config.loading import contents, dump
from clip_ood.config.schema import Config
from clip_ood.experiments.board import Board, describe_on_board
from clip_ood.metrics.curves import METRICS
from clip_ood.terminal.markdown import markdown_table
from clip_ood.terminal.shown import shown


@singledispatch
def log_figure(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Adds a picture, if the logger takes any: those with `log_image`, as W&B's, do."""
    if hasattr(logger, "log_image"):
        file = io.BytesIO()
        figure.savefig(file, format="png")
        logger.log_image(name, [Image.open(file)])


@log_figure.register
def _(logger: TensorBoardLogger, name: str, figure: Figure, step: int) -> None:
    with naming_its_folder(logger):
        logger.experiment.add_figure(name, figure, step)


@log_figure.register
def _(logger: MLFlowLogger, name: str, figure: Figure, step: int) -> None:
    logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")


@singledispatch
def log_text(logger: Logger, name: str, text: str) -> None:
    """Adds a text in Markdown, if the logger takes any."""


@log_text.register
def _(logger: TensorBoardLogger, name: str, text: str) -> None:
    with naming_its_folder(logger):
        logger.experiment.add_text(name, text)


@log_text.register
def _(logger: MLFlowLogger, name: str, text: str) -> None:
    logger.experiment.log_text(logger.run_id, text, f"{name}.md")


@singledispatch
def describe(logger: Logger, config: Config, results: dict[str, Any]) -> None:
    """Adds the config, the settings that distinguish the run from others, and the table with all metrics; then closes the logger."""
    logger.log_hyperparams(settings(config, results) | {"config": contents(config)})
    if hasattr(logger, "log_table"):
        logger.log_table("results", columns=list(HEADER), data=lines(results))
    logger.finalize("success")


@describe.register
def _(logger: TensorBoardLogger, config: Config, results: dict[str, Any]) -> None:
    with naming_its_folder(logger):
        describe_on_board(
            logger.experiment, dump(config), settings(config, results), markdown(results), rows_of(results)
        )
        logger.finalize("success")


@describe.register
def _(logger: MLFlowLogger, config: Config, results: dict[str, Any]) -> None:
    logger.log_hyperparams(settings(config, results))  # no devices: MLflow refuses a value that changes on --resume
    logger.experiment.log_text(logger.run_id, dump(config), "config.yaml")
    logger.experiment.log_text(logger.run_id, markdown(results), "results.md")
    logger.finalize("success")


HEADER = ("detector", "OOD set", *METRICS)


def settings(config: Config, results: dict[str, Any]) -> dict[str, Any]:
    """Returns method, encoder, seed and the method's own keys; for a sweep, they are those of the chosen head."""
    found = {"method": results["method"], "encoder": results["encoder"], "seed": config.seed}
    found |= config.method.settings.model_dump(exclude_none=True, exclude={"sweep"})
    found |= next((head for head in results["sweep"] or [] if head["chosen"]), {})
    return {name: shown(value) if isinstance(value, str) else value for name, value in found.items()}


def rows_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the table in the standard setting."""
    return [row for row in results["rows"] if row["setting"] == "standard"]


def lines(results: dict[str, Any]) -> list[list[str]]:
    """The table's rows as text, metrics in percent."""
    return [[row["detector"], row["ood"], *(_percent(row[metric]) for metric in METRICS)] for row in rows_of(results)]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def markdown(results: dict[str, Any]) -> str:
    """Returns the table with all metrics, in percent."""
    return markdown_table(HEADER, lines(results), names=2)


def naming_its_folder(logger: Logger) -> AbstractContextManager[None]:
    """Wraps what adds to a logger: an error of the disk names the run's folder, if the logger is this project's own."""
    return logger.named() if isinstance(logger, Board) else nullcontext()
