"""Runs and the feature store: images known by their content, encoded once, whatever becomes of their files."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from store_lab import (
    CLIP,
    ID,
    OTHER,
    TEXT,
    Lab,
    draw_images,
    of_the_id_set,
    replace_image,
    save_encoder,
    segments,
    swap,
    touch,
)

from clip_ood.backbones.open_clip_backbone import OpenClipBackbone
from clip_ood.config.schema import ImageSet
from clip_ood.data.listing import list_images
from clip_ood.data.readers import on_disk
from clip_ood.errors import ConfigError
from clip_ood.experiments.commands import features as store_command
from clip_ood.features.segment import open_segment
from clip_ood.features.store import FeatureStore


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return Lab(tmp_path, monkeypatch)


def add_image(lab):
    draw_images(lab.root / "data/other", 4, seed=3)


def remove_image(lab):
    (lab.root / "data/other/001.png").unlink()


def move(lab):
    (lab.root / "data/other").rename(lab.root / "data/elsewhere")
    (lab.root / "data/other").symlink_to(lab.root / "data/elsewhere")


def copy(lab):
    shutil.copy(lab.root / "data/other/001.png", lab.root / "data/other/again.png")


def replace_weights(lab):
    save_encoder(lab.root / "clip", seed=1)


def change_preprocessing(lab):
    path = lab.root / "clip/open_clip_config.json"
    described = {"model_cfg": CLIP, "preprocess_cfg": {"size": 16, "mean": [0.1, 0.1, 0.1]}}
    path.write_text(json.dumps(described))


def nothing(lab):
    pass


@pytest.mark.parametrize(
    ("change", "override", "asked"),
    [
        (nothing, [], []),
        (touch, [], []),  # read again, and found to be the same
        (replace_image, [], [OTHER]),
        (add_image, [], [("encode_image", 1)]),
        (remove_image, [], []),
        (move, [], []),
        (copy, [], []),
        (of_the_id_set, [], []),
        (swap, [], [("encode_image", 1)]),
        (replace_weights, [], [ID, OTHER, TEXT]),
        (change_preprocessing, [], [ID, OTHER, TEXT]),
        (nothing, ["--backbone.precision=bf16"], [ID, OTHER, TEXT]),
        (nothing, ["--data.id.class_names=[tabby, hound]", "--data.id.images=id"], [TEXT]),
        (nothing, ["--data.prompts=['the {}.']"], [TEXT]),
        (nothing, ["--seed=7", "--data.splits.test=0.4", "--data.batch_size=2"], []),
    ],
    ids=lambda value: value.__name__ if callable(value) else " ".join(map(str, value)) or "as it is",
)
def test_what_changed_is_extracted_again_and_nothing_else(lab, change, override, asked):
    before, _ = lab.load()
    assert lab.asked == [ID, OTHER, TEXT]
    change(lab)
    after, text = lab.load(*override)
    assert lab.asked == asked
    fresh, fresh_text = lab.load(*override, store="fresh")
    assert all(torch.allclose(after[name], fresh[name], atol=1e-5) for name in fresh)
    assert torch.allclose(text.embeddings, fresh_text.embeddings, atol=1e-5)
    assert torch.equal(after["id"], before["id"]) == (ID not in asked)
    lab.load(*override)
    assert not lab.asked


def test_the_trainers_precision_is_not_the_encoders(lab):
    expected, _ = lab.load(store="plain")
    features, _ = lab.load(precision="bf16-mixed")
    assert all(torch.equal(features[name], expected[name]) for name in expected)
    with pytest.raises(ConfigError, match=r"Set backbone\.precision for the encoder"):
        lab.load("--trainer.precision=bf16-true")


# Which images are the same


def test_images_of_equal_names_sizes_and_times_are_told_apart(lab):
    """As they come out of zips, SquashFS and reproducible archives: two sets of one run, one of them OOD."""
    for place in ("id", "other"):
        shutil.rmtree(lab.root / "data" / place)
        (lab.root / "data" / place).mkdir()
    for place, colour in (("id", 40), ("other", 200)):
        for index in range(3):
            path = lab.root / "data" / place / f"{index}.bmp"
            Image.new("RGB", (8, 8), (colour + index,) * 3).save(path)
            os.utime(path, (315532800, 315532800))
    features, _ = lab.load()
    assert lab.asked == [("encode_image", 3), ("encode_image", 3)]
    assert not torch.allclose(features["id"], features["other"], atol=1e-3)


def test_a_copy_that_the_same_run_meets_is_stored_once(lab):
    """In two folders, which nobody can know before they are read."""
    of_the_id_set(lab)
    features, _ = lab.load()
    assert lab.asked == [ID, ("encode_image", 2), TEXT]
    assert torch.equal(features["other"][1], features["id"][1])


def test_the_same_files_in_two_lists_are_read_once(lab, monkeypatch):
    names = sorted(path.name for path in (lab.root / "data" / "other").iterdir())
    for number, some in enumerate((names[:2], names[1:])):
        (lab.root / "data" / f"{number}.txt").write_text("".join(f"other/{name} -1\n" for name in some))
    sets = "--data.ood={a: {list: 0.txt}, b: {list: 1.txt}}"
    read, real = [], on_disk.read_whole
    monkeypatch.setattr(on_disk, "read_whole", lambda path, *inside: read.append(path) or real(path, *inside))
    features, _ = lab.load(sets)
    assert len(read) == 11 + 3 and torch.equal(features["a"][1], features["b"][0])


def test_a_list_of_absolute_paths_is_read(lab):
    places = sorted((lab.root / "data" / "other").iterdir())
    (lab.root / "data" / "list.txt").write_text("".join(f"{place} -1\n" for place in places))
    before, _ = lab.load()
    after, _ = lab.load("--data.ood={other: {list: list.txt}}")
    assert not lab.asked and torch.equal(after["other"], before["other"])


def test_a_shard_holds_the_same_images_as_its_folder(lab):
    lab.load()
    with tarfile.open(lab.root / "data/other.tar", "w") as tar:
        for path in sorted((lab.root / "data/other").iterdir()):
            tar.add(path, path.name)
    before, _ = lab.load()
    after, _ = lab.load("--data.ood={other: {shards: other.tar}}")
    assert not lab.asked and torch.equal(after["other"], before["other"])


def test_corrupted_images_are_known_by_their_source_and_what_is_done_to_it(lab):
    blurred = ["--data.ood={blur: {corruption: gaussian_blur, severity: 3}}"]
    before, _ = lab.load(*blurred)
    count = len(before["blur"])
    assert ("encode_image", count) in lab.asked
    lab.load(*blurred)
    assert not lab.asked
    lab.load("--data.ood={blur: {corruption: gaussian_blur, severity: 4}}")
    assert lab.asked == [("encode_image", count)]


def test_corrupted_images_need_no_look_at_their_files_of_their_own(lab):
    """In a first run, where several come of one file that was never read, and in a later one, which reads no file for them twice."""
    blurred = (
        "--data.ood={soft: {corruption: gaussian_blur, severity: 1}, hard: {corruption: gaussian_blur, severity: 5}}"
    )
    first, _ = lab.load(blurred)
    count = len(first["soft"])
    assert [each for kind, each in lab.asked if kind == "encode_image"] == [11, count, count]
    assert not torch.allclose(first["soft"], first["hard"], atol=1e-4)
    known = FeatureStore(lab.root / "features", {"precision": "fp32"}).files
    assert sum(map(len, known.places)) == 11
    again, _ = lab.load(blurred)
    assert not lab.asked and torch.equal(again["hard"], first["hard"])


# Arrays that are added later


def test_embeddings_follow_from_stored_features(lab, monkeypatch):
    """An array that is added later is computed from what is stored, where that suffices; what was unreadable stays so."""
    (lab.root / "data" / "other" / "torn.png").write_bytes(b"no image")
    monkeypatch.setattr(lab, "open", partial(lab.open, "--data.max_unreadable=0.5"))
    expected, _ = lab.load(store="fresh")
    embeddings, _ = lab.open(store="fresh")
    whole = FeatureStore.image_set
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "image_set", lambda self, name, images, arrays: whole(self, name, images))
        project = OpenClipBackbone.project
        patch.setattr(OpenClipBackbone, "project", lambda backbone, features: None)
        lab.load()
        patch.setattr(OpenClipBackbone, "project", project)
    before = {path: path.read_bytes() for path in segments(lab.root / "features")}
    features, _ = lab.open()
    assert not [each for each in lab.asked if each[0] == "encode_image"]
    assert torch.equal(features["id"].features.take(torch.arange(11)), expected["id"])
    assert torch.equal(
        features["id"].embeddings.take(torch.arange(11)), embeddings["id"].embeddings.take(torch.arange(11))
    )
    assert all(path.read_bytes() == content for path, content in before.items())
    assert features["other"].valid.tolist() == [True, True, True, False]


def test_another_array_takes_one_more_pass_and_leaves_the_others_as_they_are(lab, monkeypatch):
    before, _ = lab.load()
    there = {path: path.read_bytes() for path in segments(lab.root / "features")}
    whole = FeatureStore.image_set
    monkeypatch.setattr(
        FeatureStore,
        "image_set",
        lambda self, name, images, arrays: whole(self, name, images, (*arrays, "layers.1")),
    )
    after, _ = lab.load()
    assert lab.asked == [("encode_inside", 11), ("encode_inside", 3)] and all(
        torch.equal(after[name], before[name]) for name in before
    )
    assert all(path.read_bytes() == content for path, content in there.items())
    new = [open_segment(path) for path in segments(lab.root / "features") if path not in there]
    assert sum(map(len, new)) == 14 and all(set(each.arrays) == {"layers.1"} for each in new)
    lab.load()
    assert not lab.asked


# What is kept of files


def test_the_store_is_listed_and_what_files_hold_can_be_forgotten(lab, capsys):
    lab.load()
    store_command.main(["list", "--root", str(lab.root / "features")])
    shown = capsys.readouterr().out
    assert " 14 " in shown and " 2 " in shown and "what 14 files" in shown
    for options in (["--dry-run"], []):
        store_command.main(["remove", "--files", "--root", str(lab.root / "features"), *options])
        assert (lab.root / "features" / "files").exists() == bool(options)
    lab.load()
    assert not lab.asked


@pytest.mark.parametrize("what", [[""], ["--unused-for=-1"], ["--unused-for=nan"]])
def test_what_names_no_encoder_and_no_days_removes_nothing(lab, what):
    lab.load()
    with pytest.raises(
        SystemExit, match=r"error: (An empty text begins the number of 0 encoders|--unused-for: (-1|nan) must be)"
    ):
        store_command.main(["remove", "--root", str(lab.root / "features"), *what])
    assert segments(lab.root / "features")


def test_a_million_files_take_few_bytes(tmp_path):
    """What is kept of a file beside its name: 16 bytes of a stamp, 16 of an identity."""
    draw_images(tmp_path / "id", 50)
    images = list_images("id", ImageSet(folder=tmp_path / "id"), tmp_path, labelled=False, seed=0)
    stamps, _ = images.stamps()
    assert stamps.nbytes == 50 * 16 and stamps.dtype == np.uint64
