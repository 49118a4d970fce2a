"""The benchmarks' runner: one part's failure ends no other, and is told."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import chosen
from bench.__main__ import PARTS, conduct

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Three parts, the first and last of which go well, and where they say so."""
    for name in ("first", "last"):
        said = f"print('{name} measured', sys.argv[1:], flush=True)"
        (tmp_path / f"{name}.py").write_text(f"import sys; {said}; open(r'{tmp_path}/{name}.done', 'w')")
    (tmp_path / "broken.py").write_text("raise LookupError('no such bank')")
    (tmp_path / "killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("tiny", [False, True])
def test_a_part_that_fails_ends_no_other_and_shows_its_traceback(modules, tiny, capfd):
    assert list(conduct(["first", "broken", "killed", "last"], tiny)) == ["broken", "killed"]
    assert all((modules / f"{name}.done").is_file() for name in ("first", "last"))
    shown = capfd.readouterr()
    told = shown.out + shown.err
    assert "Traceback" in told and "LookupError: no such bank" in told
    assert f"last measured {['--tiny'] if tiny else []}" in told


def test_failed_parts_are_named_at_the_end_and_in_the_exit_status(modules):
    (modules / "bench").mkdir()
    (modules / "bench" / "__init__.py").write_text("")
    (modules / "bench" / "__main__.py").write_text((PROJECT / "bench" / "__main__.py").read_text())
    for part in PARTS:
        fault = "raise LookupError" if part in ("probe", "rmd") else ""
        (modules / "bench" / f"{part}.py").write_text(fault)
    command = [sys.executable, "-m", "bench", "--tiny"]
    for status in (1, 0):
        ended = subprocess.run(command, cwd=modules, env=os.environ, capture_output=True, text=True)
        assert ended.returncode == status, ended.stderr
        assert (f"2 of {len(PARTS)} parts failed, as told above: bench.probe, bench.rmd" in ended.stderr) == bool(
            status
        )
        for part in ("probe", "rmd"):
            (modules / "bench" / f"{part}.py").write_text("")


def test_every_part_is_run_and_has_a_tiny_size():
    helpers = {"__init__", "__main__", "pictures", "trainer"}
    helpers |= {"precision", "out_of_sample"}  # which bench.gpu and bench.statistics run
    helpers |= {"lines", "machine", "pace", "training"}  # of bench.accept
    assert set(PARTS) == {path.stem for path in (PROJECT / "bench").glob("*.py")} - helpers
    for part in set(PARTS) - {"typo"}:
        assert "chosen(" in (PROJECT / "bench" / f"{part}.py").read_text(), part


def test_the_command_line_chooses_the_sizes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.probe"])
    assert chosen("full", "tiny") == "full"
    monkeypatch.setattr(sys, "argv", ["bench.probe", "--tiny"])
    assert chosen("full", "tiny") == "tiny"


@pytest.mark.parametrize("part", ["probe", "fine_tune"])
def test_training_is_measured_against_a_bare_loop(part, capfd):
    module = importlib.import_module(f"bench.{part}")
    module.main(module.TINY)
    assert re.search(r"share of a bare loop's .* \d+% \(\d+%–\d+%\)  >= \d+%\n", capfd.readouterr().out)


@pytest.mark.slow
def test_the_table_of_conventions_is_what_its_part_prints():
    from bench.conventions import Sizes, measure

    page = (PROJECT / "docs" / "metrics.md").read_text()
    rows = [difference.row() for difference in measure(Sizes())]
    assert len(rows) == 14 and [row for row in rows if row not in page] == []
