"""Checks loggers and callbacks in a config: names of loggers, and classes as `{class_path: my_module.Mine, init_args: {…}}`.

Only their form is checked here, because importing a class would import Lightning, which takes seconds
(`clip_ood.experiments.own_classes` does that).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_ood.errors import ConfigError, nearest

LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")
CLASS = "{class_path: my_module.Mine, init_args: {…}}"
LOGGER = f"one of {', '.join(LOGGERS)}, or false, or {CLASS}, or a list of them"
CALLBACKS = f"a list of {CLASS}"
KEYS = ("class_path", "init_args")


def check_logger(value: Any, option: str) -> None:
    """Raises ConfigError for a value of trainer.logger that names no logger; `option` is the key's name."""
    if value is False:
        return
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(isinstance(entry, str | Mapping) for entry in entries):
        raise ConfigError(f"{option}: {_shown(value)} must be {LOGGER}")
    for entry in entries:
        if isinstance(entry, Mapping):
            _check_class(entry, option)
        elif entry not in LOGGERS:
            raise ConfigError(f"{option}: {entry} must be {LOGGER}.{nearest(entry, LOGGERS)}")
    if twice := next((entry for entry in entries if isinstance(entry, str) and entries.count(entry) > 1), None):
        raise ConfigError(f"{option}: {twice} stands there twice, and both would write the same files: name it once")


def check_callbacks(value: Any, option: str) -> None:
    """Raises ConfigError for a value of trainer.callbacks that is no list of classes; `option` is the key's name."""
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise ConfigError(f"{option}: {_shown(value)} must be {CALLBACKS}")
    for entry in value:
        _check_class(entry, option)


def _check_class(entry: Mapping[str, Any], option: str) -> None:
    if unknown := next((key for key in entry if key not in KEYS), None):
        raise ConfigError(f"{option}: a class has no key {unknown!r}, expected {CLASS}.{nearest(str(unknown), KEYS)}")
    path = entry.get("class_path")
    steps = path.split(".") if isinstance(path, str) else []
    if len(steps) < 2 or not all(step.isidentifier() for step in steps):
        raise ConfigError(
            f"{option}: class_path is {_shown(path)}, expected the dotted path of a class, as my_module.Mine"
        )
    if not isinstance(entry.get("init_args") or {}, Mapping):
        raise ConfigError(
            f"{option}: {path}: init_args is {_shown(entry['init_args'])}, expected its arguments by name, as {{patience: 3}}"
        )


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) < 60 else f"{text[:60]}…"
