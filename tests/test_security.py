"""What SECURITY.md says, held: data of strangers is never run, and the limits are those that it names."""

from __future__ import annotations

import ast
import pickle
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from clip_ood.backbones.checkpoint_file import read_tensors
from clip_ood.config import yaml_text
from clip_ood.config.yaml_text import parse
from clip_ood.data import allowance, torchvision_sets, unpacked
from clip_ood.data.readers import on_disk
from clip_ood.errors import ConfigError
from clip_ood.experiments.checkpoints import check_checkpoint
from clip_ood.files import text_files
from clip_ood.files.pictures import LONGEST, _formats
from clip_ood.report.page import _environment

PROJECT = Path(__file__).parents[1]
PAGE = (PROJECT / "SECURITY.md").read_text(encoding="utf-8")
FOLDERS = [
    "adversarial",
    "callbacks",
    "clip_ood",
    "configs",
    "datamodules",
    "demo",
    "experiments",
    "lightning_modules",
    "reports",
    "studies",
]
GIB, MIB = 2**30, 2**20
LIMITS = {
    f"above {2 * Image.MAX_IMAGE_PIXELS:,} pixels": True,
    f"{on_disk.LARGEST // GIB} GiB, or {LONGEST} times longer than wide": True,
    f"texts above {text_files.LONGEST // MIB} MiB": True,
    f"above {text_files.LONGEST_LIST // GIB} GiB and names above {text_files.LONGEST_NAME:,} characters": True,
    f"at most {allowance.RATIO} times its size (or {allowance.SLACK // MIB} MiB), {allowance.MOST_MEMBERS:,} members": True,
    f"times its size (or {allowance.SLACK // MIB} MiB), {unpacked.LIMIT // GIB} GiB, and what the disk": True,
    f"nested at most {yaml_text.DEEPEST} deep, of at most {yaml_text.MOST:,}": True,
}


@pytest.mark.parametrize("limit", LIMITS)
def test_the_page_names_the_limits_that_hold(limit):
    assert limit in " ".join(PAGE.split())


def test_the_page_counts_the_formats_of_images():
    assert (
        len({*_formats()} - {"HEIF"}) <= 11 and "eleven formats by their content, twelve with the extra `heif`" in PAGE
    )


def test_the_page_invents_no_address():
    assert not re.search(r"[\w.]+@[\w.]+\.\w+|https?://", PAGE)


# No source runs what it reads


@cache
def calls():
    """Every call in the sources: place, dotted name, and its keywords as written."""
    found = []
    for path in [*PROJECT.glob("*.py"), *(path for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
                found.append((f"{path.relative_to(PROJECT)}:{node.lineno}", ast.unparse(node.func), keywords))
    return found


def named(pattern):
    return [(place, name, keywords) for place, name, keywords in calls() if re.fullmatch(pattern, name)]


def test_checkpoints_are_read_as_data_alone():
    found = named(r"torch\.load")
    assert found and all(keywords.get("weights_only") == "True" for _, _, keywords in found)
    lightning = named(r"trainer\.(fit|test|validate|predict)")
    assert all(keywords.get("weights_only") == "True" for _, _, keywords in lightning if "ckpt_path" in keywords)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(pickle|dill|marshal|shelve|joblib|cloudpickle)\.\w*(load|loads|open)",
        r"eval|exec|os\.(system|popen)|compile",
        r"yaml\.(load|unsafe_load|full_load|load_all)",
        r".*\.extract(all)?",
    ],
)
def test_no_source_calls_what_runs_or_writes_what_it_reads(pattern):
    assert named(pattern) == []


def test_transformers_reads_only_what_was_checked_and_written_here():
    """Each call is given a folder of checked files or no folder at all, asks no host, and runs no code that lies beside a model."""
    found = named(r".*from_pretrained")
    assert len(found) == 3
    for _, _, keywords in found:
        assert keywords.get("trust_remote_code") == "False" and keywords.get("local_files_only") == "True"


def test_arrays_are_read_without_objects():
    assert all(keywords.get("allow_pickle") == "False" for _, _, keywords in named(r"(np|numpy)\.load"))


def test_no_command_goes_through_a_shell():
    assert not [place for place, _, keywords in calls() if keywords.get("shell") == "True"]


# And nothing does


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path):
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("read", [read_tensors, check_checkpoint])
@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_in_a_checkpoint_is_refused(read, plain, tmp_path, marker):
    content = {"state_dict": {"weight": torch.zeros(2)}, "epoch": 0, "global_step": 0, "more": Payload(marker)}
    if plain:
        (tmp_path / "x.pt").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises((pickle.UnpicklingError, ConfigError)):
        read(tmp_path / "x.pt")


def test_pickles_in_place_of_cifar_are_refused(tmp_path, marker):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ConfigError, match="could not read CIFAR10"):
        torchvision_sets.load("x", "CIFAR10", "test", tmp_path, download=False)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system", "!ours x"])
def test_a_config_makes_no_objects(tag, marker):
    with pytest.raises(Exception, match="could not determine a constructor"):
        parse(f"a: {tag.format(marker)}")


def test_a_page_escapes_every_value():
    environment = _environment()
    assert environment.autoescape is True
    text = environment.from_string("{{ name }}").render(name="<script>alert(1)</script>")
    assert text == "&lt;script&gt;alert(1)&lt;/script&gt;"
    for path in (PROJECT / "reports" / "templates").glob("*.j2"):
        content = path.read_text(encoding="utf-8")
        assert "<script" not in content and not re.search(r"(src|href)=[\"']?https?:", content), path
        assert not re.search(r"autoescape\s+false", content), path
