"""Attacks on a tiny encoder from config to table: what is saved is what is scored, seeds, gallery, defences, other encoders."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cosine_similarity

import attack
import eval as evaluation
from clip_ood.adversarial import total_variation
from clip_ood.backbones.create import create_backbone
from clip_ood.callbacks.image_writer import Parts
from clip_ood.config.loading import load_config
from clip_ood.config.schema import BackboneConfig
from clip_ood.data.corruptions import Corruption
from clip_ood.experiments.attack.values import compare

pytestmark = pytest.mark.slow

PROBE = {"linear_probe": {"epochs": 2, "batch_size": 16}}
KEYS = {"ood": "near", "pairs": 6, "steps": 30, "lr": 0.02, "smoothness": 10.0, "batch_size": 4}


def written(root, name, method=PROBE, **keys):
    path = root / f"{name}_attack.yaml"
    experiment = tiny_clip.config(root, name, method)
    content = {"name": name, "config": experiment, "runs_root": f"{root}/attacks"} | KEYS | keys
    path.write_text(yaml.safe_dump(content))
    return str(path)


def conducted(root, name, *arguments, **keys):
    attack.main(["--config", written(root, name, **keys), *arguments])
    return root / "attacks" / name


def pngs(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def pixels(folder):
    images = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    assert all(image.dtype == np.uint8 and image.shape == (32, 32, 3) for image in images)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def whole(root):
    other = root / "other.yaml"
    other.write_text(yaml.safe_dump({"model": f"local-dir:{root}/clip", "precision": "bf16"}))
    return conducted(
        root,
        "whole",
        defences={"jpeg": 1, "gaussian_blur": 2},
        curve={"pairs": 3, "smoothness": [0.0, 10.0, 1e9]},
        transfer={"other": str(other)},
    )


def test_images_are_saved_as_the_encoder_sees_them(root, whole):
    before, after = pixels(whole / "images" / "before"), pixels(whole / "images" / "after")
    assert len(before) == len(after) == 6 and not torch.equal(before, after)
    backbone = create_backbone(BackboneConfig(model=f"local-dir:{root}/clip"))
    with (whole / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    mean, std = (torch.tensor(tiny_clip.PREPROCESSING[key])[:, None, None] for key in ("mean", "std"))
    for row, saved, moved in zip(pairs, before, after, strict=True):
        seen = backbone.transform(Image.open(root / "data" / "near" / row["ood_image"]))
        torch.testing.assert_close((saved - mean) / std, seen)  # nothing else was done to it
        again = backbone.transform(Image.open(whole / "images" / "after" / row["file"]))
        torch.testing.assert_close(again, (moved - mean) / std)
        target = backbone.transform(Image.open(root / "data" / "id" / row["target"]))
        gains = {"before": seen, "after": again}
        g = {name: backbone.encode_image(each[None]) for name, each in (gains | {"target": target}).items()}
        for name in gains:
            assert float(row[name]) == pytest.approx(cosine_similarity(g[name], g["target"]).item(), abs=1e-5)
        assert float(row["after"]) > float(row["before"])
        p = (moved - saved)[None]
        sizes = {"l2": p.norm(), "linf": p.abs().max(), "tv": total_variation(p)}
        assert {name: float(row[name]) for name in sizes} == pytest.approx(
            {n: v.item() for n, v in sizes.items()}, rel=1e-4
        )


def test_rows_are_those_of_the_scores(whole):
    rows = {(row["condition"], row["detector"]): row for row in tiny_clip.results(whole)["rows"]}
    conditions = {"", "targets out of the gallery", "scored by other", "through jpeg", "through gaussian_blur"}
    assert {condition for condition, _ in rows} == conditions | {"not rounded to 8 bits"}
    exact, rounded = ([row for (c, _), row in rows.items() if c == each] for each in ("not rounded to 8 bits", ""))
    assert [row["detector"] for row in exact] == [row["detector"] for row in rounded]
    assert [row["auroc_before"] for row in exact] == [row["auroc_before"] for row in rounded]
    assert [row["auroc_after"] for row in exact] == pytest.approx([row["auroc_after"] for row in rounded], abs=0.1)
    scores = pq.read_table(whole / "scored" / "scores.parquet").to_pylist()
    for detector in ("knn", "mcm", "msp", "rmd", "vim"):
        for condition, sets in (
            ("", ("id_test", "before", "after")),
            ("through jpeg", ("id_jpeg", "before_jpeg", "after_jpeg")),
        ):
            of = [[row[detector] for row in scores if row["set"] == name] for name in sets]
            expected = [np.mean([(i > o) + 0.5 * (i == o) for i in of[0] for o in each]) for each in of[1:]]
            found = rows[condition, detector]
            assert [found["auroc_before"], found["auroc_after"]] == pytest.approx(expected)
            assert (found["n_id"], found["n_ood"]) == (14, 6)
    with (whole / "attack.csv").open() as file:
        assert [row["detector"] for row in csv.DictReader(file)] == [detector for _, detector in rows]
    assert "| `knn` |" in (whole / "attack.md").read_text()


def test_success_counts_what_was_rejected_before():
    of_id = torch.arange(100.0)  # 95 % are 5 and above
    row = compare("", "knn", of_id, torch.tensor([0.0, 4.0, 5.0, 50.0]), torch.tensor([5.0, 4.5, 0.0, 60.0]))
    assert (row.rejected_before, row.success) == (0.5, 0.5)
    assert compare("", "knn", of_id, torch.tensor([9.0]), torch.tensor([9.0])).success is None


def test_targets_out_of_the_gallery_are_not_in_the_bank(whole):
    targets = (whole / "targets.txt").read_text().split()
    banks = [
        json.loads((whole / run / "results.json").read_text())["bank"]["images"] for run in ("scored", "out_of_gallery")
    ]
    assert len(set(targets)) == 6 and banks == [32, 32 - 6]
    inside, outside = (
        pq.read_table(whole / run / "scores.parquet").to_pylist() for run in ("scored", "out_of_gallery")
    )
    knn = [{r["path"]: r["knn"] for r in rows if r["set"] == "after"} for rows in (inside, outside)]
    assert all(knn[1][path] <= knn[0][path] for path in knn[0]) and knn[0] != knn[1]


def test_defended_sets_are_the_saved_ones_through_the_corruption(whole):
    for name in ("before", "after"):
        for path in sorted((whole / "images" / name).iterdir()):
            defended = Image.open(whole / "images" / f"{name}_jpeg" / path.name)
            again = Corruption("jpeg", 1)(Image.open(path), "any")
            assert defended.size == again.size and np.array_equal(defended, again)


def test_curves_pictures_and_tags(whole):
    steps = sorted(path.name for path in (whole / "images").glob("step_*"))
    assert steps == ["step_0001", "step_0003", "step_0006", "step_0012", "step_0021"]
    assert all(
        len(list((whole / "images" / name).iterdir())) == 3 for name in (*steps, "smoothness_0", "smoothness_1e+09")
    )
    before = pixels(whole / "images" / "before")[:3]
    variations = [total_variation(pixels(whole / "images" / name)[:3] - before) for name in ("smoothness_0", "after")]
    assert (variations[0] > variations[1]).all()  # more λ, smoother
    assert all(Image.open(whole / f"{name}.png").width > 600 for name in ("gallery", "curves"))
    events = EventAccumulator(str(whole)).Reload()
    assert {"attack/gallery", "attack/curves"} <= set(events.Tags()["images"])
    plain = next(row for row in tiny_clip.results(whole)["rows"] if (row["condition"], row["detector"]) == ("", "knn"))
    points = {point.step: point.value for point in events.Scalars("attack/plain/knn/auroc")}
    assert points == pytest.approx({0: plain["auroc_before"], 30: plain["auroc_after"]})


@pytest.mark.parametrize("logger", [False, "csv"])
def test_the_logger_of_its_experiment_is_that_of_an_attack(root, logger):
    run = conducted(root, f"logged_{logger}", f"--trainer.logger={str(logger).lower()}", "--pairs=2", "--steps=2")
    assert not list(run.rglob("events.out*")) and (run / "gallery.png").is_file()
    assert (run / "metrics.csv").exists() == (logger == "csv")
    if logger == "csv":
        lines = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
        plain = {row["detector"]: row for row in tiny_clip.results(run)["rows"] if row["condition"] == ""}
        assert [float(line["attack/plain/knn/auroc"]) for line in lines] == [
            plain["knn"]["auroc_before"],
            plain["knn"]["auroc_after"],
        ]


def test_the_same_seed_gives_the_same_images_and_another_does_not(root, whole):
    again = pngs(conducted(root, "again") / "images" / "after")
    assert again == pngs(whole / "images" / "after") and len(again) == 6
    other = conducted(root, "seeded", "--seed=7")
    assert set(pngs(other / "images" / "after").values()).isdisjoint(again.values())


def test_a_killed_attack_makes_what_is_missing(root, whole, monkeypatch):
    run = conducted(root, "killed", curve={"pairs": 3, "smoothness": [10.0]})
    made = pngs(run / "images")
    (run / "results.json").unlink()
    (run / "parts" / "after-000004.safetensors").unlink()
    (run / "images" / "after" / next(iter(pngs(run / "images" / "after")))).touch()
    from clip_ood.lightning_modules import pixel_attack

    perturbed = []
    real = pixel_attack.perturb
    monkeypatch.setattr(
        pixel_attack, "perturb", lambda loss, images, *rest: perturbed.append(len(images)) or real(loss, images, *rest)
    )
    with pytest.raises(ValueError, match="unfinished run"):
        conducted(root, "killed", curve={"pairs": 3, "smoothness": [10.0]})
    begun = (run / "config.yaml").read_bytes()
    others = ["--steps=31", "--seed=7", "--curve.pairs=2"]
    with pytest.raises(ValueError, match=r"other settings \(steps: 30 → 31; curve.pairs: 3 → 2; seed: 42 → 7\)\. Give"):
        conducted(root, "killed", "--resume", *others, curve={"pairs": 3, "smoothness": [10.0]})
    assert (run / "config.yaml").read_bytes() == begun
    free = ["--trainer.devices=auto", "--data.num_workers=1"]
    conducted(root, "killed", "--resume", *free, curve={"pairs": 3, "smoothness": [10.0]})
    assert perturbed == [2] and pngs(run / "images") == made


def test_an_attack_of_an_older_version_goes_on_and_not_on_other_images(root, whole):
    run = conducted(root, "older", method={"zero_shot": {}})
    (run / "results.json").unlink()
    begun = yaml.safe_load((run / "config.yaml").read_text())
    del begun["sign"], begun["changes"]["evaluation"]["accept"]
    (run / "config.yaml").write_text(yaml.safe_dump(begun))
    (root / "data" / "far" / "0.png").rename(root / "data" / "far" / "new.png")
    try:
        with pytest.raises(ValueError, match="clean was begun with other images"):
            conducted(root, "older", "--resume", method={"zero_shot": {}})
    finally:
        (root / "data" / "far" / "new.png").rename(root / "data" / "far" / "0.png")
    conducted(root, "older", "--resume", method={"zero_shot": {}})
    (run / "results.json").unlink()
    (run / "config.yaml").write_text(yaml.safe_dump(begun | {"speed": 3}))
    with pytest.raises(ValueError, match="none any more: There is no config key speed"):
        conducted(root, "older", "--resume", method={"zero_shot": {}})


def test_a_head_is_attacked_on_the_division_that_it_was_trained_on(root, whole):
    path = written(root, "divided", pairs=2, config=str(whole / "clean"))
    with pytest.raises(ValueError, match="divided the images by seed 42"):
        attack.main(["--config", path, "--seed=7"])


def test_parts_of_other_settings_or_batches_are_not_used(tmp_path):
    parts = Parts(tmp_path, "these")
    parts.write("after", range(4), {"l2": torch.ones(4)})
    assert parts.is_whole("after", range(4)) and torch.equal(parts.read("after", [range(4)])["l2"], torch.ones(4))
    assert not parts.is_whole("after", range(3)) and not parts.is_whole("before", range(4))
    assert not Parts(tmp_path, "others").is_whole("after", range(4))
    path = parts.path("after", range(4))
    path.write_bytes(path.read_bytes()[:-3])
    assert not parts.is_whole("after", range(4))


def test_the_images_are_a_set_for_later_runs(root, monkeypatch):
    place = root / "data" / "adversarial" / "cifar10" / "smooth"
    run = conducted(root, "saved", f"--images={place}", method={"zero_shot": {}})
    assert not (run / "images").exists() and len(pngs(place)) == 12
    shutil.copytree(place / "after", place.parent / "copied")
    sets = {"after": f"{place.parent}/copied", "known": {"catalog": "Adversarial-CIFAR10", "split": "smooth"}}
    evaluation.main(
        [
            "--config",
            str(root / "saved.yaml"),
            "--name=later",
            f"--data.ood={json.dumps(sets)}",
            "--data.allow_partial=true",
        ]
    )
    rows = {(r["detector"], r["ood"]): r for r in tiny_clip.results(root / "runs" / "later")["rows"]}
    plain = {row["detector"]: row for row in tiny_clip.results(run)["rows"] if row["condition"] == ""}
    for detector, row in plain.items():
        for name in sets:
            assert rows[detector, name]["auroc"] == pytest.approx(row["auroc_after"])
    assert rows["knn", "known"]["group"] == "adversarial"


def test_pgd_raises_a_score_within_its_budget(root):
    pgd = {"score": "msp", "sign": True, "lr": 0.01, "smoothness": 0.0, "budget": {"norm": "linf", "epsilon": 0.05}}
    run = conducted(root, "pgd", **pgd)
    before, after = (pixels(run / "images" / name) for name in ("before", "after"))
    assert (after - before).abs().max() <= 0.05 + 0.5 / 255
    scores = pq.read_table(run / "scored" / "scores.parquet").to_pylist()
    msp = {name: np.array([row["msp"] for row in scores if row["set"] == name]) for name in ("before", "after")}
    assert (msp["after"] > msp["before"]).all()
    means = tiny_clip.results(run)["means"]
    assert [means[name] for name in ("before", "after")] == pytest.approx(
        [msp[name].mean() for name in ("before", "after")], rel=1e-4
    )


def test_more_pairs_than_training_images_leave_no_bank_without_targets(root):
    few = {"data.splits.test": 0.9}  # of 46 images: 5 to train on, fewer than the 6 pairs
    run = conducted(root, "few", method={"zero_shot": {}}, changes=few, steps=2)
    assert tiny_clip.results(run)["not_targeted"] == 0 and not (run / "out_of_gallery").exists()
    assert {row["condition"] for row in tiny_clip.results(run)["rows"]} == {"", "not rounded to 8 bits"}
    assert "Every readable ID training image is a target" in (run / "attack.md").read_text()


@pytest.mark.parametrize("target", ["nearest", "text"])
def test_other_targets(root, target):
    run = conducted(root, target, target=target, method={"zero_shot": {}})
    means = tiny_clip.results(run)["means"]
    assert means["after"] > means["before"]
    with (run / "pairs.csv").open() as file:
        aims = {row["target"] for row in csv.DictReader(file)}
    if target == "text":
        assert aims <= set(tiny_clip.CLASSES) and not (run / "out_of_gallery").exists()
    else:
        knn = [
            row["knn"] for row in pq.read_table(run / "scored" / "scores.parquet").to_pylist() if row["set"] == "before"
        ]
        assert means["before"] == pytest.approx(np.mean(knn), abs=1e-5)  # the nearest image is what 1-NN found


def test_a_finished_run_is_attacked_with_its_own_head(root, whole):
    source = whole / "clean"
    attack.main(["--config", written(root, "of_run", pairs=2, config=str(source))])
    run = root / "attacks" / "of_run"
    assert not (run / "clean" / "checkpoints").exists()
    columns = [pq.read_table(each / "clean" / "scores.parquet") for each in (run, whole)]
    assert columns[0].equals(columns[1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pairs": 99}, "99 images are to be attacked, and the OOD set near has 9 images"),
        ({"curve": {"pairs": 10}}, "curve.pairs: 10 images are to be attacked"),
        ({"ood": "neat"}, r"no OOD set 'neat'\. Did you mean near"),
        ({"budget": {"norm": "linf", "epsilon": 0}}, "budget.epsilon: .*greater than 0"),
        ({"score": "mcm", "target": "text"}, "exclude each other"),
        ({"method": {"finetune": {"epochs": 1, "warmup_epochs": 0}}}, "needs a frozen encoder"),
        ({"transfer": {"x": "backbones/nope.yaml"}}, "transfer.x: There is no config 'backbones/nope.yaml'"),
        ({"defences": {"sepia": 1}}, "defences.sepia"),
        ({"stepz": 3}, r"no config key stepz\. Did you mean steps\?"),
    ],
)
def test_what_cannot_be_attacked_is_named_before_any_work(root, keys, message, monkeypatch):
    import clip_ood.experiments.seeds

    monkeypatch.setattr(clip_ood.experiments.seeds, "run", None)
    with pytest.raises(ValueError, match=message):
        conducted(root, "bad", **keys)
    assert not (root / "attacks" / "bad" / "config.yaml").exists()


def test_an_encoder_without_gradient_is_named(root, monkeypatch):
    from clip_ood.experiments.attack import craft

    def opaque(spec):
        backbone = create_backbone(spec)
        real = backbone.encode_image
        backbone.encode_image = lambda images: real(images).detach()
        return backbone

    monkeypatch.setattr(craft, "create_backbone", opaque)
    with pytest.raises(ValueError, match="no gradient with respect to the pixels"):
        conducted(root, "opaque", method={"zero_shot": {}})


def test_an_attack_is_not_an_experiment(root):
    with pytest.raises(ValueError, match=r"is an attack: python attack\.py --config"):
        load_config(written(root, "mixed"))
    with pytest.raises(ValueError, match=r"is one experiment: python train\.py --config"):
        attack.main(["--config", tiny_clip.config(root, "plain", PROBE)])
