"""What an unfinished run is gone on with: the same settings and images, or one error that names what differs, nothing written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_clip
import yaml
from lightning.pytorch import Trainer

import clip_ood.experiments.seeds
import eval as evaluation
import study
import train
from clip_ood.config.loading import validate
from clip_ood.config.resuming import differences, settled
from clip_ood.errors import ConfigError

PROJECT = Path(__file__).parents[1]
PROBE = {"linear_probe": {"epochs": 4, "batch_size": 16, "lr": 0.01}}


@pytest.fixture(scope="module")
def whole(root):
    train.main(["--config", tiny_clip.config(root, "whole", PROBE)])
    return root / "runs" / "whole"


def stopped(config, *options, at="test", after=0):
    """A run that is stopped in the Trainer's loop `at`, when it comes there after so many times."""
    original, times = getattr(Trainer, at), []

    def stop(self, *arguments, **keywords):
        times.append(self)
        if len(times) > after:
            raise KeyboardInterrupt
        return original(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, at, stop)
        train.main(["--config", config, *options])


@pytest.fixture(scope="module")
def unfinished(root):
    """A probe of seed 42, trained and not yet evaluated."""
    config = tiny_clip.config(root, "unfinished", PROBE)
    stopped(config)
    return root / "runs" / "unfinished"


@pytest.fixture
def copy(root, unfinished, request):
    """The unfinished run once more, under the test's own name, and its config."""
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    shutil.copytree(unfinished, root / "runs" / name)
    return root / "runs" / name, tiny_clip.config(root, name, PROBE)


