"""Judges the parts of the inputs by Ray Data: actors that each have the predictor take batches, and this process keeps the parts.

    folders, lists ─▶ one task of this machine lists the batches ─▶ (with GPUs: tasks that decode) ─▶ actors ─▶ parts, in order

Ray gives the batches of an actor that is lost to another one. What is judged lies in the parts that a process alone would have made, so
that it joins them, and judges what is left.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from math import floor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import torch
from PIL import Image
from ray.data import ActorPoolStrategy, DataContext, ReadTask
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource
from torch import Tensor

from clip_ood.callbacks.prediction_writer import PredictionParts, lines
from clip_ood.data.inputs import Source, sources
from clip_ood.datamodules.new_images import Pictures
from clip_ood.detect.batch_rows import batch_of, read_row_of, row_of
from clip_ood.detect.batches import NewImageBatch, SourceBatch
from clip_ood.detect.part_batches import part_batches
from clip_ood.detect.predictor import Predictor
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError
from clip_ood.lightning_modules.prediction import PredictionModule
from clip_ood.process import stalls

if TYPE_CHECKING:
    from clip_ood.experiments.detect import Request

LINES, WRONG = "lines", "wrong"  # columns of what was found, and of what a user can mend
NOTHING = SourceBatch((), 0, False)


def judge_by_ray(
    request: Request,
    columns: list[str],
    transform: Callable[[Image.Image], Tensor],
    size: int,
    per_part: int,
    parts: PredictionParts,
) -> None:
    """Judges those parts of the inputs that are not whole yet, and keeps each once it is whole.

    `transform` makes pixels of a picture; `size`: images of a batch; `per_part`: batches of a part. Raises: UserError as judging in this process does.
    """
    inputs = Batches(partial(sources, request.paths), size, per_part, parts.is_whole, request.timeout)
    with connected():
        _keep(_judged(request, columns, transform, inputs).iter_rows(), parts)


@contextmanager
def connected() -> Iterator[None]:
    """Connects to the cluster of RAY_ADDRESS, or starts Ray on this machine alone; what is connected already stays so."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no host is told
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # all else is raised, too
    os.environ.setdefault("RAY_worker_niceness", "0")  # as this call's own; Ray's default is 15
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    own = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level="ERROR", **own)
    if is_main:
        signal.signal(signal.SIGTERM, before)  # this project's own end, which Ray replaces
    try:
        yield
    finally:
        ray.shutdown()


def _judged(
    request: Request,
    columns: list[str],
    transform: Callable[[Image.Image], Tensor],
    inputs: Batches,
) -> ray.data.Dataset:
    context = DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = sys.stderr.isatty(), False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # byte: each batch is a block, which one actor takes
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # where the parts lie
    rows = ray.data.read_datasource(inputs, override_num_blocks=1, num_cpus=0, label_selector=here)
    judge = {"request": request, "columns": columns, "folder": os.getcwd()}
    least, most = actors(request, ray.cluster_resources())
    pool = ActorPoolStrategy(min_size=least, max_size=most)
    needs = {"num_gpus": request.gpus} if request.gpus else {"num_cpus": 1}
    if request.gpus:  # pictures are decoded on the CPUs of the cluster
        rows = rows.map(partial(_read, Pictures(transform), os.getcwd(), request.timeout), num_cpus=1)
    return rows.map(Judge, fn_constructor_kwargs=judge, compute=pool, **needs)


def actors(request: Request, there: Mapping[str, float]) -> tuple[int, int]:
    """Returns the least and the largest number of actors: by default from 1 to as many as the cluster has CPUs, or shares of a GPU, for.

    `there`: the cluster's number of each. Raises: UserError for more than there is room for, which Ray would wait for without end.
    """
    kind, share = ("GPU", request.gpus) if request.gpus else ("CPU", 1)
    found = there.get(kind, 0)
    least, most = request.actors or (1, floor(found / share))
    if least * share > found:
        workers = "1 worker takes" if least == 1 else f"{least} workers take"
        raise UserError(
            f"--engine ray: {workers} {least * share:g} {kind}s, and the Ray cluster has {found:g}: ask for fewer (--actors, --gpus)"
        )
    return least, most


