"""Reads named sets of prompts, those that CLIP's authors published for ImageNet, from open_clip's file alone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

PROMPT_SETS = {"openai_80": "OPENAI_IMAGENET_TEMPLATES", "openai_7": "SIMPLE_IMAGENET_TEMPLATES"}


def with_sets(prompts: list[str]) -> list[str]:
    """Returns the prompts, with the templates of a set in place of its name; {} stands for the class."""
    return [
        each for prompt in prompts for each in (templates(PROMPT_SETS[prompt]) if prompt in PROMPT_SETS else [prompt])
    ]


def templates(variable: str) -> list[str]:
    """Returns what open_clip's template functions, such as `lambda c: f"a photo of a {c}."`, return for {}.

    Their file imports nothing; the package would import torch.
    """
    package = next(iter(find_spec("open_clip").submodule_search_locations))
    return [template("{}") for template in run_path(str(Path(package, "zero_shot_metadata.py")))[variable]]
