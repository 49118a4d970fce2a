"""Every shipped attack up to its experiments' configs, on folders that are there and empty."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clip_ood.adversarial import Attack, Budget
from clip_ood.config.loading import CONFIGS
from clip_ood.experiments.attack.craft import variants
from clip_ood.experiments.attack.plan import load_attack

HERE = CONFIGS / "attacks"
ATTACKS = [path.name for path in sorted(HERE.glob("*.yaml"))]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with the folders of the demo, of its encoder, and of CIFAR."""
    folders = [f"demo/{name}" for name in ("id", "ood/stamps", "ood/symbols", "ood/digits")]
    for folder in (*folders, "demo_encoder", "demo_encoder_lite1", "cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for encoder in ("demo_encoder", "demo_encoder_lite1"):
        (tmp_path / "data" / encoder / "open_clip_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(name):
    return load_attack(name, [] if "demo" in name else ["--data.root=data"])


@pytest.mark.parametrize("name", ATTACKS)
def test_it_loads_with_its_experiment_and_is_dumped_whole(project, name):
    plan = loaded(name)
    (project / "again.yaml").write_text(plan.dump())
    again = load_attack("again.yaml")
    assert again.config == plan.config and again.dump() == plan.dump()
    assert variants(again.attack) == variants(plan.attack) and plan.attack.name == Path(name).stem
    assert plan.attack.ood in plan.config.data.ood


@pytest.mark.parametrize("name", ATTACKS)
def test_its_header_says_purpose_command_expectation_and_hardware(name):
    header = re.match(r"(#.*\n)+", (HERE / name).read_text()).group()
    assert re.match(rf"# \S.*\.\n# Command:  python attack\.py --config {name}", header)
    assert re.search(r"\n# Expect:   \S", header) and re.search(r"\n# Hardware: \S", header)


def test_the_large_one_has_the_settings_of_the_paper(project):
    plan = loaded("adversarial_vitg_cifar100.yaml")
    assert variants(plan.attack)["after"] == (Attack(250, 1e-3, 5e3, 1e-3), 1000)
    assert (plan.attack.batch_size, plan.attack.target, plan.attack.budget) == (16, "train", None)
    assert plan.config.backbone.model == "ViT-bigG-14"


def test_the_demo_of_pgd_stays_within_eight_grey_levels(project):
    attack, _ = variants(loaded("adversarial_pgd_demo.yaml").attack)["after"]
    assert attack.sign and attack.budget == Budget("linf", 0.0314) and pytest.approx(8, abs=0.01) == 255 * 0.0314


def test_the_demo_has_pairs_and_values_enough(project):
    attack = loaded("adversarial_demo.yaml").attack
    assert attack.pairs >= 32 and attack.curve.pairs >= 8 and len(attack.curve.smoothness) >= 3
