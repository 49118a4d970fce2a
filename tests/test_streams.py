"""Commands whose output goes to a terminal of another encoding, to nobody, or to a reader that has seen enough."""

from __future__ import annotations

import os
import subprocess
import sys

import judged_run
import pytest
import tiny_clip

pytestmark = pytest.mark.slow

ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
HELP = ("train.py", "eval.py", "detect.py", "attack.py", "study.py")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    """A line of bash; $PYTHON is the interpreter."""
    own = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | environment
    line = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(line, env=own, capture_output=True, timeout=300, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny_clip.make(tmp_path_factory.mktemp("streams"))
    judged_run.make(root, "probe")
    return root


@pytest.mark.parametrize("script", HELP)
def test_help_is_written_in_ascii(script):
    done = shell(f"$PYTHON {script} --help", **ASCII)
    assert done.returncode == 0 and done.stdout.isascii() and not done.stderr
    assert b"one experiment: images -> features" in done.stdout or script != "train.py"


def test_a_minus_stays_a_minus(root):
    done = shell(f"$PYTHON eval.py --compare {root}/runs/probe:knn {root}/runs/probe:msp", **ASCII)
    assert done.returncode == 0 and b"probe:msp - probe:knn" in done.stdout, done.stderr


@pytest.mark.parametrize("environment", [ASCII, C_LOCALE])
def test_a_run_ends_well_in_ascii(environment, root):
    done = shell(f"$PYTHON train.py --config {root}/probe.yaml --name=ascii --overwrite", **environment)
    assert done.returncode == 0 and b"Results: " in done.stdout, done.stderr


def test_names_that_the_locale_lacks_are_explained(root):
    done = shell(f"$PYTHON train.py --config {root}/probe.yaml --data.id=pères", **C_LOCALE)
    assert done.returncode == 2 and b"set PYTHONUTF8=1" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "train.py --help",
        "train.py --config demo.yaml --print_config",
        "study.py --config few_shot_demo.yaml --help",
        "-m clip_ood --help",
        "-m clip_ood catalog",
        "train.py --config nowhere.yaml 2>&1",
    ],
)
def test_a_reader_that_has_gone_ends_a_command_quietly(command):
    done = shell(f"$PYTHON {command} | true")
    assert done.returncode == 141 and not done.stderr


def test_a_reader_of_one_line_has_its_line(root):
    done = shell(f"$PYTHON detect.py --run {root}/runs/probe {root}/data --batch-size 1 | head -1")
    assert done.stdout.startswith(b"path,is_ood") and done.returncode in (0, 141) and b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["train.py --help", "train.py --config demo.yaml --print_config"])
def test_a_full_disk_is_one_line(command):
    done = shell(f"$PYTHON {command} > /dev/full")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


def test_a_run_without_any_stream_is_whole(root):
    done = shell(f"$PYTHON train.py --config {root}/probe.yaml --name=closed <&- >&- 2>&-")
    assert done.returncode == 0 and (root / "runs" / "closed" / "results.json").is_file()


def test_what_libraries_write_to_a_closed_stderr_reaches_no_file(tmp_path):
    code = (
        "import os\nfrom clip_ood.process.streams import usable_streams\n"
        f"with usable_streams():\n    file = open('{tmp_path}/x', 'w')\n    os.write(2, b'noise')\n    print('said')\n"
    )
    (tmp_path / "code.py").write_text(code)
    done = shell(f"PYTHONPATH=. $PYTHON {tmp_path}/code.py 2>&-")
    assert done.returncode == 0 and done.stdout == b"said\n" and (tmp_path / "x").read_bytes() == b""


def test_closed_streams_that_are_needed_are_named(root):
    done = shell(f"$PYTHON detect.py --run {root}/runs/probe - <&-")
    assert done.returncode == 2 and b"error: Standard input is closed" in done.stderr
    done = shell(f"$PYTHON detect.py --run {root}/runs/probe {root}/data/near/1.png >&-")
    assert done.returncode == 2 and b"error: Standard output is closed" in done.stderr and b"--out" in done.stderr


def test_what_stands_behind_two_dashes_is_a_path(root):
    (root / "-dash.png").write_bytes((root / "data" / "near" / "1.png").read_bytes())
    script = f"$PYTHON {os.getcwd()}/detect.py --run runs/probe --format jsonl"
    done = shell(f"cd {root}; {script} -- -dash.png data/near/1.png")
    assert done.returncode == 0 and done.stdout.count(b"\n") == 2 and b'"path": "-dash.png"' in done.stdout
    done = shell(f"cd {root}; {script} data/near/1.png -- --out")
    assert done.returncode == 2 and b"There is no file or folder --out" in done.stderr
