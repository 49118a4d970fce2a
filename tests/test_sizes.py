"""Values that would expand without limit are refused by their size, at once and by their key."""

from __future__ import annotations

import re
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import pytest
from studies import load_study

from clip_ood.calibration import Calibration, needed
from clip_ood.config.loading import load_config
from clip_ood.config.shard_names import shard_paths
from clip_ood.config.yaml_text import DEEPEST, MOST, parse
from clip_ood.detectors.names import MOST_CANDIDATES, read_specs
from clip_ood.errors import ConfigError

TEN = "[" + ",".join(map(str, range(1, 11))) + "]"
THOUSAND = "[" + ",".join(map(str, range(1, 1001))) + "]"
LAUGHS = "".join(f"- &a{i} [{','.join([f'*a{i - 1}'] * 10) if i else 'x,x,x'}]\n" for i in range(10))
NESTED = "".join(f"- &a{i} [{f'*a{i - 1}' if i else 'x'}]\n" for i in range(5000))
FILES = {  # what a config holds -> what is said of it, with the key
    "aliases of aliases": ("detectors:\n" + LAUGHS, rf"detectors\.\d+\.\d+: it stands for more than {MOST:,} values"),
    "aliases in each other": ("detectors:\n" + NESTED, r"detectors\.\d+\.0: its lists and mappings lie over 50 deep"),
    "an alias of itself": (
        "detectors: [{name: knn, k: &a [1, *a]}]",
        r"detectors\.0\.k\.1: an alias stands for what it lies in",
    ),
    "lists in lists": ("detectors: " + "[" * 10**5, "detectors.*: its lists and mappings lie over 50 deep"),
    "keys in keys": ("data: " + "{a: " * 10**5, "data.*: its lists and mappings lie over 50 deep"),
    "lines in lines": ("detectors:\n" + "- " * 10**5 + "knn", "detectors.*: its lists and mappings lie over 50 deep"),
    "digits": ("seed: " + "9" * 10**6, "seed: a text of 1,000,000 characters"),
    "digits behind a point": (
        "evaluation: {accept: 0." + "9" * 10**6 + "}",
        r"evaluation\.accept: a text of 1,000,002 characters",
    ),
    "a long key": ("x" * 10**5 + ": 1", "a text of 100,000 characters"),
    "a large file": ("seed: 1 #" + "x" * 5 * 10**6, "has 5,000,009 bytes"),
}


@pytest.fixture(autouse=True)
def at_once_and_in_little_memory():
    load_config("linear_probe_demo.yaml")  # what is read once
    begun, before = time.process_time(), getrusage(RUSAGE_SELF).ru_maxrss
    yield
    spent, more = time.process_time() - begun, getrusage(RUSAGE_SELF).ru_maxrss - before
    assert spent < 3 and more < 2**17  # seconds, kilobytes


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_refused_by_its_size(kind, tmp_path):
    content, said = FILES[kind]
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ConfigError, match=said) as error:
        load_config(str(tmp_path / "x.yaml"))
    assert "x.yaml" in str(error.value) and len(str(error.value)) < 400 and "\n" not in str(error.value)


VALUES = {  # a value on the command line -> what is said of it
    f"data.prompts={'[' * 5000}": r"--data\.prompts: .* lie over 50 deep",
    f"data.prompts={'[' * 5000}{']' * 5000}": r"--data\.prompts: .* lie over 50 deep",
    f"seed={'9' * 5000}": "seed: is a larger number than any key takes",
    "method.linear_probe.lr=1e39": r"method\.linear_probe\.lr: is a larger number than any key takes",
    "method.linear_probe.sweep={lr: [1e-3], weight_decay: [0, 1e39]}": r"sweep\.weight_decay: is a larger number than any key takes",
    "seed=1e400000000": "seed: must be a valid integer",
    "evaluation.accept=1e400000000": r"evaluation\.accept: must be a finite number",
    f"evaluation.accept=0.{'9' * 50_000}": r"--evaluation\.accept: the value has 50,002 characters",
    "evaluation.resamples=1000000000000": r"evaluation\.resamples: must be less than or equal to 100000",
    "data.num_workers=1000000000": r"data\.num_workers: must be less than or equal to 1024",
    "trainer.devices=1000000000": r"trainer\.devices: 1000000000 must be",
    "trainer.num_nodes=1000000000": r"trainer\.num_nodes: 1000000000 must be",
    f"trainer.log_every_n_steps=0x{'9' * 5000}": "is a larger number than any key takes",
    f"trainer.log_every_n_steps={':'.join(['59'] * 3000)}": "is a larger number than any key takes",
    f"detectors=[{{name: knn, k: 0x{'9' * 5000}}}]": "is a larger number than any key takes",
    f"detectors=[{{name: knn, k: {'9' * 5000}}}]": "is no valid YAML value",
    f"seeds={THOUSAND[:-1]},0]": "seeds: must hold at most 1,000 items",
    f"method.linear_probe.sweep={{lr: {THOUSAND}, weight_decay: {THOUSAND}}}": r"sweep: its values make 1,000,000 heads, and at most 10,000",
}


