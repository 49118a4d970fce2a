"""YAML whose scalars stay text: 2023_07, yes and 1.10 are what was written, until the schema asks for something else."""

from __future__ import annotations

from typing import Any

import yaml

from configs.errors import ConfigError

MERGE = "tag:yaml.org,2002:merge"
PLAIN = "!plain"
NULLS = ("null", "Null", "NULL", "~")


class Plain(str):
    """A scalar without quotes. Where the schema allows none, it may say none; where there is no schema, it is YAML."""


def parse(text: str) -> Any:
    """The mappings, lists and texts of a YAML document: `Plain` and quoted text, None for nothing.

    Raises: yaml.YAMLError for what is no YAML, ConfigError for a key that stands twice.
    """
    return _Loader(text).content()


def parse_flow(text: str) -> Any:
    """As `parse`, for a text that is one `{…}` or `[…]` from its first character to its last.

    Raises: yaml.YAMLError for any other text, ConfigError for a key that stands twice.
    """
    loader = _Loader(text)
    node = loader.get_single_node()
    if not getattr(node, "flow_style", False) or node.end_mark.index < len(text.rstrip()):
        raise yaml.YAMLError("something stands behind the braces")
    return loader.content(node)


def as_yaml(value: Any) -> Any:
    """What YAML 1.1 makes of the scalars that `parse` left as they are, in lists and mappings too: 8, true, none, …

    Raises: ValueError for what YAML cannot read.
    """
    if isinstance(value, dict):
        return {key: as_yaml(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_yaml(each) for each in value]
    if not isinstance(value, Plain):
        return value
    loader, text = yaml.SafeLoader(""), str(value)
    try:
        return loader.construct_object(yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{text!r} is no valid YAML value ({reason(error)}); put text in quotes") from None


def says_none(value: Any) -> bool:
    """Whether a value is nothing, or a null without quotes."""
    return value is None or (isinstance(value, Plain) and value in NULLS)


def reason(error: Exception) -> str:
    """What is wrong with a text, and where, in one line."""
    if (mark := getattr(error, "problem_mark", None)) is not None:
        return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """Reads plain scalars as `Plain`, keys as text, and notes keys that stand twice in one mapping."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[str] = []

    def content(self, node: yaml.Node | None = None) -> Any:
        try:
            node = node or self.get_single_node()
            if self.twice:
                raise ConfigError(self.twice[0])
            return None if node is None else self.construct_document(node)
        except RecursionError:
            raise yaml.YAMLError("its lists and mappings lie too deep in each other") from None

    def resolve(self, kind: type, value: str, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return MERGE if value == "<<" else PLAIN
        return super().resolve(kind, value, implicit)

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key.start_mark)
            if (mark := first.setdefault(key.value, key.start_mark)) is not key.start_mark:
                self.twice.append(f"the key {key.value!r} stands twice, {_places(mark, key.start_mark)}")
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Puts in what `<<` names: a mapping's own keys stand above it, and of several mappings the first."""
        own = [(key, value) for key, value in node.value if key.tag != MERGE]
        named = [value for key, value in node.value if key.tag == MERGE]
        node.value = own  # a mapping that names itself is met without its `<<`
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for value in named:
            for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(each, yaml.MappingNode):
                    raise yaml.MarkedYAMLError(problem="<< must name a mapping", problem_mark=each.start_mark)
                self.flatten_mapping(each)
                for key, inside in each.value:
                    merged.setdefault(key.value, (key, inside))
        node.value = list((merged | {key.value: (key, value) for key, value in own}).values())

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def plain(self, node: yaml.ScalarNode) -> Plain | None:
        return Plain(node.value) if node.value else None


_Loader.add_constructor(PLAIN, _Loader.plain)
_Loader.add_constructor(MERGE, _Loader.plain)


def _places(first: yaml.Mark, second: yaml.Mark) -> str:
    if first.line != second.line:
        return f"in lines {first.line + 1} and {second.line + 1}"
    return f"in line {first.line + 1}, columns {first.column + 1} and {second.column + 1}"
