"""Runs `train.py` as a user does, in a process group of its own that can be killed, and reads what the run has written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml

from bench.lines import Failed
from clip_ood.experiments.embeddings import export_embeddings

LONGEST = 900  # seconds: a command that takes longer hangs
POINTS = 100


class Ended(NamedTuple):
    """A finished run: its folder, the seconds of its command, and its images a second by what was done with them."""

    folder: Path
    seconds: float
    pace: dict[str, float | None]

    def figures(self, *keys: str) -> dict[tuple[str, str, str], float]:
        """Returns the fractions of results.json in points, by OOD set, detector and name; `keys` chooses names (default: all)."""
        rows = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))["rows"]
        return {
            (row["ood"], row["detector"], key): POINTS * value
            for row in rows
            for key, value in row.items()
            if isinstance(value, float) and (not keys or key in keys)
        }

    def features(self) -> np.ndarray:
        """Returns the features (N, D) of all images in the order of their sets and paths."""
        export_embeddings(self.folder, path := self.folder / "features.parquet")
        table = pq.read_table(path, columns=["set", "path", "features"]).sort_by(
            [("set", "ascending"), ("path", "ascending")]
        )
        return np.stack(table["features"].to_numpy())


class Training:
    """Runs of one config, each under a name of its own and with a feature store of its own, all within `root`."""

    def __init__(self, root: Path, content: Mapping[str, Any]) -> None:
        self.root, self.content = root, content

    def run(self, name: str, *arguments: str) -> Ended:
        """Runs until the end. Raises: Failed, with the last line of its error, if it fails or hangs."""
        start = time.perf_counter()
        with self._started(name, arguments) as process, _group_of(process):
            try:
                status = process.wait(LONGEST)
            except subprocess.TimeoutExpired:
                raise Failed(f"it has not ended after {LONGEST} seconds") from None
        if status:
            raise Failed(last_error(self._log(name).read_text(errors="replace")) or f"it ended with {status}")
        pace = json.loads((self.root / f"{name}.pace.json").read_text(encoding="utf-8"))
        return Ended(self.root / "runs" / name, time.perf_counter() - start, pace)

    def kill(self, name: str, epochs: int, *arguments: str) -> int:
        """Ends the whole process group by SIGKILL once a checkpoint is there, and returns how many of the epochs it holds.

        Raises: Failed if the run ends before that, or has trained all epochs.
        """
        checkpoint = self.root / "runs" / name / "checkpoints" / "last.ckpt"
        until = time.perf_counter() + LONGEST
        with self._started(name, arguments) as process, _group_of(process):
            while not checkpoint.is_file():
                if process.poll() is not None:
                    said = last_error(self._log(name).read_text(errors="replace"))
                    raise Failed(said or "it ended before it could be killed")
                if time.perf_counter() > until:
                    raise Failed(f"there is no checkpoint after {LONGEST} seconds")
                time.sleep(0.01)
        done = torch.load(checkpoint, weights_only=True)["epoch"] + 1
        if done == epochs:
            raise Failed(f"it had trained all {epochs} epochs when it was killed")
        return done

    def _started(self, name: str, arguments: tuple[str, ...]) -> subprocess.Popen:
        pace = {"class_path": "bench.pace.Pace", "init_args": {"path": f"{self.root}/{name}.pace.json"}}
        content = dict(self.content)
        content["trainer"] = content["trainer"] | {"callbacks": [pace]}
        content |= {"runs_root": f"{self.root}/runs", "features_root": f"{self.root}/features/{name}"}
        config = self.root / f"{name}.yaml"
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        command = [sys.executable, "train.py", "--config", str(config), *arguments]
        with self._log(name).open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def _log(self, name: str) -> Path:
        return self.root / f"{name}.log"


@contextmanager
def _group_of(process: subprocess.Popen) -> Iterator[None]:
    """In the end, kills what there is of the process group that a process has begun."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def last_error(said: str) -> str:
    """Returns the last line that tells an error, or the last line; of several processes', not that another one has ended.

    >>> last_error("Traceback\\nValueError: no such layer\\nerror: process 1 of the run's 2 has ended with status 1; it says why.\\n")
    'ValueError: no such layer'
    """
    lines = [line.strip() for line in said.splitlines() if line.strip() and "it says why" not in line]
    told = [line for line in lines if re.match(r"error:|[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (told or lines or [""])[-1]


def furthest(first: Mapping[Any, float], second: Mapping[Any, float]) -> float:
    """Returns the largest difference of two tables' values. Raises: Failed if they have other rows, or none."""
    if not first or first.keys() != second.keys():
        raise Failed(f"they have other rows: {sorted(map(str, first.keys() ^ second.keys()))[:3]}")
    return max(abs(second[key] - value) for key, value in first.items())
