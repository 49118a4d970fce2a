"""Wrong values in the files of a finished run: its config, results, images, contents, scores and checkpoint, and in a store."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_ood.config.loading import load_config
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.checkpoints import check_checkpoint
from clip_ood.experiments.commands.features import main as features
from clip_ood.experiments.models import initial_head
from clip_ood.experiments.resume import check_contents, check_heads, check_images
from clip_ood.features.entries import Entries
from clip_ood.report.compare import show
from clip_ood.report.run_page import write_report
from clip_ood.runs.results_table import print_table
from clip_ood.runs.run_folder import head_of, read_results
from clip_ood.runs.summary import summarise
from faults import lab
from faults.mutated import answered, bytes_of, in_parts, mutations
from faults.trial import Trial

SEED = 20
COLUMNS: dict[str, Callable[[pa.ChunkedArray], pa.Array]] = {
    "of numbers": lambda column: pa.array([1.5] * len(column)),
    "of whole numbers": lambda column: pa.array([3] * len(column)),
    "of texts": lambda column: pa.array(["other"] * len(column)),
    "of nulls": lambda column: pa.nulls(len(column)),
    "of NaN": lambda column: pa.array([float("nan")] * len(column)),
    "of infinite numbers": lambda column: pa.array([float("inf")] * len(column)),
    "of lists": lambda column: pa.array([[1]] * len(column)),
    "of empty texts": lambda column: pa.array([""] * len(column)),
}


@cache
def trials() -> list[Trial]:
    return in_parts("a run's files", _all)


@cache
def _all() -> list[tuple[str, Any]]:
    run, numbers = _run(), random.Random(SEED)
    found = []
    for name, read in FILES.items():
        whole = (run / name).read_bytes()
        found += [
            (f"{name}: {what}", partial(_tried, name, content, read)) for what, content in bytes_of(whole, numbers)
        ]
    for name in ("results.json", "images.json", "contents.json"):
        content = json.loads((run / name).read_text())
        found += [(f"{name}: {what}", partial(_of_json, name, value)) for what, value in mutations(content)]
    for name in pq.read_schema(run / "scores.parquet").names[:7]:
        found += [(f"scores.parquet: {name} {what}", partial(_of_column, name, wrong)) for what, wrong in _columns()]
    held = torch.load(run / CHECKPOINT, weights_only=True)
    for what, value in mutations({key: each for key, each in held.items() if key not in ("loops", "callbacks")}):
        found.append((f"{CHECKPOINT}: {what}", partial(_of_checkpoint, value)))
    (encoder,) = (lab.shared() / "features").glob("*/encoder.json")
    for what, value in mutations(json.loads(encoder.read_text())):
        found.append(
            (
                f"encoder.json: {what}",
                partial(_of_store, encoder.relative_to(lab.shared() / "features"), json.dumps(value).encode()),
            )
        )
    for path in sorted((lab.shared() / "features").rglob("*.safetensors"))[::3]:
        for what, content in bytes_of(path.read_bytes(), numbers):
            name = path.relative_to(lab.shared() / "features")
            found.append((f"a segment of {name.parts[-2]}: {what}", partial(_of_store, name, content)))
    return found


def _run() -> Path:
    return lab.shared() / "runs/finished"


def _columns() -> Iterator[tuple[str, Any]]:
    yield "left out", None
    yield from COLUMNS.items()


def _results(run: Path) -> None:
    """All that reads a results.json or scores.parquet of one seed: its report, a page of two runs, and what `_tables` does."""
    answered(lambda: write_report(run, load_benchmark(load_config(str(_run() / "config.yaml")))))
    answered(lambda: show([str(run), str(_run())], run / "page.html"))
    _tables(run)


def _tables(run: Path) -> None:
    """The table of a run, of two side by side, and of several seeds."""
    answered(lambda: print_table(read_results(run)))
    answered(lambda: show([str(_run()), str(run)]))
    over = run.parent / "over"
    for seed in (1, 2):
        shutil.copytree(
            run if seed == 1 else _run(),
            over / f"seed-{seed}",
            ignore=shutil.ignore_patterns("detector", "checkpoints"),
        )
    answered(lambda: print_table(summarise(over, [1, 2])))


def _config(run: Path) -> None:
    """What goes on with a run, or scores its head, by its config."""
    answered(lambda: check_heads(run, load_config(str(_run() / "config.yaml"))))
    answered(lambda: load_benchmark(load_config(str(run / "config.yaml"))))


def _images(run: Path) -> None:
    benchmark = load_benchmark(load_config(str(_run() / "config.yaml")))
    answered(lambda: check_images(run, benchmark))
    answered(lambda: check_contents(run, json.loads((_run() / "contents.json").read_text())))


def _checkpoint(run: Path) -> None:
    """What looks at a checkpoint, and what takes its head."""
    answered(lambda: check_checkpoint(head_of(run)))

    def begin() -> None:
        check_checkpoint(head_of(run))
        initial_head(str(run), 1, None, 32, None, {"class_names": ("cat", "dog", "fox")})

    answered(begin)


CHECKPOINT = "checkpoints/last.ckpt"
FILES: dict[str, Callable[[Path], None]] = {
    "config.yaml": _config,
    "results.json": _results,
    "images.json": _images,
    "contents.json": _images,
    "scores.parquet": _results,
    CHECKPOINT: _checkpoint,
}


def _tried(name: str, content: bytes, read: Callable[[Path], None], folder: Path) -> None:
    run = _copied(folder)
    (run / name).write_bytes(content)
    read(run)


def _of_json(name: str, content: Any, folder: Path) -> None:
    _tried(name, json.dumps(content).encode(), _tables if name == "results.json" else FILES[name], folder)


def _of_column(name: str, wrong: Callable | None, folder: Path) -> None:
    run = _copied(folder)
    table = pq.read_table(run / "scores.parquet")
    place = table.column_names.index(name)
    changed = table.remove_column(place) if wrong is None else table.set_column(place, name, wrong(table[name]))
    pq.write_table(changed, run / "scores.parquet")
    _results(run)


def _of_checkpoint(content: Any, folder: Path) -> None:
    run = _copied(folder)
    if isinstance(content, dict):
        content = {
            key: torch.load(run / CHECKPOINT, weights_only=True)[key] for key in ("loops", "callbacks")
        } | content
    torch.save(content, run / CHECKPOINT)
    _checkpoint(run)


def _of_store(name: Path, content: bytes, folder: Path) -> None:
    """A damaged store is listed and checked; what is whole of it is found."""
    store = folder / "features"
    shutil.copytree(lab.shared() / "features", store)
    (store / name).write_bytes(content)
    answered(lambda: features(["--root", str(store), "list"]))
    answered(lambda: _checked(store))
    for place in (store / "files", *store.glob("*/images"), *store.glob("*/texts")):
        answered(lambda place=place: Entries(place).merge())


def _checked(store: Path) -> None:
    try:
        features(["--root", str(store), "check"])
    except SystemExit as ended:  # 1: something is damaged, which it has said
        assert ended.code in (0, 1, None), ended.code


def _copied(folder: Path) -> Path:
    """The run, its images and encoder named as before, so that only what is damaged differs."""
    return Path(shutil.copytree(_run(), folder / "run", ignore=shutil.ignore_patterns("detector", "events.*")))
