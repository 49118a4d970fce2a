"""Copies in several sets, or in one, are found, named, told, and taken out where that is asked for."""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
from dataclasses import asdict

import forked
import numpy as np
import planted
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from PIL import Image
from planted import EXACT, NEAR

import eval as evaluation
import train
from clip_ood.errors import ConfigError
from clip_ood.features.identity import firsts, originals
from clip_ood.leaks.copies import ImageSet, Shared
from clip_ood.leaks.duplicates import check_left, dropped
from clip_ood.leaks.exact import exact_copies
from clip_ood.leaks.thumbnails import SAME, similarity, thumbnail
from clip_ood.leaks.told import leaks_told


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return planted.make(tmp_path_factory.mktemp("leaks"))


def run(root, name, main=evaluation.main, **keys):
    """The results of a run, and the lines of its leaks.csv: (set, path), (copy_set, copy_path), kind, similarity, dropped."""
    main(["--config", planted.config(root, name, **keys)])
    return tiny_clip.results(root / "runs" / name), named(root / "runs" / name)


def named(folder):
    if not (folder / "leaks.csv").is_file():
        return []
    with (folder / "leaks.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    ends = (("set", "path"), ("copy_set", "copy_path"))
    return [(*(tuple(line[key] for key in end) for end in ends), *list(line.values())[4:]) for line in lines]


def counted(results, kind):
    return {
        (each["earlier"], each["later"]): each["images"] for each in results["shared_images"] if each["kind"] == kind
    }


def counts_of(planted_copies):
    found = {}
    for (later, _), (earlier, _) in planted_copies.items():
        found[earlier, later] = found.get((earlier, later), 0) + 1
    return found


def test_exact_copies_of_each_kind_are_named_in_every_run(root, capsys):
    results, lines = run(root, "exact", evaluation={"report": True})
    assert {copy: original for original, copy, *_ in lines} == EXACT and len(lines) == len(EXACT)
    assert {tuple(line[2:]) for line in lines} == {("exact", "1.0000", "")}
    assert counted(results, "exact") == counts_of(EXACT) and counted(results, "near") == {} and results["dropped"] == []
    sizes = {each["later"]: each["total"] for each in results["shared_images"]}
    assert sizes == {"val": 10, "id_test": 14, "ood/a": 8, "ood/b": 9}
    told = " ".join(capsys.readouterr().out.split())
    page = (root / "runs" / "exact" / "report.html").read_text()
    for line in (
        "1 of the 10 images of val is also in train, 1 of the 14 images of id_test is also in train, "
        "1 of the 8 images of ood/a is also in id_test",
        "share images: 1 of the 9 images of ood/b is also in ood/a.",
        "several times: 1 of the 9 images of ood/b is a copy of others of it",
        "Each copy is named in leaks.csv",
    ):
        assert told.count(line) == 2 and line in page, line  # before the run, and below the table


def test_near_copies_are_found_by_features_and_told_by_their_pixels(root, capsys):
    results, lines = run(root, "near", evaluation={"leaks": "near", "report": True})
    near = {copy: original for original, copy, kind, *_ in lines if kind == "near"}
    assert near == NEAR and all(SAME <= float(line[3]) <= 1 for line in lines)
    assert {copy: original for original, copy, kind, *_ in lines if kind == "exact"} == EXACT
    assert counted(results, "near") == counts_of(NEAR) and counted(results, "exact") == counts_of(EXACT)
    told = " ".join(capsys.readouterr().out.split())
    page = (root / "runs" / "near" / "report.html").read_text()
    line = "There are near copies (resized, saved anew or mirrored): 1 of the 14 images of id_test is a near copy of images of train"
    assert told.count(line) == 2 and line in page


def test_a_method_that_tunes_the_encoder_finds_the_same(root):
    tuned = {"finetune": {"epochs": 1, "warmup_epochs": 0, "batch_size": 4, "head": "random", "mixup": 0, "cutmix": 0}}
    _, lines = run(root, "tuned", train.main, method=tuned, evaluation={"leaks": "near"})
    assert {copy: original for original, copy, *_ in lines} == EXACT | NEAR


@pytest.mark.slow
def test_two_processes_find_the_same(root):
    found = {}
    for devices in (1, 2):
        path = planted.config(
            root, f"on{devices}", evaluation={"leaks": "near"}, features_root=f"{root}/features{devices}"
        )
        options = [f"--trainer.devices={devices}", "--trainer.strategy=ddp", "--data.drop_duplicates=tested"]
        command = [sys.executable, "eval.py", "--config", path, *options]
        done = forked.run(command, cwd=tiny_clip.PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
        assert done.returncode == 0, done.stderr
        folder = root / "runs" / f"on{devices}"
        results = tiny_clip.results(folder)
        found[devices] = (folder / "leaks.csv").read_bytes(), results["shared_images"], results["dropped"]
    assert found[1] == found[2] and len(found[1][0].splitlines()) == 1 + len(EXACT) + len(NEAR)


def test_copies_are_taken_out_of_tested_sets(root, capsys):
    results, lines = run(root, "tested", data={"drop_duplicates": "tested"})
    assert results["dropped"] == [
        {"set": "id_test", "images": 1, "total": 14},
        {"set": "ood/a", "images": 1, "total": 8},
        {"set": "ood/b", "images": 1, "total": 9},
    ]
    assert counted(results, "exact") == {("train", "val"): 1, ("ood/a", "ood/b"): 1}
    assert {copy: of for _, copy, *_, of in lines if of} == {
        ("id_test", "dog/of_train.png"): "id_test",
        ("ood/a", "of_test.png"): "ood/a",
        ("ood/b", "twice.png"): "ood/b",
    }
    assert results["rows"][0]["n_id"] == 13 and results["split"]["test"] == 13 and results["split"]["train"] == 18
    told = " ".join(capsys.readouterr().out.split())
    line = "taken out 1 of the 14 images of id_test, 1 of the 8 images of ood/a, 1 of the 9 images of ood/b"
    assert told.count(line) == 2


def test_copies_are_taken_out_of_the_training_images_and_the_bank(root):
    probe = {"linear_probe": {"epochs": 1}}
    results, _ = run(root, "bank", train.main, method=probe, data={"drop_duplicates": "bank"})
    assert results["dropped"] == [{"set": "train", "images": 2, "total": 18}]
    assert results["bank"]["images"] == results["split"]["train"] == results["trained_on"]["images"] == 16
    assert ("train", "val") not in counted(results, "exact") and ("id_test", "ood/a") in counted(results, "exact")


def test_a_head_that_was_trained_on_the_copies_is_not_scored_as_if_it_were_not(root):
    path = planted.config(root, "kept", {"linear_probe": {"epochs": 1}})
    train.main(["--config", path])
    with pytest.raises(ConfigError, match=r"drop_duplicates: bank .* was trained on them"):
        evaluation.main(["--run", str(root / "runs" / "kept"), "--data.drop_duplicates=bank", "--name=again"])


def test_originals_of_corrupted_images_among_the_training_images(root):
    ood = {"noise": {"corruption": "gaussian_noise", "severity": 3}}
    results, lines = run(root, "corrupted", data={"ood": ood}, evaluation={"leaks": "near"})
    assert counted(results, "corrupted") == {("train", "ood/noise"): 1}
    assert [line[:2] for line in lines if line[2] == "corrupted"] == [
        (("train", "dog/1.png"), ("ood/noise", "dog/of_train.png"))
    ]
    assert not any("ood/noise" in pair for kind in ("exact", "near") for pair in counted(results, kind))
    results, _ = run(root, "corrupted_without", data={"ood": ood, "drop_duplicates": "tested"})
    assert {each["set"]: each["images"] for each in results["dropped"]} == {"id_test": 1, "ood/noise": 1}
    table = pq.read_table(root / "runs" / "corrupted_without" / "scores.parquet", columns=["set", "path", "image"])
    images = {(row["set"], row["path"]): row["image"] for row in table.to_pylist()}
    tested = {path: image for (name, path), image in images.items() if name == "id_test"}
    assert {path: image for (name, path), image in images.items() if name == "noise"} == tested and len(tested) == 13


def test_a_set_of_copies_alone_is_told_and_never_emptied(root, capsys):
    shutil.copytree(root / "data" / "train" / "cat", root / "data" / "copies", dirs_exist_ok=True)
    data = {"ood": {"a": "a", "copies": "copies"}}
    results, _ = run(root, "copies", data=data)
    assert counted(results, "exact")["train", "ood/copies"] == 6
    config = planted.config(root, "emptied", data=data | {"drop_duplicates": "tested"})
    with pytest.raises(
        ConfigError, match=r"drop_duplicates: tested would leave no image of ood/copies: all of its 6 images"
    ):
        evaluation.main(["--config", config])


def test_a_single_image_that_is_a_copy(root):
    (root / "data" / "alone").mkdir()
    shutil.copy(root / "data" / "train" / "cat" / "0.png", root / "data" / "alone" / "0.png")
    data = {"ood": {"a": "a", "alone": "alone"}}
    results, _ = run(root, "alone", data=data, evaluation={"leaks": "near"})
    assert counted(results, "exact")["train", "ood/alone"] == 1
    config = planted.config(root, "alone_emptied", data=data | {"drop_duplicates": "tested"})
    with pytest.raises(ConfigError, match="ood/alone: its only image is a copy"):
        evaluation.main(["--config", config])


def test_unreadable_images_are_no_copies_and_no_file_is_left_of_an_earlier_run(root):
    images = root / "data" / "a"
    config = planted.config(root, "unreadable", data={"ood": {"a": "a"}, "id": {"train": "train", "test": "val"}})
    evaluation.main(["--config", config, "--evaluation.leaks=near"])
    assert named(root / "runs" / "unreadable")
    (images / "broken_1.png").write_bytes(b"no image")
    (images / "broken_2.png").write_bytes(b"no image")
    try:
        results, lines = run(root, "broken", evaluation={"leaks": "near"})
        assert {copy: original for original, copy, *_ in lines} == EXACT | NEAR
        assert {each["later"]: each["total"] for each in results["shared_images"]}["ood/a"] == 8
    finally:
        for number in (1, 2):
            (images / f"broken_{number}.png").unlink()
    data = {"id": {"train": "train", "test": "id"}, "ood": {"far": "far"}, "splits": {"val": 0}}
    (root / "runs" / "none").mkdir()
    (root / "runs" / "none" / "leaks.csv").touch()
    results, lines = run(root, "none", data=data)
    assert results["shared_images"] == [] and not (root / "runs" / "none" / "leaks.csv").exists()


@pytest.mark.parametrize("key", ["data.drop_duplicates=all", "evaluation.leaks=pixels"])
def test_a_value_that_there_is_not_is_refused(root, key):
    with pytest.raises(ConfigError, match=re.escape(key.partition("=")[0])):
        evaluation.main(["--config", planted.config(root, "wrong"), f"--{key}"])


def sets_of(contents, corrupted=()):
    roles = {"train": "train", "val": "val", "id_test": "id", "ood/a": "ood", "ood/b": "ood"}
    return [
        ImageSet(name, role, np.arange(len(contents[name])) + 100, contents[name], None, corrupted=name in corrupted)
        for name, role in roles.items()
        if name in contents
    ]


def test_the_same_copies_as_comparing_every_pair():
    generator = np.random.default_rng(0)
    names = ("train", "val", "id_test", "ood/a", "ood/b")
    contents = {name: generator.integers(0, 9, (20, 2)).astype(np.uint64) for name in names}
    contents["val"] = np.empty((0, 2), np.uint64)
    expected = {}
    for number, one in enumerate(names):
        for other in names[number:]:
            for row, content in enumerate(contents[other].tolist()):
                before = contents[one][: row if one == other else None].tolist()
                if content in before:
                    expected.setdefault((one, other), []).append((before.index(content) + 100, row + 100))
    found = exact_copies(sets_of(contents))
    pairs = {(each.earlier, each.later): list(zip(each.originals, each.rows, strict=True)) for each in found}
    assert pairs == expected and list(pairs) == list(expected) and len(expected) > 6
    assert asdict(found[0].count) == asdict(Shared(found[0].earlier, found[0].later, len(found[0]), 20))


@pytest.mark.parametrize("drop", ["tested", "bank"])
def test_what_is_taken_out_leaves_nothing_to_take_out(drop):
    generator = np.random.default_rng(1)
    contents = {
        name: generator.integers(0, 12, (20, 2)).astype(np.uint64)
        for name in ("train", "val", "id_test", "ood/a", "ood/b")
    }
    sets = sets_of(contents)
    copies = exact_copies(sets)
    out = dropped(sets, copies, drop)
    left = {each.name: contents[each.name][~np.isin(each.rows, out.get(each.name, ()))] for each in sets}
    again = exact_copies(sets_of(left))
    kept = [each for each in (copy.without(out) for copy in copies) if len(each)]
    assert [each.count for each in again] == [each.count for each in kept] and len(again) < len(copies)
    for each in again:
        if drop == "bank":
            assert "train" not in (each.earlier, each.later)
        else:
            assert each.later in ("train", "val") or {each.earlier, each.later} == {"ood/a", "ood/b"}
    gone = {"bank": {"train"}, "tested": {"id_test", "ood/a", "ood/b"}}[drop]
    assert set(out) == gone
    for name in gone:  # no content is lost but what stands elsewhere, too
        others = {tuple(row) for other in contents if other != name for row in contents[other].tolist()}
        assert {tuple(row) for row in contents[name].tolist()} <= others | {tuple(row) for row in left[name].tolist()}


def test_corruptions_stay_in_step_with_the_images_that_they_are_made_of():
    tested = np.array([[1, 1], [2, 2], [1, 1], [3, 3]], np.uint64)
    sets = sets_of({"train": tested[3:], "id_test": tested, "ood/a": tested}, corrupted={"ood/a"})
    copies = exact_copies(sets)
    assert [(each.earlier, each.later, each.kind) for each in copies] == [
        ("train", "id_test", "exact"),
        ("train", "ood/a", "corrupted"),
        ("id_test", "id_test", "exact"),
    ]
    out = dropped(sets, copies, "tested")
    assert out["id_test"].tolist() == out["ood/a"].tolist() == [102, 103]


def test_several_seeds_say_at_most_how_many_copies_there_are(root, capsys):
    results, _ = run(root, "seeds", seeds=[1, 2], data={"drop_duplicates": "tested"})
    assert [(each["seed"], each["set"]) for each in results["dropped"]][::3] == [(1, "id_test"), (2, "id_test")]
    assert {each["seed"] for each in results["shared_images"]} == {1, 2}
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("up to 1 of the 10 images of val is also in train") == 1
    assert named(root / "runs" / "seeds" / "seed-1") == named(root / "runs" / "seeds" / "seed-2") != []


def test_no_set_may_be_emptied():
    one = np.ones((1, 2), np.uint64)
    sets = sets_of({"train": one, "id_test": one})
    for drop, name in (("tested", "id_test"), ("bank", "train")):
        with pytest.raises(ConfigError, match=f"leave no image of {name}"):
            check_left(sets, dropped(sets, exact_copies(sets), drop), drop)


def test_no_images_have_no_copies():
    assert exact_copies([]) == [] and exact_copies(sets_of({"train": np.empty((0, 2), np.uint64)})) == []
    assert originals(np.empty((0, 2), np.uint64)).tolist() == firsts(np.empty((0, 2), np.uint64)).tolist() == []


def test_thumbnails_tell_pictures_apart():
    generator = np.random.default_rng(0)
    one, other = (
        Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8)).resize((240, 180)) for _ in range(2)
    )
    whole = thumbnail(one)
    assert similarity(whole, thumbnail(one.resize((80, 60)))) > SAME
    assert similarity(whole, thumbnail(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT))) > 0.999
    assert similarity(whole, thumbnail(other)) < 0.5
    assert similarity(whole, thumbnail(one.crop((40, 30, 200, 150)))) < SAME
    flat = thumbnail(Image.new("RGB", (64, 64), "white"))
    assert similarity(flat, flat) == 0  # which says nothing


