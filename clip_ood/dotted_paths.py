"""Classes by their dotted path, as `my_scores.Mine`: where they are looked for, and what is said where there is none."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from clip_ood.errors import UserError

FOLDERS = (
    "callbacks",
    "configs",
    "datamodules",
    "demo",
    "experiments",
    "lightning_modules",
)  # of clip_ood, beside it in a clone


def object_at(path: str, asked_by: str) -> Any:
    """What the dotted path of a class leads to; None where its module has no such name.

    Raises: UserError, which begins with `asked_by`, where no such module is on the Python path; what the module itself raises.
    """
    module, _, name = path.rpartition(".")
    module = importable(module)
    try:
        return getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # found, but something that it imports is missing
        raise UserError(f"{asked_by}: no module {error.name!r} on the Python path") from error


def importable(module: str) -> str:
    """The module's name, where it is one of this project's by the folder that it lies in: `datamodules.x` is `clip_ood.datamodules.x`,
    so that no file becomes two modules."""
    own = f"clip_ood.{module}"
    try:
        return own if module.partition(".")[0] in FOLDERS and find_spec(own) else module
    except ModuleNotFoundError:
        return module
