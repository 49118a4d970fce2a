"""Keeps the scores of a watched stream in a file of its own, from which the watch goes on: safetensors with a JSON header, 8 bytes an image."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open

from clip_ood.backbones.fingerprint import digest
from clip_ood.calibration import Calibration
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError, brief
from clip_ood.files.records import Count, Record, Text, Unfit, fitting
from clip_ood.files.tensor_files import save_tensors
from clip_ood.process.locks import alone
from clip_ood.stream.martingale import DELTA, Martingale
from clip_ood.stream.online_p_values import OnlinePValues

HEADER, SCORES, FORMAT = "watch", "scores", 1
ANEW = "name another file, and the watch begins anew"


class WatchError(UserError):
    """A stream cannot be watched: no calibration score serves, or the file is damaged or of another detector."""


@dataclass(frozen=True)
class WatchHeader:
    """Whose stream it is. Attributes: column, the detector; detector, a digest of its encoder and calibration scores; delta, the probability
    of a false alarm; seed, that of the draws for ties; digest, that of the scores."""

    column: str
    detector: str
    delta: float
    seed: int = 0
    digest: str = ""
    format: int = FORMAT


class _Declared(Record):
    """The keys of a WatchHeader."""

    model_config = ConfigDict(extra="forbid")
    column: Text
    detector: Text
    delta: Annotated[float, Field(gt=0, lt=1)]
    seed: Count
    digest: Text
    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]


class Watch:
    """Says of a stream of scores whether it is still what a detector was calibrated on.

    `martingale` is that of the p-values of the stream's scores among the calibration scores and all scores before: `martingale.alarm` is
    the number of the image at which it reached 1 / δ, or None, `martingale.log` its logarithm now. A watch that goes on from a file has the
    bits of one that never stopped. Scores are in the order of the stream.
    """

    def __init__(self, calibration: Calibration, header: WatchHeader, path: Path) -> None:
        self.header, self.path, self.calibration = header, path, len(calibration)
        self.martingale = Martingale(header.delta)
        self._p_values = OnlinePValues(calibration.scores.double().numpy(), header.seed)
        self._scores: list[np.ndarray] = []

    def take(self, scores: Iterable[float]) -> None:
        """Watches the next scores of the stream. Raises: UserError for NaN, before any of them counts."""
        scores = np.array(list(scores), dtype=np.float64)
        self.martingale.take(*self._p_values.take(scores))
        self._scores.append(scores)

    def check_goes_on(self, saved: SavedDetector, columns: Collection[str]) -> None:
        """Raises WatchError for a detector folder of which `columns` judge, and whose scores cannot be ranked together with the stream's."""
        column = self.header.column
        saved.check_column(column)
        if column not in columns:
            raise WatchError(
                f"{self.path} watches the scores of {column}, and by {saved.folder} {', '.join(columns)} would judge. Start again: name {column} "
                f"as --detector, or {ANEW}"
            )
        if _detector(saved, column, saved.calibration(column)) != self.header.detector:
            raise WatchError(
                f"{saved.folder} scores otherwise than what {self.path} watches: its encoder or the calibration images of {column} differ. "
                f"Start again: {ANEW}"
            )

    @property
    def scores(self) -> np.ndarray:
        """All scores of the stream, in its order."""
        self._scores = [np.concatenate([np.empty(0), *self._scores])]
        return self._scores[0]

    def save(self) -> None:
        """Writes the file, whole or not at all. Raises: OSError, which names it."""
        header = replace(self.header, digest=_digest(self.scores))
        save_tensors({SCORES: torch.from_numpy(self.scores)}, self.path, {HEADER: json.dumps(asdict(header))})


@contextmanager
def watching(
    path: Path, saved: SavedDetector, column: str, delta: float | None = None, seed: int = 0
) -> Iterator[Watch]:
    """Opens the watch in a file, or a new one if there is none, and keeps other processes away from it; `Watch.save` writes it.

    delta: the probability of a false alarm over the whole stream (None: as the file has it, 0.01 in a new one); seed: of a new file.
    Raises: WatchError for a detector none of whose calibration scores serve, a file that is damaged or of another detector, and another
    `delta` than the file's; InUse if another process has the file; OSError.
    """
    calibration = saved.calibration(column)
    check_serves(calibration, saved, column)
    path = Path(path).resolve()  # a link stays one, and its file is gone on from
    with alone(path, "wait until it ends, or give this call another file"):
        new = WatchHeader(column, _detector(saved, column, calibration), DELTA if delta is None else delta, seed)
        header, scores = (new, []) if not path.exists() else _read(path, new, delta)
        watch = Watch(calibration, header, path)
        watch.take(scores)
        yield watch


def check_serves(calibration: Calibration, saved: SavedDetector, column: str) -> None:
    """Raises WatchError unless one fixed function, which knew none of the images, gave the calibration scores."""
    way_out = (
        "set its thresholds by recent ID images (clip-ood recalibrate --run RUN PATH… --gathered all|sample --out NEW), and watch with the "
        "new folder; or run the experiment with ID val images (data.splits.val, data.id.val) "
    )
    if calibration.by != "split":
        raise WatchError(
            f"{saved.folder}: {column} is calibrated on the ID images that it learnt from, each scored without itself, and scores new images "
            f"by all of them: ranks among such scores are not those of one and the same score. {way_out}and without evaluation.cross_fit"
        )
    if calibration.choice is not None:
        raise WatchError(
            f"{saved.folder}: the images that calibrate {column} also chose it among {calibration.choice.candidates} candidates, so that "
            f"their scores are too high to be compared with those of a stream. {way_out}for a single candidate, or four times as many"
        )


def _read(path: Path, expected: WatchHeader, delta: float | None) -> tuple[WatchHeader, np.ndarray]:
    try:
        with safe_open(path, "pt") as file:
            found = WatchHeader(**fitting(json.loads((file.metadata() or {})[HEADER]), _Declared))
            (scores,) = [file.get_tensor(name) for name in file.keys() if name == SCORES]  # noqa: SIM118
        scores = _fitting(scores, found)
    except (SafetensorError, Unfit, ValueError, KeyError, TypeError) as error:
        raise WatchError(
            f"{path} is damaged, or no file of a watched stream ({type(error).__name__}: {brief(error)}): {ANEW}"
        ) from error
    if found.column != expected.column:
        raise WatchError(f"{path} watches the scores of {found.column}, and not of {expected.column}: {ANEW}")
    if found.detector != expected.detector:
        raise WatchError(
            f"{path} watches the scores of another {found.column}: its encoder or its calibration images differ, as they do after "
            f"recalibrate. Scores of the two cannot be ranked together: {ANEW}"
        )
    if delta is not None and delta != found.delta:
        raise WatchError(
            f"{path} watches with delta = {found.delta:g}, and not {delta:g}: what it promises holds for one that was chosen before the first "
            f"image. Leave it out, or {ANEW}"
        )
    return found, scores


def _fitting(scores: torch.Tensor, header: WatchHeader) -> np.ndarray:
    if scores.dtype != torch.float64 or scores.ndim != 1 or scores.isnan().any():
        raise Unfit("its scores are no column of numbers")
    if _digest(scores.numpy()) != header.digest:
        raise Unfit("its content is not what was written")
    return scores.numpy()


def _detector(saved: SavedDetector, column: str, calibration: Calibration) -> str:
    return digest([saved.encoder.fingerprint, column, _digest(calibration.scores.double().numpy())])


def _digest(scores: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(scores, dtype="<f8").tobytes()).hexdigest()