class Batches(Datasource):
    """The batches of those parts that are not whole, which one task lists as they are asked for."""

    def __init__(
        self,
        inputs: Callable[[], Iterable[Source]],
        size: int,
        per_part: int,
        is_whole: Callable[..., bool],
        timeout: float,
    ) -> None:
        super().__init__()
        self.inputs, self.size, self.per_part, self.is_whole = inputs, size, per_part, is_whole
        self.folder, self.timeout = os.getcwd(), timeout

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *further: Any, **others: Any) -> list[ReadTask]:
        about = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._blocks, about)]

    def _blocks(self) -> Iterator[pa.Table]:
        os.chdir(self.folder)
        stalls.wait_at_most(self.timeout)
        batches = part_batches(self.inputs(), self.size, self.per_part, self.is_whole)
        try:
            while (batch := stalls.attended(lambda: next(batches, None))) is not None:
                yield pa.Table.from_pylist([row_of(batch) | {WRONG: ""}])
        except UserError as error:
            yield pa.Table.from_pylist([row_of(NOTHING) | {WRONG: str(error)}])


class Judge:
    """An actor: the predictor of a run, which takes batches of sources, or of images that were read already.

    It works in the `folder` of the process that asks, so that relative paths mean the same.
    """

    def __init__(self, request: Request, columns: list[str], folder: str) -> None:
        self.request, self.columns, self.folder = request, columns, folder
        self.device = torch.device("cuda" if request.gpus and torch.cuda.is_available() else "cpu")

    @cached_property
    def module(self) -> PredictionModule:
        """What judges. It is loaded for the first batch, whose row tells what a user can mend: of an error, Ray keeps only the text."""
        request = self.request
        _enter(self.folder)
        stalls.wait_at_most(request.timeout)
        saved = SavedDetector(request.run, request.trust_classes)
        rules = (request.accept, request.fdr, request.nearest, request.per_class, request.words)
        predictor = Predictor(saved, saved.backbone(request.encoder, request.allow_download), self.columns, *rules)
        return PredictionModule(predictor.to(self.device)).eval()

    @cached_property
    def pictures(self) -> Pictures:
        """What reads images."""
        return Pictures(self.module.predictor.backbone.transform)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        given = batch_of(row)
        batch = given if isinstance(given, SourceBatch) else given.batch
        if row[WRONG]:
            return row_of(batch) | {LINES: b"", WRONG: row[WRONG]}
        try:
            return row_of(batch) | {LINES: self._judged(given), WRONG: ""}
        except UserError as error:
            return row_of(batch) | {LINES: b"", WRONG: str(error)}

    @torch.inference_mode()
    def _judged(self, given: SourceBatch | NewImageBatch) -> bytes:
        pictures = self.pictures
        batch = given if isinstance(given, NewImageBatch) else stalls.attended(lambda: pictures[given])
        if batch.images is not None:
            batch.images = batch.images.to(self.device)
        found = lines(self.module, self.module.predict_step(batch, 0), batch)
        return b"".join(json.dumps(line).encode() + b"\n" for line in found)


def _read(pictures: Pictures, folder: str, timeout: float, row: dict[str, Any]) -> dict[str, Any]:
    if row[WRONG]:
        return row
    stalls.wait_at_most(timeout)
    try:
        _enter(folder)
        return read_row_of(stalls.attended(lambda: pictures[batch_of(row)])) | {WRONG: ""}
    except UserError as error:
        return row | {WRONG: str(error)}


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"A worker of Ray cannot enter {folder} ({error.strerror}): all machines of the cluster need the same folders"
        ) from None


def _keep(rows: Iterable[dict[str, Any]], parts: PredictionParts) -> None:
    """Keeps each part once its last batch is there; batches come in order."""
    found: list[bytes] = []
    taken: list[Source] = []
    for row in rows:
        if row[WRONG]:
            raise UserError(row[WRONG])
        batch = batch_of(row)
        taken += batch.sources
        new = row[LINES].splitlines(keepends=True)
        for line in new:
            parts.watch(json.loads(line))
        found += new
        if batch.last:
            parts.keep(batch.part, taken, found)
            found, taken = [], []
