"""Finds classes by their dotted path, as `my_scores.Mine`, and words the error if there is none."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from clip_ood.errors import ConfigError

FOLDERS = (
    "callbacks",
    "configs",
    "datamodules",
    "demo",
    "experiments",
    "lightning_modules",
)  # parts of clip_ood that lie beside it in a clone


def module_of(path: str, asked_by: str) -> tuple[ModuleType, str]:
    """Returns the module that a dotted path leads to, and the name that it should have there.

    Raises: ConfigError, which begins with `asked_by`, if no such module is on the Python path; what the module itself raises.
    """
    module, _, name = path.rpartition(".")
    module = importable(module)
    try:
        return import_module(module), name
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module was found, but something that it imports is missing
        raise ConfigError(f"{asked_by}: there is no module {error.name!r} on the Python path") from error


def importable(module: str) -> str:
    """Returns a module's name as it is imported: `datamodules.x`, named by a folder of this project, is `clip_ood.datamodules.x`.

    This way no file becomes two modules.
    """
    own = f"clip_ood.{module}"
    try:
        return own if module.partition(".")[0] in FOLDERS and find_spec(own) else module
    except ModuleNotFoundError:
        return module
