"""Makes the loggers that a config names; they log into the run's folder, unless their own environment variables say otherwise."""

from __future__ import annotations

import csv
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from clip_ood.config.schema import Config
from clip_ood.errors import UserError
from clip_ood.experiments.board import Board
from clip_ood.experiments.own_classes import check_classes, make
from clip_ood.files.text_files import read_text
from clip_ood.files.writing import write_text
from clip_ood.runs.run_folder import is_follower

PROJECT = "clip-ood"  # the name under which W&B and MLflow group the runs
SERVER = os.environ.get("MLFLOW_TRACKING_URI")  # read before MLflow writes its own choice of a store there
PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


def check_loggers(trainer: Mapping[str, Any]) -> None:
    """Raises UserError for a logger or callback that cannot be made: a missing package, and what `check_classes` raises."""
    for name in _asked(trainer):
        if missing := [package for package in PACKAGES.get(str(name), ()) if find_spec(package) is None]:
            raise UserError(
                f"trainer.logger: {name} needs the package {missing[0]}: pip install 'clip-ood[loggers]'; or take tensorboard or csv"
            )
    check_classes(trainer)


def make_loggers(trainer: Mapping[str, Any], folder: Path, name: str) -> list[Logger]:
    """Returns the loggers of the run in `folder`, which trackers of many runs call `name`; none for trainer.logger=false."""
    return [
        MAKERS[each](folder, name) if isinstance(each, str) else make(each, Logger, "trainer.logger")
        for each in _asked(trainer)
    ]


def label(config: Config, folder: Path) -> str:
    """Returns the name that trackers of many runs give the run in `folder`: its place below runs_root, as demo/seed-42."""
    below = folder.is_relative_to(config.runs_root)
    return folder.relative_to(config.runs_root).as_posix() if below else folder.name


def _asked(trainer: Mapping[str, Any]) -> Sequence[str | Mapping[str, Any]]:
    value = trainer.get("logger")
    if value is None or value is False:
        return ["tensorboard"] if value is None else []
    return value if isinstance(value, list) else [value]


class Lines(CSVLogger):
    """Writes metrics.csv of the run in `folder`, with a line for each time that something is logged.

    A resumed run adds to its lines.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            path = Path(self.log_dir, "metrics.csv")
            earlier = list(csv.DictReader(read_text(path).splitlines())) if path.is_file() else []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Lightning's writer warns that it removes the file
                writer = super().experiment
            writer.metrics = earlier
            writer.save()
        return super().experiment


def _wandb(folder: Path, name: str) -> Logger:
    """Makes a W&B logger without a network, unless WANDB_MODE says otherwise; `wandb sync` uploads the run later on."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B would report its faults to its makers
    import wandb

    mode = os.environ.get("WANDB_MODE", "offline")
    quiet = wandb.Settings(silent=True, console="off")  # only this project prints
    return WandbLogger(name, folder, id=_kept_id(folder / "wandb.id"), project=PROJECT, mode=mode, settings=quiet)


def _mlflow(folder: Path, name: str) -> Logger:
    """Makes a logger to MLflow's SQLite store in the folder, unless MLFLOW_TRACKING_URI names another."""
    if is_follower():
        return DummyLogger()  # making a logger opens its store, and only the first process logs
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it reports every table that it makes
    place, kept = folder.resolve(), folder / "mlflow.id"
    if not kept.is_file():
        store = SERVER or _mlflow_store(place, uuid4().hex)
        client = MlflowClient(store)
        known = client.get_experiment_by_name(PROJECT)
        pictures = (place / "mlartifacts").as_uri() if store.startswith("sqlite") else None
        number = client.create_experiment(PROJECT, pictures) if known is None else known.experiment_id
        write_text(kept, client.create_run(number, run_name=name).info.run_id)
    known_by = read_text(kept)
    return MLFlowLogger(PROJECT, tracking_uri=SERVER or _mlflow_store(place, known_by), run_id=known_by)


def _mlflow_store(place: Path, run: str) -> str:
    """The address of the store in a folder, another one for each run: MLflow keeps what it has opened at an address until its process
    ends, also where --overwrite has put a new file there. SQLite takes no notice of `run`. Without the driver's name, MLflow takes this for a
    path, and makes folders for it where the command runs."""
    from sqlalchemy import URL

    file = f"file:{quote(str(place / 'mlflow.db'))}"
    return URL.create("sqlite+pysqlite", database=file, query={"uri": "true", "run": run}).render_as_string()


def _kept_id(path: Path) -> str:
    """Returns the identifier by which a tracker knows the run in this folder, also when it is resumed."""
    if not path.is_file() and not is_follower():
        write_text(path, uuid4().hex[:8])
    return read_text(path) if path.is_file() else ""


MAKERS: dict[str, Callable[[Path, str], Logger]] = {
    "tensorboard": lambda folder, _: Board(folder),
    "csv": lambda folder, _: Lines(folder),
    "wandb": _wandb,
    "mlflow": _mlflow,
}


@contextmanager
def ending_trackers() -> Iterator[None]:
    """Wraps a run: W&B's run of this process ends with it, so that the next one, as of another seed, is not taken for the same."""
    try:
        yield
    except BaseException:
        _end_wandb(exit_code=1)
        raise
    _end_wandb(exit_code=0)


def _end_wandb(exit_code: int) -> None:
    if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
        wandb.finish(exit_code)
