"""Prints predictions on new images as they come, or keeps them in parts that become one file, in the order of the inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from clip_ood.backbones.fingerprint import digest
from clip_ood.callbacks.part_writer import PartWriter
from clip_ood.data.inputs import Source
from clip_ood.data.readers.objects import Object
from clip_ood.data.readers.on_disk import Place
from clip_ood.data.readers.parquet_rows import Row
from clip_ood.detect.batches import BatchResult, NewImageBatch
from clip_ood.errors import UserError
from clip_ood.files.unreadable import Passing
from clip_ood.files.writing import written_whole

CHANGED = "The inputs changed while they were judged: run it again, and only what changed is judged anew"
# the fields of a Prediction, or path, error, whether it `is_image` by its name and whether the error `passes`, as those of servers; and
# `source`: inside, and its place, and `content`, the identity of what the file holds in hex digits
Line = dict[str, Any]


class PredictionPrinter(Callback):
    """Passes every line on as soon as its batch is judged; it serves one device, and nothing can be resumed."""

    def __init__(self, emit: Callable[[Line], None]) -> None:
        self.emit = emit

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: BatchResult,
        batch: NewImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for line in lines(module, outputs, batch):
            self.emit(line)


class PredictionParts(PartWriter):
    """Keeps the lines of a part in `folder`, whole or not at all; `key` identifies the settings. `watch` sees each line at once.

    `unfit` counts the parts that were there, and not of these inputs and settings. A part with errors that pass is whole only for the call
    that has written it.
    """

    def __init__(self, folder: Path, key: str, watch: Callable[[Line], None] = lambda line: None) -> None:
        super().__init__()
        self.folder, self.key, self.watch = folder, key, watch
        self.unfit = 0
        self._expected: dict[int, dict[str, str]] = {}
        self._kept: set[int] = set()

    def path(self, part: int) -> Path:
        """Returns the file of a part."""
        return self.folder / f"part-{part:06d}.jsonl"

    def is_whole(self, part: int, sources: Sequence[Source]) -> bool:
        """Says whether the part is there, made of these sources as they are now and with these settings."""
        self._expected[part] = self._about(sources)
        try:
            with self.path(part).open("rb") as file:
                head = json.loads(file.readline())
                expected = self._expected[part] | {"lines": _digest(file)}
                if head in [expected | {"passes": passes} for passes in (False, True)]:
                    return part in self._kept or not head["passes"]
        except FileNotFoundError:
            return False
        except (ValueError, RecursionError):
            pass
        self.unfit += 1
        return False

    def read(self, count: int) -> Iterator[Line]:
        """Yields the lines of the first `count` parts, in order; `is_whole` was called for each of them in this process.

        Raises: ValueError for a part of other sources, which shows that another process saw other inputs.
        """
        for part in range(count):
            if not self.path(part).is_file():
                raise UserError(f"{CHANGED} ({self.path(part)} is missing)")
            with self.path(part).open(encoding="utf-8") as file:
                about = json.loads(file.readline())
                if {key: about.get(key) for key in self._expected[part]} != self._expected[part]:
                    raise UserError(f"{CHANGED} ({self.path(part)} is of others)")
                yield from map(json.loads, file)

    def remove(self) -> None:
        """Removes the parts, and their folder if it holds nothing else."""
        for path in self.folder.glob("part-*"):
            path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def see(self, module: LightningModule, batch: NewImageBatch, outputs: BatchResult) -> list[bytes]:
        """Returns the batch's lines as they are written."""
        found = lines(module, outputs, batch)
        for line in found:
            self.watch(line)
        batch.images = None  # frees the pixels
        return [json.dumps(line).encode() + b"\n" for line in found]

    def write(self, module: LightningModule, found: list[tuple[NewImageBatch, list[bytes]]]) -> None:
        written = [line for _, of_batch in found for line in of_batch]
        sources = [source for batch, _ in found for source in batch.batch.sources]
        self.keep(found[0][0].batch.part, sources, written)

    def keep(self, part: int, sources: Sequence[Source], found: list[bytes]) -> None:
        """Writes the lines of a part of these sources."""
        passes = any(json.loads(line).get("passes", False) for line in found)
        about = self._about(sources) | {"lines": _digest(found), "passes": passes}
        with written_whole(self.path(part)) as file:
            file.writelines([json.dumps(about).encode() + b"\n", *found])
        self._kept.add(part)

    def _about(self, sources: Sequence[Source]) -> dict[str, str]:
        described = [[each.path, *_identity(each.place), *_size_and_time(each.place.path)] for each in sources]
        return {"key": self.key, "sources": digest(described)}


def _identity(place: Place | Row | Object) -> Iterable[str | int | None]:
    """Returns what tells a place from others, which is digested and not written down."""
    return [place.identity, *list(place)[1:]] if isinstance(place, Object) else place


def _digest(lines: Iterable[bytes]) -> str:
    """Returns a digest of a part's lines, by which damaged lines are recognised."""
    content = blake2b(digest_size=8)
    for line in lines:
        content.update(line)
    return content.hexdigest()


def _size_and_time(path: str) -> tuple[int, int] | tuple[()]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns


def _failed(source: Source, why: str) -> Line:
    passes = isinstance(why, Passing)
    return {"path": source.path, "error": why, "is_image": source.reason is None, "passes": passes}


def lines(module: LightningModule, finding: BatchResult, batch: NewImageBatch) -> list[Line]:
    """Returns a line for each judged source of the batch and each detector, in order, and one for a source that was not judged."""
    sources = batch.batch.sources
    read = [place for place, each in enumerate(sources) if each.reason is None]
    contents = {place: each.astype("<u8").tobytes().hex() for place, each in zip(read, batch.contents, strict=True)}
    found: dict[int, list[Line]] = {place: [_failed(sources[place], why)] for place, why in finding.errors.items()}
    if finding.judged is not None:
        names = [sources[place].path for place in finding.places]
        predictions = iter(module.predictor.predictions(finding.judged, names))
        several = len(module.predictor.decisions)
        found |= {place: [asdict(each) for each in islice(predictions, several)] for place in finding.places}
    return [
        line | {"source": [each.inside, *each.place], "content": contents.get(place)}
        for place, each in enumerate(sources)
        for line in found[place]
    ]
