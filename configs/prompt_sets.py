"""Named sets of prompts: those that CLIP's authors published for ImageNet, read from open_clip's file without importing it."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROMPT_SETS = {"openai_80": "OPENAI_IMAGENET_TEMPLATES", "openai_7": "SIMPLE_IMAGENET_TEMPLATES"}


def named_prompts(value: Any) -> Any:
    """The templates that a name stands for, {} for the class; anything else as it is."""
    return templates(PROMPT_SETS[value]) if isinstance(value, str) and value in PROMPT_SETS else value


def templates(variable: str) -> list[str]:
    """open_clip keeps templates as functions, `lambda c: f"a photo of a {c}."`: their strings with {} for c."""
    package = next(iter(find_spec("open_clip").submodule_search_locations))
    tree = ast.parse(Path(package, "zero_shot_metadata.py").read_text(encoding="utf-8"))
    functions = next(
        node.value.elts
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == variable
    )
    return [
        "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in f.body.values) for f in functions
    ]
