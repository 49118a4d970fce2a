"""Reads YAML whose scalars stay text: 2023_07, yes and 1.10 are what was written, until the schema asks for something else."""

from __future__ import annotations

import re
from typing import Any

import yaml

from clip_ood.errors import ConfigError, UserError, shortened

MERGE = "tag:yaml.org,2002:merge"
PLAIN = "!plain"
NULLS = ("null", "Null", "NULL", "~")
LARGEST = 1 << 22  # bytes of a file, characters of a value
DEEPEST = 50  # lists and mappings in each other
MOST = 30_000  # values in a file, counting an alias's values each time
LONGEST = 10_000  # characters of a text
WIDEST = 1 << 64  # every integer is smaller
POWER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # 1e-3, a number in YAML 1.2 and JSON, and in 1.1 a text


class TooLarge(ConfigError):
    """YAML that is larger than a config can be; it is refused before it is filled in."""


class Plain(str):
    """A scalar without quotes. If the schema allows none, it may stand for none; if there is no schema, it is read as YAML."""


def parse(text: str) -> Any:
    """Returns the mappings, lists and texts of a YAML document: `Plain` and quoted text, None for nothing.

    Raises: yaml.YAMLError for a text that is no YAML, ConfigError for a key that is there twice, TooLarge.
    """
    return _Loader(text).content()


def parse_flow(text: str) -> Any:
    """Reads a text as `parse` does that is one `{…}` or `[…]` from its first character to its last.

    Raises: yaml.YAMLError for any other text, ConfigError for a key that is there twice, TooLarge.
    """
    loader = _Loader(text)
    node = loader.get_single_node()
    if not getattr(node, "flow_style", False) or node.end_mark.index < len(text.rstrip()):
        raise yaml.YAMLError("something stands behind the braces")
    return loader.content(node)


def as_yaml(value: Any) -> Any:
    """Returns what YAML makes of the scalars that `parse` left as they are, in lists and mappings too: 8, 1e-3, true, none, …

    Raises: ValueError for what YAML cannot read.
    """
    if isinstance(value, dict):
        return {key: as_yaml(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_yaml(each) for each in value]
    if not isinstance(value, Plain):
        return value
    loader, text = yaml.SafeLoader(""), str(value)
    if POWER.fullmatch(text):
        return float(text)
    try:
        read = loader.construct_object(yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text))
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(
            f"{shortened(repr(text))} is no valid YAML value ({reason(error)}); put text in quotes"
        ) from None
    if type(read) is int and abs(read) >= WIDEST:
        raise UserError(f"{shortened(repr(text))} is a larger number than any key takes")
    return read


def says_none(value: Any) -> bool:
    """Says whether a value is nothing, or a null without quotes."""
    return value is None or (isinstance(value, Plain) and value in NULLS)


def reason(error: Exception) -> str:
    """Says in one line what is wrong with a text, and where."""
    if (mark := getattr(error, "problem_mark", None)) is not None:
        return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """Reads plain scalars as `Plain`, keys as text, and notes keys that are twice in one mapping.

    Documents that are too large are refused while they are read, by their size with all aliases filled in.
    """

    def __init__(self, text: str) -> None:
        if len(text) > LARGEST:
            raise TooLarge(f"it has {len(text):,} characters, and at most {LARGEST:,} are read")
        super().__init__(text)
        self.twice: list[str] = []
        self.place: list[str] = []
        self.count = 0  # values so far
        self.sizes: dict[yaml.Node, int] = {}  # how many values each node stands for, and
        self.heights: dict[yaml.Node, int] = {}  # how deep its own lie in each other

    def content(self, node: yaml.Node | None = None) -> Any:
        node = node or self.get_single_node()
        if self.twice:
            raise ConfigError(self.twice[0])
        return None if node is None else self.construct_document(node)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Composes a node and counts its values; an alias counts as what it stands for.

        In a mapping, `index` is the node of its key.
        """
        key = index.value if isinstance(index, yaml.ScalarNode) else index
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            node = super().compose_node(parent, index)
            if (size := self.sizes.get(node)) is None and key != "<<":  # it is not whole yet
                raise self._too_large(key, "an alias stands for what it lies in", mark)
            self._add(size or 0, self.heights.get(node, 0), key, mark)
            return node
        mark, before = self.peek_event().start_mark, self.count
        self._add(1, 0, key, mark)
        self.place.append("" if key is None else str(key))
        node = super().compose_node(parent, index)
        self.place.pop()
        if isinstance(node, yaml.ScalarNode) and len(node.value) > LONGEST:
            raise self._too_large(
                key, f"a text of {len(node.value):,} characters, and at most {LONGEST:,} are read", mark
            )
        self.heights[node] = 1 + max((self.heights.get(each, 0) for each in _inside(node)), default=-1)
        self.sizes[node] = self.count - before
        return node

    def _add(self, values: int, height: int, key: Any, mark: yaml.Mark) -> None:
        self.count += values
        if len(self.place) + height >= DEEPEST:
            raise self._too_large(key, f"its lists and mappings lie over {DEEPEST} deep in each other", mark)
        if self.count > MOST:
            raise self._too_large(key, f"it stands for more than {MOST:,} values", mark)

    def _too_large(self, key: Any, why: str, mark: yaml.Mark) -> TooLarge:
        steps = [step for step in [*self.place[:5], "" if key is None or len(self.place) > 5 else str(key)] if step]
        named = f"{shortened('.'.join(steps))}: " if steps else ""
        return TooLarge(f"{named}{why} (line {mark.line + 1}, column {mark.column + 1})")

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
        """Puts in what `<<` names: a mapping's own keys take precedence over it, and of several mappings the first one does."""
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


def _inside(node: yaml.Node) -> list[yaml.Node]:
    """Returns the nodes in a list, the values of a mapping, or nothing for a scalar."""
    if isinstance(node, yaml.MappingNode):
        return [value for _, value in node.value]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _places(first: yaml.Mark, second: yaml.Mark) -> str:
    if first.line != second.line:
        return f"in lines {first.line + 1} and {second.line + 1}"
    return f"in line {first.line + 1}, columns {first.column + 1} and {second.column + 1}"
