"""Named sets of prompts: those that CLIP's authors published for ImageNet, read from open_clip's file without importing it."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

PROMPT_SETS = {"openai_80": "OPENAI_IMAGENET_TEMPLATES", "openai_7": "SIMPLE_IMAGENET_TEMPLATES"}


def with_sets(prompts: list[str]) -> list[str]:
    """The prompts, with the templates of a set in place of its name; {} stands for the class."""
    return [
        each for prompt in prompts for each in (templates(PROMPT_SETS[prompt]) if prompt in PROMPT_SETS else [prompt])
    ]


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
