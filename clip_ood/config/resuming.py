"""Says what may change in a config between the beginning of a run and its resumption, and what else differs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from clip_ood.config.method_schema import Method

# Dotted keys; a key stands for all below it. Results are the content of results.json and scores.parquet.
MACHINE = {
    "name",  # the folder of the run may have been renamed
    "runs_root",  # … or moved
    "features_root",  # the store serves features of the same images under the same encoder, wherever it lies
    "timeout",  # how long a run waits before it gives up
    "data.num_workers",  # who decodes an image changes none of its pixels
    "trainer.accelerator",  # batches are global, and every image is seen once: devices change rounding alone
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.enable_model_summary",  # what Lightning shows and logs
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",  # … and where; a callback may steer the training, and stays
}
OUTPUTS = {  # say what is written beside the results
    "evaluation.figures",
    "evaluation.report",
    "evaluation.save_detector",
    "evaluation.with_encoder",
}
FREE = frozenset(MACHINE | OUTPUTS)
SHOWN = 80  # characters of a value


def differences(was: BaseModel, now: BaseModel, free: Collection[str] = FREE) -> list[str]:
    """Returns `key: old → new` for every key outside `free` in which two configs of one kind differ, including defaults.

    Seeds may be added to `seeds`, because each is a separate run.
    """
    return list(_differences("", was, now, free))


def settled(config: BaseModel) -> dict[str, Any]:
    """Returns the content of a config without what may change."""
    excluded: dict[str, Any] = {}
    for key in FREE:
        *sections, last = key.split(".")
        place = excluded
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = True
    return config.model_dump(mode="json", exclude=excluded)


def _differences(key: str, was: Any, now: Any, free: Collection[str]) -> Iterator[str]:
    if key in free or was == now or (key == "seeds" and was and set(was) <= set(now)):
        return
    if isinstance(was, Method) and was.name != now.name:
        yield f"{key}: {was.name} → {now.name}"
        return
    before, after = _keys(was), _keys(now)
    if before is None or after is None:
        yield f"{key}: {_shown(was)} → {_shown(now)}"
        return
    for name in [*before, *(after.keys() - before.keys())]:
        yield from _differences(f"{key}.{name}" if key else name, before.get(name), after.get(name), free)


def _keys(value: Any) -> dict[str, Any] | None:
    """Returns the keys of a section or mapping, or None for any other value."""
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    return value if isinstance(value, dict) else None


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    text = str(value) if isinstance(value, str | Path) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