def content(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def refuses(folder, work, *messages):
    """`work` ends in one error with all of these messages, and no file in the folder is touched."""
    before = content(folder)
    with pytest.raises(ConfigError) as error:
        work()
    assert all(message in str(error.value) for message in messages), error.value
    assert content(folder) == before


# Settings


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--seed=7"], ["seed: 42 → 7"]),
        (["--seeds", "42", "43"], ["seeds: [] → [42, 43]"]),
        (["--method={finetune: {}}"], ["method: linear_probe → finetune"]),
        (["--method.linear_probe.lr=0.5"], ["method.linear_probe.lr: 0.01 → 0.5"]),
        (["--data.splits.test=0.5"], ["data.splits.test: 0.3 → 0.5"]),
        (["--data.ood.more={corruption: gaussian_blur, severity: 1}"], ["data.ood.more: null → {"]),
        (["--data.ood={near: near}"], ['data.ood.far: {"folder": "far"} → null', 'data.ood.lone: {"folder": "lone"}']),
        (["--data.batch_size=5"], ["data.batch_size: 8 → 5"]),
        (["--detectors=[knn]"], ['detectors: null → ["knn"]']),
        (["--evaluation.bank_per_class=2"], ["evaluation.bank_per_class: null → 2"]),
        (["--trainer.precision=bf16-mixed"], ["trainer.precision: null → bf16-mixed"]),
        (["--trainer.gradient_clip_val=1", "--seed=7"], ["seed: 42 → 7", "trainer.gradient_clip_val: null → 1"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_other_settings_are_named_and_nothing_is_written(root, unfinished, options, messages):
    name = str(root / "unfinished.yaml")
    way_out = ("was begun with other settings", "--overwrite", "another --name")
    refuses(unfinished, lambda: train.main(["--config", name, "--resume", *options]), *messages, *way_out)


def test_fine_tuning_resumed_without_its_method_leaves_its_config_alone(root):
    method = {"epochs": 2, "warmup_epochs": 1, "batch_size": 16}
    config = tiny_clip.config(root, "tuned", PROBE)
    stopped(config, f"--method={{finetune: {yaml.safe_dump(method, default_flow_style=True).strip()}}}")
    run = root / "runs" / "tuned"
    refuses(run, lambda: train.main(["--config", config, "--resume"]), "method: finetune → linear_probe")


def test_what_cannot_change_results_may_change(root, whole, copy):
    run, config = copy
    others = ["--trainer.devices=auto", "--trainer.strategy=auto", "--data.num_workers=1", "--evaluation.report=true"]
    store = f"--features_root={root}/other_store"
    train.main(["--config", config, "--resume", *others, "--trainer.enable_model_summary=false", store])
    assert tiny_clip.results(run)["rows"] == tiny_clip.results(whole)["rows"]
    assert (run / "report.html").is_file() and "devices: auto" in (run / "config.yaml").read_text()


def test_a_run_that_was_moved_or_renamed_goes_on(root, whole, copy):
    run, config = copy
    (root / "elsewhere").mkdir()
    run.rename(root / "elsewhere" / "renamed")
    train.main(["--config", config, "--resume", f"--runs_root={root}/elsewhere", "--name=renamed"])
    assert tiny_clip.results(root / "elsewhere" / "renamed")["rows"] == tiny_clip.results(whole)["rows"]


def edited(run, change):
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_keys_that_an_older_config_lacks_count_with_their_defaults(root, whole, copy):
    run, config = copy

    def older(config):
        del config["seeds"], config["evaluation"]["accept"], config["data"]["max_unreadable"]
        (run / "images.json").unlink()

    edited(run, older)
    lacking = run / "config.yaml"
    refuses(run, lambda: train.main(["--config", config, "--resume", "--evaluation.accept=0.9"]), "accept: 0.95 → 0.9")
    assert "accept" not in lacking.read_text()
    train.main(["--config", config, "--resume"])
    assert tiny_clip.results(run)["rows"] == tiny_clip.results(whole)["rows"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["data"].update(shuffle=True), "There is no config key data.shuffle"),
        (lambda config: config.update(seed="many"), "seed: "),
        (lambda config: config.clear(), "The config key data is missing"),
    ],
)
def test_a_config_of_another_version_or_damaged_is_named(root, copy, change, message):
    run, config = copy
    edited(run, change)
    told = f"{run / 'config.yaml'}, which the run was begun with, has keys or values that are none any more"
    refuses(run, lambda: train.main(["--config", config, "--resume"]), told, message, "--overwrite")


def test_a_checkpoint_without_its_config_is_not_taken_up(root, copy):
    run, config = copy
    (run / "config.yaml").unlink()
    refuses(run, lambda: train.main(["--config", config]), "last.ckpt was trained by a run whose config.yaml is gone")


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_every_process_refuses(root, unfinished, rank, monkeypatch):
    monkeypatch.setenv(rank, "1")
    resumed = ["--config", str(root / "unfinished.yaml"), "--resume", "--seed=7"]
    refuses(unfinished, lambda: train.main(resumed), "seed: 42 → 7")


def test_the_answer_comes_before_anything_heavy_is_imported(root, unfinished):
    code = (
        "import sys, train\n"
        "try: train.main(sys.argv[1:])\n"
        "except ValueError as error: print(error, {'torch', 'lightning', 'open_clip', 'timm'} & sys.modules.keys())"
    )
    arguments = ["--config", str(root / "unfinished.yaml"), "--resume", "--seed=7"]
    told = subprocess.run([sys.executable, "-c", code, *arguments], cwd=PROJECT, capture_output=True, text=True)
    assert "seed: 42 → 7" in told.stdout and told.stdout.endswith("set()\n"), told.stdout + told.stderr


def test_differences_count_defaults_and_name_what_is_on_one_side():
    base = {"name": "x", "data": {"id": "photos"}, "backbone": {"library": "timm", "model": "test_vit"}}
    was = validate(base | {"method": {"linear_probe": {}}, "seeds": [1, 2], "trainer": {"devices": 1}})
    method = {"linear_probe": {"epochs": 100, "sweep": {"lr": [0.1]}}}
    now = validate(
        base
        | {
            "name": "y",
            "method": method,
            "seeds": [3, 2, 1],
            "trainer": {"devices": 8, "log_every_n_steps": 5, "deterministic": True},
        }
    )
    assert differences(was, now) == [
        'method.linear_probe.sweep: null → {"lr": [0.1]}',
        "trainer.deterministic: null → true",
    ]
    assert differences(now, was)[0] == "seeds: [3, 2, 1] → [1, 2]"
    assert settled(now)["trainer"] == {"deterministic": True} and "name" not in settled(now)


# Seeds


def test_seeds_may_be_added_and_none_left_out(root):
    config, run = tiny_clip.config(root, "added", PROBE), root / "runs" / "added"
    stopped(config, "--seeds", "1", "2", after=1)
    assert (run / "seed-1" / "results.json").is_file() and not (run / "seed-2" / "results.json").exists()
    refuses(run, lambda: train.main(["--config", config, "--resume", "--seeds", "2", "3"]), "seeds: [1, 2] → [2, 3]")
    refuses(run, lambda: train.main(["--config", config, "--resume"]), "seeds: [1, 2] → []")
    first = (run / "seed-1" / "results.json").stat().st_mtime_ns
    train.main(["--config", config, "--resume", "--seeds", "1", "2", "3"])
    assert tiny_clip.results(run)["seeds"] == [1, 2, 3]
    assert (run / "seed-1" / "results.json").stat().st_mtime_ns == first


def test_an_error_in_a_seed_that_has_trained_leaves_an_unfinished_run(root, monkeypatch):
    config, run = tiny_clip.config(root, "failed", PROBE), root / "runs" / "failed"

    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Trainer, "test", full)
        train.main(["--config", config, "--seeds", "1", "2"])
    other = ["--config", config, "--seeds", "1", "2", "--method.linear_probe.lr=0.5"]
    refuses(run, lambda: train.main(other), "holds an unfinished run")
    refuses(run, lambda: train.main([*other, "--resume"]), "method.linear_probe.lr: 0.01 → 0.5")


def test_a_checkpoint_of_other_settings_in_a_seeds_folder_is_not_taken_up(root, unfinished):
    run = root / "runs" / "mixed"
    shutil.copytree(unfinished, run / "seed-42")
    config = tiny_clip.config(root, "mixed", {"linear_probe": {"epochs": 8, "batch_size": 16}})
    refuses(run / "seed-42", lambda: train.main(["--config", config, "--seeds", "42", "43"]), "lr: 0.01 → 0.001")


