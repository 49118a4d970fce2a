"""Values in studies and attacks follow the schema of the experiments that they change."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from config_values import BASE
from studies import load_study

from clip_ood.errors import ConfigError
from clip_ood.experiments.attack.plan import load_attack

pytestmark = pytest.mark.usefixtures("demo_encoders", "unchecked_folders")

STUDY = """
config: base.yaml
shows: table
changes: {name: 010, data.root: 2023_07, data.id: {images: 2024-01-05, class_names: [yes, no]}, trainer.devices: 010}
axes:
  rate: {method.*.lr: [1e-3, 0.5]}
  names:
    yes: {data.ood: {010: 12:30}}
    no: {data.negative_words: null, evaluation.bank_per_class: ~}
lines:
  1.10: {detector: knn, changes: {method: {linear_probe: {weight_decay: 1e-2}}}}
  MSP: {detector: {name: msp, as: 010}, only: {rate: 1e-3}}
"""


@pytest.fixture
def study():
    Path("base.yaml").write_text(yaml.safe_dump(BASE | {"method": {"linear_probe": {}}}))
    Path("study.yaml").write_text(STUDY)
    return "study.yaml"


def test_a_studys_changes_follow_the_experiments_schema(study):
    plan = load_study(study, ["--data.prompts=a {} # 2", "--method.*.epochs=010", "--changes.data.splits.val=1e-1"])
    assert {point.line: point.detector for point in plan.points} == {"1.10": "knn", "MSP": "010"}
    assert {(point.labels["rate"], point.labels["names"]) for point in plan.points} == {
        (rate, name) for rate in ("1e-3", "0.5") for name in ("yes", "no")
    }
    runs = plan.runs
    assert set(runs) == {
        "1e-3--yes--1.10",
        "1e-3--no--1.10",
        "0.5--yes--1.10",
        "0.5--no--1.10",
        "1e-3--yes--msp",
        "1e-3--no--msp",
    }
    first = runs["1e-3--yes--1.10"]
    assert (first.data.root, first.data.id.images.folder) == (Path("2023_07"), Path("2024-01-05"))
    assert (first.data.id.class_names, first.data.prompts) == (["yes", "no"], ["a {} # 2"])
    assert first.data.ood["010"].folder == Path("12:30") and first.trainer["devices"] == 8
    probe = first.method.linear_probe
    assert (probe.lr, probe.weight_decay, probe.epochs, first.data.splits.val) == (0.001, 0.01, 10, 0.1)


def test_two_lines_of_a_study_never_share_a_folder_by_accident(study):
    Path(study).write_text(
        "config: base.yaml\nshows: table\nlines:\n  наш: {detector: knn, changes: {seed: 1}}\n  ваш: {detector: knn, changes: {seed: 2}}\n"
    )
    with pytest.raises(ConfigError, match=r"lines\.ваш: the folder of its run would be .* as that of another one"):
        load_study(study)


ATTACK = """
config: base.yaml
changes: {data.id: 2024-01-05, data.ood: {010: 12:30}, backbone.label: 1.10, trainer: {devices: 010}}
ood: 010
steps: 010
lr: 1e-3
curve: {smoothness: 5}
transfer: {1: other.yaml}
"""


def test_an_attacks_changes_follow_the_experiments_schema():
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    Path("other.yaml").write_text("library: timm\nmodel: resnet18\nlabel: 010\n")
    Path("attack.yaml").write_text(ATTACK)
    plan = load_attack("attack.yaml", ["--name=keep #2", "--data.root=2023_07", "--transfer.two=other.yaml"])
    assert (plan.attack.name, plan.attack.ood, plan.attack.steps, plan.attack.lr) == ("keep #2", "010", 10, 0.001)
    assert plan.attack.curve.smoothness == [5.0] and plan.attack.transfer == {"1": "other.yaml", "two": "other.yaml"}
    config = plan.config
    assert (config.data.root, config.data.id.images.folder) == (Path("2023_07"), Path("2024-01-05"))
    assert (config.backbone.label, config.trainer, config.data.ood["010"].folder) == (
        "1.10",
        {"devices": 8},
        Path("12:30"),
    )
    Path("again.yaml").write_text(plan.dump())
    again = load_attack("again.yaml")
    assert again.config == config and again.dump() == plan.dump()
