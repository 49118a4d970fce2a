"""Every command that README, docs, CI and the headers of configs show is understood."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from clip_ood.config.loading import CONFIGS, dump, load_config

pytestmark = pytest.mark.usefixtures("demo_encoders", "unchecked_folders")

PROJECT = CONFIGS.parent


def commands():
    """script and arguments of every command with keys that README, docs, CI and the headers of configs show."""
    pages = "\n".join(page.read_text() for page in [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))])
    blocks = re.findall(r"^```(\S*)\n(.*?)^```$", pages, re.MULTILINE | re.DOTALL)
    readme = "\n".join(text for language, text in blocks if not language)
    ci = (PROJECT / ".ci" / "run").read_text()
    headers = "\n".join(path.read_text() for path in sorted((PROJECT / "configs").rglob("*.yaml")))
    scripts = "\n".join(import_module(name).__doc__ for name in ("train", "eval", "study", "attack"))
    text = re.sub(r"\\\n", " ", "\n".join([readme, ci, headers, scripts]))
    return dict.fromkeys(re.findall(r"^.*\b(train|eval|study|attack)\.py (--(?:config|run) .*)$", text, re.MULTILINE))


@pytest.mark.parametrize("script, line", commands(), ids=lambda each: each[:60])
def test_every_command_that_is_shown_is_understood(script, line, capsys):
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/config.yaml").write_text(dump(load_config("demo.yaml")))
    import_module(script).main([*shlex.split(line, comments=True), "--print_config"])
    assert capsys.readouterr().out


def test_there_are_commands_to_understand():
    assert len(commands()) > 40