@pytest.mark.parametrize("value", VALUES, ids=[value[:40] for value in VALUES])
def test_a_value_is_refused_by_its_size(value):
    with pytest.raises(ConfigError, match=VALUES[value]) as error:
        load_config("linear_probe_demo.yaml", [f"--{value}"])
    assert len(str(error.value)) < 500


RANGES = {
    "x-{0..99999999999}.tar": r"shards: x-\{0\.\.99999999999\}\.tar stands for more than 100,000 files",
    "x-{000000..999999}.tar": "stands for more than 100,000 files",
    f"x-{{0..{'9' * 5000}}}.tar": r"shards: the numbers in x-.* have over 18 digits",
    f"x-{{{'0' * 5000}1..2}}.tar": r"shards: the numbers in x-.* have over 18 digits",
}


@pytest.mark.parametrize("pattern", RANGES, ids=[pattern[:25] for pattern in RANGES])
def test_a_range_of_shards_is_refused_by_its_size(pattern):
    with pytest.raises(ConfigError, match=RANGES[pattern]) as error:
        shard_paths(Path(pattern))
    assert len(str(error.value)) < 200


def test_a_billion_candidates_are_refused():
    spec = {"name": "knn", **{key: list(range(10)) for key in "abcdefghi"}}
    with pytest.raises(
        ValueError, match=r"detectors: knn: its lists make 1,000,000,000 candidates \(a, b, .*at most 1,000 are tried"
    ):
        read_specs([spec])
    assert len(read_specs([{"name": "knn", "k": list(range(MOST_CANDIDATES))}])) == MOST_CANDIDATES


def test_a_billion_points_of_a_study_are_refused(tmp_path):
    axes = "".join(f"  {axis}: {{seed: {TEN}}}\n" for axis in "abcdefghi")
    (tmp_path / "x.yaml").write_text(
        f"config: linear_probe_demo.yaml\nshows: table\naxes:\n{axes}lines: {{MSP: {{detector: msp}}}}\n"
    )
    with pytest.raises(
        ConfigError, match=r"lines\.MSP: the axes a, b, .* make 1,000,000,000 combinations, and at most 10,000"
    ):
        load_study(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("accept", ["1e400000000", "1e-400000000", 10**400, float("inf"), float("nan"), None, [0.95]])
def test_a_share_of_a_strangers_folder_is_a_number(accept):
    import torch

    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        needed(accept)
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        Calibration(torch.arange(19.0)).threshold(accept)


# What is no larger than it may be is read


def test_a_config_within_the_limits_is_read():
    deep = DEEPEST - 1
    assert str(parse("[" * deep + "]" * deep)).count("[") == deep
    assert len(parse("[" + "1," * (MOST - 2) + "1]")) == MOST - 1
    assert parse("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: &c {x: 1}, y: *a}") == {
        "a": ["1", "2"],
        "b": [["1", "2"], ["1", "2"]],
        "c": {"x": "1", "y": ["1", "2"]},
    }


def test_a_line_of_a_list_is_answered_at_once(tmp_path):
    from clip_ood.data.path_lists import from_list

    (tmp_path / "x.txt").write_text(("a" + " " * 30_000 + "x\n") * 2)
    with pytest.raises(ConfigError, match=re.escape('line 1: expected "relative/path label"')) as error:
        from_list("x", tmp_path / "x.txt", tmp_path, False, None)
    assert len(str(error.value)) < 500
