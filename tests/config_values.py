"""Configs given on the command line or written in a YAML file, on top of what every config needs."""

from __future__ import annotations

import re
from pathlib import Path

from clip_ood.config.loading import load_config, override, validate

BASE = {
    "name": "x",
    "data": {"id": "photos"},
    "backbone": {"library": "timm", "model": "test_vit"},
    "method": {"zero_shot": {}},
}


def given(*arguments, base=BASE):
    return validate(override(base, list(arguments)))


def written(text, *arguments):
    """The config of a YAML file with these lines, on top of what every config needs."""
    needed = {"backbone": "{library: timm, model: test_vit}", "data": "{id: photos}", "method": "{zero_shot: {}}"}
    lines = [f"{key}: {value}" for key, value in needed.items() if not re.search(f"^{key}:", text, re.MULTILINE)]
    Path("run.yaml").write_text("\n".join([*lines, text]), encoding="utf-8")
    return load_config("run.yaml", list(arguments))


def at(config, path):
    for key in path.split("."):
        config = config[key] if isinstance(config, dict) else getattr(config, key)
    return config
