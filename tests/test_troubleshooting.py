"""docs/troubleshooting.md: each message that it explains is one that the sources give."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs" / "troubleshooting.md"
PLACES = "*.py callbacks/**/*.py clip_ood/**/*.py datamodules/**/*.py experiments/**/*.py lightning_modules/**/*.py"


def messages():
    """The first cell of each row: texts as they are printed, with … for what differs."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [re.match(r"\| `(.+?)` \|", row)[1].replace("\\|", "|") for row in rows]


@cache
def texts():
    """Every string of the sources, with … for the values in it."""
    found = []
    for path in (path for place in PLACES.split() for path in PROJECT.glob(place)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("message", messages())
def test_a_message_of_the_page_is_one_of_the_sources(message):
    pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip()]
    pattern = re.compile(".*".join(pieces), re.DOTALL)
    assert any(pattern.search(text) for text in texts()), f"no source says {message!r}"


def test_the_page_explains_many_messages_each_once():
    assert len(messages()) == len(set(messages())) >= 40
