"""attack.py --plan: what an attack would find, make and stop for; what it reckons is what an attack then writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_clip
import yaml
from test_attack import PROBE, written
from test_forecast import DISK, planned, root, row, size_of, tree

import attack
from clip_ood.experiments.attack.plan import load_attack
from clip_ood.experiments.forecast import space
from clip_ood.experiments.forecast.encoders import Encoder
from clip_ood.experiments.forecast.making import making_of

CURVE = {"pairs": 3, "smoothness": [0.0, 10.0]}  # of which 10 is the attack's own
__all__ = ["root"]  # a fixture


def words(out):
    """Everything that is printed, with single blanks: tables fold what is too wide."""
    return " ".join(out.split())


def test_all_is_told_and_nothing_is_written(root, capsys):
    config = written(root, "small", curve=CURVE, defences={"jpeg": 1})
    before = tree(root)
    status, out = planned(attack.main, capsys, "--config", config, "--trainer.devices=2")
    assert status == 0 and tree(root) == before
    assert row(out, "ood.near") == ["ood.near", "there", "9", "9"] and out.count("ood.near") == 1
    assert row(out, "after") == ["after", "6", "6", "2", "30"]  # images, to be made, batches of 4, steps
    assert row(out, "smoothness_0") == ["smoothness_0", "3", "3", "1", "30"]
    assert "a process makes 7 images at most, in 2 batches of up to 4: 60 steps, each a forward" in out
    saved = 2 * 6 + 3 + 5 * 3 + 2 * 6  # before and after, the curve's, its five steps, both through jpeg
    assert f"32 16 {63 + 14 + saved} {63 + 14 + saved}" in words(out)  # 63 images, 14 of test through jpeg
    assert "Processes: 2 (trainer.devices=2, trainer.num_nodes=1)" in out
    assert out.splitlines()[-1] == "The attack would start."


def test_the_encoders_that_score_as_well_are_runs_of_their_own(root, capsys):
    other = root / "other.yaml"
    other.write_text(yaml.safe_dump({"model": f"local-dir:{root}/clip", "precision": "fp32"}))
    config = written(root, "small", transfer={"second": str(other)}, changes={"backbone.precision": "bf16"})
    status, out = planned(attack.main, capsys, "--config", config)
    assert status == 0 and [line.split()[0] for line in out.splitlines() if " 32 0 14 32" in words(f" {line}")] == [
        "clean",
        "scored",
        "transfer_second",
    ]
    assert f"32 16 {63 + 12} {63 + 12}" in words(out) and f"32 16 {46 + 12} {46 + 12}" in words(out)


@pytest.mark.slow
def test_what_is_reckoned_is_what_an_attack_writes(root):
    config = written(root, "small", curve=CURVE, defences={"jpeg": 1})
    plan, folder = load_attack(config), root / "attacks" / "small"
    attack.main(["--config", config])
    saved = list((folder / "images").glob("*/*.png"))
    assert len(saved) == 42
    *pictures, kept = _writings(plan, folder, begun=False)
    assert {each.folder for each in pictures} == {folder / "images"}
    assert 0.3 < sum(each.stat().st_size for each in saved) / sum(each.size for each in pictures) <= 1
    assert size_of(folder / "parts") <= kept.size < size_of(folder / "parts") + 3_000
    assert making_of(plan, folder, 1, begun=True).pending == []
    assert making_of(plan, folder, 1, begun=False).pending != []
    shutil.rmtree(folder / "parts")
    assert len(making_of(plan, folder, 1, begun=True).pending) == 3


def _writings(plan, folder, begun):
    from clip_ood.experiments.forecast.making import writings_of

    making = making_of(plan, folder, 1, begun)
    return list(writings_of(plan, folder, making, Encoder(plan.config).shape.width))


@pytest.mark.slow
def test_an_attack_that_goes_on_is_looked_at(root, capsys):
    config = written(root, "small")
    attack.main(["--config", config])
    run = root / "attacks" / "small"
    (run / "results.json").unlink()
    (run / "parts" / "after-000004.safetensors").unlink()
    status, out = planned(attack.main, capsys, "--config", config)
    assert status == 1 and "holds an unfinished run. Add --resume" in out
    status, out = planned(attack.main, capsys, "--config", config, "--resume")
    assert status == 0 and row(out, "after") == ["after", "6", "2", "1", "30"]
    assert row(out, "clean")[:2] == ["clean", "32"] and "scored" not in out.replace("scores", "")  # it has finished
    assert not any("checkpoints" in line for line in out.splitlines())
    status, out = planned(attack.main, capsys, "--config", config, "--overwrite")
    assert status == 0 and row(out, "after") == ["after", "6", "6", "2", "30"]
    status, out = planned(attack.main, capsys, "--config", config, "--resume", "--steps=3", "--seed=7")
    assert status == 1 and "other settings (steps: 30 → 3; seed: 42 → 7)" in out
    (root / "data/near/0.png").unlink()
    status, out = planned(attack.main, capsys, "--config", config, "--resume")
    assert status == 1 and "clean was begun with other images" in out


@pytest.mark.parametrize(
    "keys, told",
    [
        ({"pairs": 99}, "pairs: 99 images are to be attacked, and the OOD set near has 9 images"),
        ({"score": "msp", "method": {"zero_shot": {}}}, "score: msp "),
        ({"transfer": {"second": "backbones/nowhere.yaml"}}, "There is no config"),
    ],
)
def test_what_would_stop_it_is_told(root, capsys, keys, told):
    config = written(root, "wrong", **keys)
    if "transfer" in keys:  # a wrong key ends any command at once
        with pytest.raises(ValueError, match=told):
            attack.main(["--config", config, "--plan"])
        return
    status, out = planned(attack.main, capsys, "--config", config)
    assert status == 1 and out.splitlines()[-1].startswith(f"The attack would stop: {told}")


def test_texts_of_no_classes_are_told_by_the_plan_and_before_the_run_begins(root, capsys):
    for path in (root / "data/id").glob("*/*"):
        path.rename(root / "data/id" / f"{path.parent.name}{path.name}")
    for path in (root / "data/id").glob("*/"):
        path.rmdir() if path.is_dir() else None
    config = written(root, "flat", method={"zero_shot": {}}, target="text")
    status, out = planned(attack.main, capsys, "--config", config)
    told = "target: text needs class names: name the classes (data.id.class_names), or take train"
    assert status == 1 and out.splitlines()[-1] == f"The attack would stop: {told}"
    with pytest.raises(ValueError, match="target: text needs class names"):
        attack.main(["--config", config])
    assert not (root / "attacks/flat/clean").exists()


def test_missing_images_a_missing_head_and_a_full_disk_are_all_told(root, capsys, monkeypatch):
    shutil.rmtree(root / "data/far")
    (root / "source").mkdir()
    base = yaml.safe_load(Path(tiny_clip.config(root, "source", PROBE)).read_text())
    (root / "source/config.yaml").write_text(yaml.safe_dump({"name": "source"} | base))
    content = {"name": "of_run", "config": str(root / "source"), "runs_root": f"{root}/attacks", "ood": "near"}
    (root / "of_run.yaml").write_text(yaml.safe_dump(content | {"pairs": 6, "steps": 3}))
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: DISK(10**9, 10**9 - 20_000, 20_000))
    status, out = planned(attack.main, capsys, "--config", root / "of_run.yaml")
    assert status == 1 and out.splitlines()[-1] == "The attack would stop, for the 3 reasons above."
    assert "Image set far: there is no folder" in out and "source holds no trained head" in out
    assert "has room for 20.0 kB" in out and f"{root}/attacks/of_run/images" in out


def test_an_encoder_that_cannot_be_attacked_is_told(root, capsys, monkeypatch):
    monkeypatch.setattr("clip_ood.adversarial.images._check_seen_again", _refuse)
    status, out = planned(attack.main, capsys, "--config", written(root, "odd"))
    assert status == 1 and out.splitlines()[-1] == "The attack would stop: no such encoder"


def _refuse(*_):
    from clip_ood.errors import UserError

    raise UserError("no such encoder")


def test_it_stands_in_the_help(capsys):
    with pytest.raises(SystemExit):
        attack.main(["--help"])
    assert "--plan" in capsys.readouterr().out