# Images


@pytest.fixture
def more_cats(root):
    """Cats that come in the course of the test."""
    place, added = root / "data" / "id" / "cat", [f"extra_{number}.png" for number in range(9)]
    yield lambda: [shutil.copy(place / "0.png", place / name) for name in added]
    for name in added:
        (place / name).unlink(missing_ok=True)


def test_a_run_does_not_go_on_with_other_images(root, whole, copy, more_cats):
    run, config = copy
    more_cats()
    resumed = ["--config", config, "--resume"]
    refuses(run, lambda: train.main(resumed), "id_test had 14 images and has 17", "train had 32", "Put the images back")
    for path in (root / "data" / "id" / "cat").glob("extra_*"):
        path.unlink()
    train.main(resumed)
    assert tiny_clip.results(run)["rows"] == tiny_clip.results(whole)["rows"]


def test_another_image_of_as_many_is_other_images(root, copy):
    run, config = copy
    place = root / "data" / "near"
    (place / "0.png").rename(place / "new.png")
    try:
        refuses(run, lambda: train.main(["--config", config, "--resume"]), "near had 9 images and has 9")
    finally:
        (place / "new.png").rename(place / "0.png")


def test_the_mean_over_seeds_is_over_the_same_images(root, more_cats):
    config, run = tiny_clip.config(root, "grown", {"zero_shot": {}}), root / "runs" / "grown"
    real = clip_ood.experiments.seeds.run
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def second(config, *rest):
            if config.seed == 2:
                raise KeyboardInterrupt
            return real(config, *rest)

        patch.setattr(clip_ood.experiments.seeds, "run", second)
        evaluation.main(["--config", config, "--seeds", "1", "2"])
    more_cats()
    resumed = ["--config", config, "--resume", "--seeds", "1", "2"]
    refuses(run, lambda: evaluation.main(resumed), "seed-1 was begun with other images", "id_test had 14")


# Heads that are evaluated again


def test_a_head_is_evaluated_on_the_division_that_it_was_trained_on(root, whole, more_cats):
    told = "divided the images by seed 42", "train it with the seed and data.splits of this run, or keep its own"
    refuses(whole, lambda: evaluation.main(["--run", str(whole), "--seed=7"]), *told)
    refuses(whole, lambda: evaluation.main(["--run", str(whole), "--data.splits.test=0.5"]), *told)
    shutil.copytree(root / "data" / "id", root / "data" / "other_id")
    more_cats()
    refuses(whole, lambda: evaluation.main(["--run", str(whole), "--name=again"]), "train had 32 images and has 38")
    evaluation.main(["--run", str(whole), "--data.id=other_id", "--name=other"])  # the head on images of another place
    assert tiny_clip.results(root / "runs" / "other")["rows"] == tiny_clip.results(whole)["rows"]


# Studies


def written(root, name, **keys):
    keys = {"shows": "table", "config": tiny_clip.config(root, "base", PROBE), "studies_root": f"{root}/studies"} | keys
    (root / f"{name}.yaml").write_text(yaml.safe_dump(keys, sort_keys=False))
    return str(root / f"{name}.yaml")


LINES = {"probe": {"detector": "msp"}}


def test_a_study_goes_on_on_other_devices_and_under_no_other_settings(root):
    name, folder = written(root, "devices", lines=LINES), root / "studies" / "devices"
    study.main(["--config", name])
    before = content(folder / "probe")
    study.main(["--config", name, "--trainer.devices=auto", "--data.num_workers=1"])
    assert content(folder / "probe") == before
    refuses(
        folder, lambda: study.main(["--config", name, "--seed=7"]), "probe was begun with other settings (seed: 42 → 7)"
    )
    study.main(["--config", name, "--evaluation.report=true"])
    assert (folder / "probe" / "report.html").is_file()


def test_an_unfinished_run_of_a_study_has_the_same_scores_in_every_seed(root, monkeypatch):
    keys = {"changes": {"seeds": [1, 2]}}
    name, folder, real = (
        written(root, "lines", lines=LINES, **keys),
        root / "studies" / "lines",
        clip_ood.experiments.seeds.run,
    )

    def second(config, *rest):
        if config.seed == 2:
            raise KeyboardInterrupt
        return real(config, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(clip_ood.experiments.seeds, "run", second)
        study.main(["--config", name])
    written(root, "lines", lines=LINES | {"energy": {"detector": "energy"}}, **keys)
    study.main(["--config", name])
    for seed in (1, 2):
        rows = tiny_clip.results(folder / "probe" / f"seed-{seed}")["rows"]
        assert {row["detector"] for row in rows} == {"msp", "energy"}
    assert tiny_clip.checkpoint(folder / "probe" / "seed-1")["global_step"] == 8
    study.main(["--config", name, "--seeds", "1", "2", "3"])
    assert tiny_clip.results(folder / "probe")["seeds"] == [1, 2, 3]
