"""From a config's name and the command line to a checked `Config`.

A value that names a YAML file (`backbone: backbones/demo.yaml`) is a block, looked up beside the config and in
`configs/`. Later lines win: a dotted key (`data.batch_size: 64`) changes one key of a block, `--key=value` any key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from configs.checks import check_names
from configs.errors import ConfigError, nearest
from configs.schema import Config

HERE = Path(__file__).parent
STANDS_FOR = {  # a key that is added to a bare path -> the key that the path stands for
    "images": "images",
    "class_names": "images",
    "per_class": "folder",
    "labels": "folder",
    "numbered": "folder",
    "count": "folder",
    "group": "folder",
    "source": "folder",
}


def find_config(name: str, beside: Path | None = None) -> Path:
    """The file that `name` stands for: a path as it is, else beside the file that names it, else in `configs/`."""
    for folder in [Path(), *([beside] if beside else []), HERE]:
        if (path := folder / name).is_file():
            return path
    shipped = sorted(str(path.relative_to(HERE)) for path in HERE.rglob("*.yaml"))
    raise ConfigError(f"There is no config {name!r}, neither here nor in configs/.{nearest(name, shipped)}")


def read(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, blocks filled in; `within` are the files that it is a block of.

    Raises: ConfigError for what is no YAML mapping, and for a file that is a block of itself.
    """
    if path.resolve() in within:
        raise ConfigError(
            f"{path} names itself as a block; blocks are named with their folder, as benchmarks/demo.yaml"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(content).__name__}")
    filled = {}
    for key, value in content.items():  # a dotted key sets one key of a block named above it
        filled = _set(filled, str(key).split("."), _block(value, path.parent, (*within, path.resolve())))
    return filled


def _block(value: Any, beside: Path | None = None, within: tuple[Path, ...] = ()) -> Any:
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        return read(find_config(value, beside), within)
    return value


def plain(path: Path, own: str) -> dict[str, Any]:
    """The mapping in the YAML file of a study or an attack: its blocks are those of its runs, and stay names.

    Raises: ConfigError for what is no YAML mapping, and for an experiment, which has no key `own`.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(content).__name__}")
    if own not in content and "method" in content:
        raise ConfigError(f"{path} is one experiment: python train.py --config {path.name}")
    return content


def divide(arguments: list[str], section: type[BaseModel]) -> tuple[list[str], list[str]]:
    """Arguments for the keys of a `section`, and all others, each as one `--key=value`."""
    joined: list[str] = []
    for argument in arguments:
        if argument.startswith("--") or not joined or "=" in joined[-1]:
            joined.append(argument)
        else:
            joined[-1] += f"={argument}"
    ours = [each for each in joined if each[2:].partition("=")[0].partition(".")[0] in section.model_fields]
    return ours, [each for each in joined if each not in ours]


def override(content: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    """`content` with each `--a.b=value` (or `--a.b value`) set in it; values are read as YAML or name a block.

    Raises: ConfigError for what is no such pair.
    """
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or len(argument) == 2:
            raise ConfigError(
                f"{argument!r} is no option; keys are given as --key=value, nested ones as --data.root=DIR"
            )
        key, equals, text = argument[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} has no value; write --{key}=VALUE")
            text = rest.pop(0)
        try:
            value = _block(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"--{key}: {text!r} is no valid YAML value ({error})") from None
        content = _set(content, key.split("."), value)
    return content


def change(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`content` with each dotted key of `changes` set in it; values may name blocks."""
    for key, value in changes.items():
        content = _set(content, key.split("."), _block(value))
    return content


def _set(content: Any, path: list[str], value: Any) -> dict[str, Any]:
    """A copy of `content` in which the key at `path` is `value`."""
    if not path:
        return value
    if not isinstance(content, dict):
        content = {STANDS_FOR[path[0]]: content} if isinstance(content, str) and path[0] in STANDS_FOR else {}
    return content | {path[0]: _set(content.get(path[0]), path[1:], value)}


def load_config(name: str, arguments: list[str] | None = None) -> Config:
    """The checked config `name` with command-line overrides.

    Raises: ConfigError naming every wrong key or value at once.
    """
    path = find_config(name)
    content = read(path)
    for key, (what, script) in {"lines": ("a study", "study.py"), "config": ("an attack", "attack.py")}.items():
        if key in content:
            raise ConfigError(f"{path} is {what}: python {script} --config {path.name}")
    return validate(override({"name": path.stem} | content, arguments or []))


def validate(content: dict[str, Any]) -> Config:
    """A `Config` from plain mappings, keys and names checked without importing anything heavy."""
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(explain(error, Config)) from None
    check_names(config)
    return config


def dump(config: Config) -> str:
    """The config as YAML, flat (no blocks) and complete (defaults included)."""
    content = config.model_dump(mode="json")
    content["method"] = {config.method.name: content["method"][config.method.name]}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def explain(error: ValidationError, section: type[BaseModel]) -> str:
    """A line for each wrong key or value of a `section`."""
    return "\n".join(_explain(problem, section) for problem in error.errors())


def _explain(problem: dict[str, Any], section: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        valid = _keys_at(problem["loc"][:-1], section)
        last = str(problem["loc"][-1])
        return f"There is no config key {where}.{nearest(last, valid) or ' Known here: ' + ', '.join(valid) + '.'}"
    if problem["type"] == "missing":
        return f"The config key {where} is missing."
    if problem["type"] == "model_type":
        known = ", ".join(_keys_at(problem["loc"], section))
        return f"{where} takes keys, as --{where}='{{KEY: VALUE}}', or a YAML file; got {problem['input']!r}. Known here: {known}."
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], dict | BaseModel) else f" (got {problem['input']!r})"
    return f"{where}: {message}{given}" if where else f"{message}{given}"


def _keys_at(location: tuple, section: type[BaseModel]) -> list[str]:
    """The valid keys at `location` below a section."""
    from configs.help import section_of

    for part in location:
        field = section.model_fields.get(str(part))
        if field is None:  # the name of a set in a mapping of sets
            continue
        section = section_of(field.annotation) or section
    return list(section.model_fields)