def test_what_older_runs_and_several_seeds_say():
    old = {"earlier": "train", "later": "ood/a", "images": 3, "total": 9}
    (line,) = leaks_told({"shared_images": [old]})
    assert "3 of the 9 images of ood/a are also in train" in line
    seeds = [old | {"kind": "exact", "seed": seed, "images": seed} for seed in (2, 5, 4)]
    line, where = leaks_told({"shared_images": seeds, "dropped": []})
    assert "up to 5 of the 9 images of ood/a" in line and line.count("ood/a") == 1 and "leaks.csv" in where
    many = [old | {"later": f"ood/{name}"} for name in "abcde"]
    assert "and 2 more pairs of sets" in leaks_told({"shared_images": many})[0]
    assert leaks_told({}) == []


def test_near_copies_are_sought_block_by_block(root, monkeypatch):
    from clip_ood.detectors.exchange import ALONE
    from clip_ood.features.rows import Rows
    from clip_ood.leaks import near

    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).resize((40, 40)) for _ in range(40)]

    class Listed:
        names = range(40)

        def read(self, index):
            return pictures[index]

    features = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    pictures[33], features[33] = pictures[3].resize((30, 30)), features[3] + 0.01
    pictures[35], features[35] = pictures[30].resize((30, 30)), features[30] + 0.01
    contents = np.arange(80).reshape(40, 2).astype(np.uint64)
    sets = [
        ImageSet(name, role, np.array(rows, int), contents[rows], Listed(), Rows([features]))
        for name, role, rows in (
            ("train", "train", range(20)),
            ("val", "val", range(0)),
            ("ood/a", "ood", range(20, 40)),
        )
    ]
    for block in (3, 16384):
        monkeypatch.setattr(near, "BLOCK", block)
        found = near.near_copies(sets, [], torch.device("cpu"), ALONE)
        assert [(each.earlier, each.later, *each.originals, *each.rows) for each in found] == [
            ("train", "ood/a", 3, 33),
            ("ood/a", "ood/a", 30, 35),
        ]
