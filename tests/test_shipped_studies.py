"""Every shipped study up to its runs' configs, on folders that are there and empty."""

from __future__ import annotations

import re

import pytest
from studies import load_study

from clip_ood.config.loading import CONFIGS
from clip_ood.errors import ConfigError
from clip_ood.experiments.study.plan import read_study

HERE = CONFIGS / "studies"
STUDIES = [path.name for path in sorted(HERE.glob("*.yaml"))]
IMAGENET = ["imagenet/train", "imagenet/val", "dtd/images", "NINCO/NINCO_OOD_classes", "imagenet-o"]
IMAGENET += [f"{name}/images" for name in ("iNaturalist", "SUN", "Places")]
DEMO = ["id", "ood/stamps", "ood/symbols", "ood/digits"]


@pytest.fixture
def project(tmp_path, demo_encoders):
    """A working directory with the folders of ImageNet, of the demo's images, of its encoders and of WordNet."""
    for folder in IMAGENET:
        (tmp_path / "sets" / folder).mkdir(parents=True)
    for folder in DEMO:
        (tmp_path / "data" / "demo" / folder).mkdir(parents=True)
    (tmp_path / "data" / "wordnet").mkdir()
    for name in ("index.noun", "index.adj"):
        (tmp_path / "data" / "wordnet" / name).touch()
    return tmp_path


@pytest.mark.parametrize("name", STUDIES)
def test_its_runs_are_complete_configs_of_their_own(project, name):
    root = [] if name.endswith("_demo.yaml") else [f"--data.root={project}/sets"]
    plan = (read_study if name == "reproduce.yaml" else load_study)(name, root)  # whose encoders and sets are not here
    assert {point.run for point in plan.points} == plan.runs.keys() and len(plan.points) >= len(plan.study.lines)
    assert len({str(config.model_dump(exclude={"name"})) for config in plan.runs.values()}) == len(plan.runs)
    assert len({(tuple(point.labels.items()), point.line) for point in plan.points}) == len(plan.points)
    assert all(config.name == run and "/" not in run for run, config in plan.runs.items())


@pytest.mark.parametrize("name", STUDIES)
def test_its_header_says_purpose_command_and_hardware(name):
    header = re.match(r"(#.*\n)+", (HERE / name).read_text()).group()
    assert re.match(r"# \S.*[.?]\n# Command:  python study\.py --config \S+", header)
    assert f"--config {name}" in header and re.search(r"\n# Hardware: \S", header)


def test_every_study_has_a_demo():
    names = {name.removesuffix(".yaml") for name in STUDIES}
    assert {name for name in names if not name.endswith("_demo")} == {
        name.removesuffix("_demo") for name in names if name.endswith("_demo")
    }


def test_missing_images_are_named_before_anything_runs(project):
    with pytest.raises(ConfigError, match=r"Image set id\.train: ImageNet-1k is not under"):
        load_study("few_shot.yaml", ["--data.root=/nowhere"])


def test_image_features_are_extracted_once_for_prompts_thresholds_and_few_shots(project):
    for name in ("prompts_demo.yaml", "confidence_demo.yaml", "few_shot_demo.yaml"):
        runs = load_study(name).runs.values()
        of_images = {str((c.backbone.model_dump(exclude={"text"}), c.data.id, c.data.ood)) for c in runs}
        assert len(of_images) == 1
