"""Prints a forecast in the terminal, and returns its exit status."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Column, Table

from clip_ood.config.set_keys import option_of
from clip_ood.experiments.attack.craft import variants
from clip_ood.experiments.forecast.forecast import Expected, Forecast
from clip_ood.experiments.forecast.making import Making
from clip_ood.experiments.forecast.space import Writing, free_at
from clip_ood.experiments.run_facts import encoder_name
from clip_ood.runs.run_folder import is_follower
from clip_ood.terminal.console import Terminal

AFTERWARDS = 3  # forward passes of each attacked batch: before, after, and before pixels are rounded
PARTS = {"train": "train", "val": "val", "id_test": "test", "bank": "bank"}


def tell(forecast: Forecast) -> int:
    """Prints what was found out; returns 1 if a run would stop, otherwise 0."""
    console = Terminal(quiet=is_follower())
    for found in forecast.sets:
        _show(console, "Images", _sets(found.values()))
    _show(console, "Encoders", _encoders(forecast))
    _show(console, "ID images of each run", _images(forecast.runs))
    _show(console, "Runs", _runs(forecast.runs))
    if forecast.making is not None:
        _show(console, "Attacked images", _attacked(forecast.making))
    _show(console, "Disks", _disks(forecast.writings))
    lines = [each.download for found in forecast.sets for each in found.values() if each.download]
    lines += [line for encoder in forecast.encoders for line in encoder.downloads]
    most = max((encoder.to_read for encoder in forecast.encoders), default=0)
    lines += [
        f"The widths of {encoder.spec.model} are known only once its weights are loaded, and so is what it takes on the disks"
        for encoder in forecast.encoders
        if encoder.shape is None
    ]
    lines += list(dict.fromkeys(_processes(each, most) for each in forecast.runs))
    lines += [] if forecast.making is None else [_passes(forecast.making)]
    for line in [*lines, *forecast.cautions, *_ending(forecast)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 1 if forecast.problems else 0


def _show(console: Terminal, title: str, table: Table) -> None:
    if table.rows:
        table.title, table.title_justify, table.box = title, "left", SIMPLE_HEAD
        console.print(table)


def _table(*names: str, figures: Iterable[str]) -> Table:
    """Returns a table in which names may be folded, but figures may not."""
    table = Table(*(Column(name, overflow="fold") for name in names))
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def _sets(found) -> Table:
    table = _table("set", "state", figures=("found", "should be", "taken"))
    for each in found:
        published = "" if each.published is None else f"{each.published:,}"
        taken = "–" if each.images is None else f"{len(each.images):,}"
        table.add_row(
            escape(option_of(each.key).removeprefix("data.")), each.state, f"{each.found:,}", published, taken
        )
    return table


def _encoders(forecast: Forecast) -> Table:
    table = _table("encoder", figures=("g", "h", "to read", "to encode", "features"))
    for each in forecast.encoders:
        shape = each.shape
        widths = ("?", "?") if shape is None else (f"{shape.features:,}", f"{shape.embeddings or '–'}")
        counts = (f"{each.to_read:,}", f"{each.to_encode:,}")
        table.add_row(escape(encoder_name(each.config)), *widths, *counts, _bytes(each.size))
    return table


def _images(runs: list[Expected]) -> Table:
    table = _table("run", figures=PARTS.values())
    for each in runs:
        if each.benchmark is not None:
            counts = [len(each.benchmark.parts[part].rows) for part in PARTS]
            table.add_row(escape(each.run.name), *(f"{count:,}" for count in counts))
    return table


def _runs(runs: list[Expected]) -> Table:
    table = _table("run", figures=("train a process", "steps an epoch", "checkpoint", "detector"))
    for each in runs:
        if each.benchmark is not None:
            share = -(-len(each.benchmark.parts["train"].rows) // each.processes)
            steps = "–" if each.steps is None else f"{'≤ ' * each.run.pseudo}{each.steps:,}"
            detector = f"≤ {_bytes(each.detector)}" if each.detector else _bytes(each.detector)
            table.add_row(escape(each.run.name), f"{share:,}", steps, _bytes(each.checkpoint), detector)
    return table


def _attacked(making: Making) -> Table:
    table = _table("attack", figures=("images", "to be made", "batches", "steps of each"))
    for name, (attack, count) in variants(making.attack).items():
        batches = [positions for variant, positions in making.pending if variant == name]
        table.add_row(name, f"{count:,}", f"{sum(map(len, batches)):,}", f"{len(batches):,}", f"{attack.steps:,}")
    return table


def _passes(making: Making) -> str:
    """What the process with the most images does; all variants take as many steps."""
    batches = making.largest
    images = sum(len(positions) for _, positions in batches)
    return (
        f"Attack: a process makes {images:,} images at most, in {len(batches):,} batches of up to {making.attack.batch_size}: "
        f"{len(batches) * making.attack.steps:,} steps, each a forward and a backward pass of a batch through the encoder, and "
        f"{AFTERWARDS * len(batches):,} forward passes more"
    )


def _disks(writings: list[Writing]) -> Table:
    table = _table("folder", "what comes there", figures=("takes", "free"))
    sums: dict[tuple[Path, str], int | None] = {}
    for each in writings:
        before = sums.get((each.folder, each.what), 0)
        sums[each.folder, each.what] = None if None in (before, each.size) else before + each.size
    for (folder, what), size in sums.items():
        if size != 0:
            table.add_row(escape(str(folder)), what, _bytes(size), decimal(free_at(folder)[1]))
    return table


def _bytes(size: int | None) -> str:
    return "?" if size is None else "–" if size == 0 else decimal(size)


def _processes(expected: Expected, images: int) -> str:
    keys, count = expected.run.config.trainer, expected.processes
    devices, nodes, gpus = keys.get("devices", "auto"), keys.get("num_nodes", 1), torch.cuda.device_count()
    told = (
        f"Processes: {count} (trainer.devices={devices}, trainer.num_nodes={nodes}), which read about {-(-images // count):,} images "
        f"each; CUDA GPUs here: {gpus}"
    )
    if str(devices) in ("auto", "-1") and keys.get("accelerator") != "cpu":
        return f"{told}. With {devices} there are as many processes on a machine as it has GPUs"
    return told


def _ending(forecast: Forecast) -> list[str]:
    problems = [f"{problem}{_of_runs(names, forecast)}" for problem, names in forecast.problems.items()]
    what = "run" if forecast.making is None else "attack"
    if not problems:
        several = what == "run" and len(forecast.runs) != 1
        return [f"The {len(forecast.runs)} runs would start." if several else f"The {what} would start."]
    if len(problems) == 1:
        return [f"The {what} would stop: {problems[0]}"]
    numbered = [f"{number}. {problem}" for number, problem in enumerate(problems, start=1)]
    return [*numbered, f"The {what} would stop, for the {len(problems)} reasons above."]


def _of_runs(names: list[str], forecast: Forecast, most: int = 3) -> str:
    """Names the runs that have a problem, if not all of them do."""
    if "" in names or len(set(names)) == len(forecast.runs):
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f" ({', '.join(names[:most])}{more})"
