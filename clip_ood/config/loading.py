"""Loads a checked `Config` from its name and the command line.

A value that names a YAML file (`backbone: backbones/demo.yaml`) is a block, looked up beside the config and in
`configs/`. Later lines win: a dotted key (`data.batch_size: 64`) changes one key of a block, and `--key=value` changes any key.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from clip_ood.config.checks import check_names
from clip_ood.config.explaining import explain
from clip_ood.config.schema import Config
from clip_ood.config.values import locate, takes, typed
from clip_ood.config.yaml_text import LARGEST, POWER, parse, reason
from clip_ood.errors import ConfigError, nearest
from clip_ood.files.regular_file import no_file, special
from clip_ood.files.text_files import NotText, check_size, read_text
from clip_ood.process.called import called
from clip_ood.terminal.shown import TURNED

CONFIGS = Path(find_spec("clip_ood.configs").submodule_search_locations[0])  # the shipped configs
STANDS_FOR = {  # a key that is added to a bare path -> the key that the path stands for
    "images": "images",
    "class_names": "images",
    "per_class": "folder",
    "labels": "folder",
    "numbered": "folder",
    "count": "folder",
    "classes": "folder",
    "group": "folder",
    "source": "folder",
}


def find_config(name: str, beside: Path | None = None) -> Path:
    """Returns the file that `name` stands for: a path as it is, else beside the file that names it, else in `configs/`."""
    for folder in [Path(), *([beside] if beside else []), CONFIGS]:
        if (path := folder / name).is_file():
            return path
    for folder in [Path(), *([beside] if beside else [])]:
        if special(path := folder / name):
            raise ConfigError(f"The config {path} is no file{no_file(path)}")
    shipped = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
    raise ConfigError(f"There is no config {name!r}, neither here nor in configs/.{nearest(name, shipped)}")


def read(path: Path, section: Any = Config, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Returns the mapping in a YAML file of the keys of a section, with blocks filled in.

    `within` are the files that it is a block of.
    Raises: ConfigError for a file that is no YAML mapping, for a key that is there twice or is replaced by a later one, and for a
    file that is a block of itself.
    """
    if path.resolve() in within:
        raise ConfigError(
            f"{path} names itself as a block; blocks are named with their folder, as benchmarks/demo.yaml"
        )
    content = _mapping(path)
    _check_order(list(content), f"{path}: ")
    filled: dict[str, Any] = {}
    for key, value in content.items():  # a dotted key sets one key of a block named above it
        steps, kind = locate(key, section)
        filled = _set(filled, steps, _block(value, kind, path.parent, (*within, path.resolve())))
    return filled


def _mapping(path: Path) -> dict[str, Any]:
    """Returns the keys and values that a YAML file holds, none for an empty one."""
    try:
        check_size(path, LARGEST)
    except NotText as error:
        raise ConfigError(f"The config {error}") from None
    try:
        content = parse(read_text(path))
    except (yaml.YAMLError, NotText) as error:
        raise ConfigError(f"{path} is no valid YAML: {reason(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path} must hold keys and values, not a {'list' if isinstance(content, list) else 'text'}")
    return content or {}


def _check_order(keys: list[str], where: str) -> None:
    """Raises ConfigError for a key that would replace one of its own keys, set before it."""
    for number, key in enumerate(keys):
        if lost := next((each for each in keys[:number] if each.startswith(f"{key}.")), None):
            raise ConfigError(f"{where}{key} would replace {lost}, which stands before it; put {key} first")


def _block(value: Any, kind: Any, beside: Path | None = None, within: tuple[Path, ...] = ()) -> Any:
    """Returns the keys in the YAML file that a value names, if keys are meant, and any other value as it is."""
    takes_ = takes(kind)
    if not (takes_.keys and isinstance(value, str) and value.endswith((".yaml", ".yml"))):
        return value
    try:
        path = find_config(value, beside)
    except ConfigError:
        if takes_.text:
            return value  # a folder may have such a name
        raise
    return read(path, kind, within)


def plain(path: Path, own: str) -> dict[str, Any]:
    """Returns the mapping in the YAML file of a study or an attack, whose blocks belong to its runs and stay names.

    Raises: ConfigError for a file that is no YAML mapping, and for an experiment, which has no key `own`.
    """
    content = _mapping(path)
    if own not in content and "method" in content:
        raise ConfigError(f"{path} is one experiment: {called('train')} --config {path.name}")
    return content


def divide(arguments: list[str], section: type[BaseModel]) -> tuple[list[str], list[str]]:
    """Divides arguments into those for the keys of a `section`, and all others, each as one `--key=value`."""
    joined: list[str] = []
    for argument in arguments:
        if argument.startswith("--") or not joined or "=" in joined[-1]:
            joined.append(argument)
        else:
            joined[-1] += f"={argument}"
    ours = [each for each in joined if each[2:].partition("=")[0].partition(".")[0] in section.model_fields]
    return ours, [each for each in joined if each not in ours]


def override(content: dict[str, Any], arguments: list[str], section: type[BaseModel] = Config) -> dict[str, Any]:
    """Returns `content` with each `--a.b=value` (or `--a.b value`) set in it; its key in `section` says what a value is.

    Raises: ConfigError for an argument that is no such pair or has no value, and for a key that replaces one before it.
    """
    rest, keys = list(arguments), []
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or len(argument) == 2:
            raise ConfigError(
                f"{argument!r} is no option; keys are given as --key=value, nested ones as --data.root=DIR"
            )
        key, equals, text = argument[2:].partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            text = rest.pop(0)
        if not text:
            raise ConfigError(f"--{key} has no value; write --{key}=VALUE")
        keys.append(f"--{key}")
        _check_order(keys, "")
        steps, kind = locate(key, section)
        try:
            content = _set(content, steps, _block(typed(text, kind), kind))
        except ConfigError as error:
            raise ConfigError(f"--{key}: {error}") from None
    return content


def change(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the `content` of an experiment with each dotted key of `changes` set in it; values may name blocks."""
    _check_order(list(changes), "changes: ")
    for key, value in changes.items():
        steps, kind = locate(key, Config)
        content = _set(content, steps, _block(value, kind))
    return content


def _set(content: Any, path: list[str], value: Any) -> dict[str, Any]:
    """Returns a copy of `content` in which the key at `path` is `value`."""
    if not path:
        return value
    if not isinstance(content, dict):
        content = {STANDS_FOR[path[0]]: content} if isinstance(content, str) and path[0] in STANDS_FOR else {}
    return content | {path[0]: _set(content.get(path[0]), path[1:], value)}


def load_config(name: str, arguments: list[str] | None = None) -> Config:
    """Loads and checks the config `name` with command-line overrides.

    Raises: ConfigError, which names every wrong key or value at once.
    """
    path = find_config(name)
    content = read(path)
    for key, (what, command) in {"lines": ("a study", "study"), "config": ("an attack", "attack")}.items():
        if key in content:
            raise ConfigError(f"{path} is {what}: {called(command)} --config {path.name}")
    return validate(override({"name": path.stem} | content, arguments or []))


def validate(content: dict[str, Any]) -> Config:
    """Makes a `Config` from plain mappings; keys and names are checked without importing anything heavy."""
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(explain(error, Config)) from None
    check_names(config)
    return config


def contents(config: Config) -> dict[str, Any]:
    """Returns the config as plain mappings, flat (no blocks) and complete (with defaults), as `validate` takes them."""
    content = config.model_dump(mode="json")
    content["method"] = {config.method.name: content["method"][config.method.name]}
    return content


def dump(config: Config) -> str:
    """Returns `contents` as YAML that is read back as it is."""
    return in_yaml(contents(config))


def in_yaml(content: dict[str, Any]) -> str:
    """Returns mappings as YAML that is read back as it is."""
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text.translate({ord(mark): f"\\u{ord(mark):04x}" for mark in TURNED})


class _Dumper(yaml.SafeDumper):
    """Quotes texts with a character that YAML takes for the end of a line, or that turns the direction of shown text, and 1e-3."""

    def quoting(self, text: str) -> yaml.ScalarNode:
        """Represents a text."""
        is_quoted = {"\x85", "\u2028", "\u2029", *TURNED} & set(text) or POWER.fullmatch(text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if is_quoted else None)


_Dumper.add_representer(str, _Dumper.quoting)
