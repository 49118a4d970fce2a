"""Runs and the feature store: images known by their content, encoded once, whatever becomes of their files."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from store_lab import CLIP, Lab, draw_images, save_encoder, segments

from clip_ood.backbones.open_clip_backbone import OpenClipBackbone
from clip_ood.config.schema import ImageSet
from clip_ood.data import image_list
from clip_ood.data.image_list import ImageList
from clip_ood.data.listing import list_images
from clip_ood.data.readers import on_disk
from clip_ood.errors import ConfigError
from clip_ood.experiments import extraction as extraction_module
from clip_ood.experiments.commands import features as store_command
from clip_ood.features import entries as entries_module
from clip_ood.features import stored_set
from clip_ood.features.entries import Entries
from clip_ood.features.identity import identity_of
from clip_ood.features.segment import open_segment
from clip_ood.features.store import FeatureStore
from clip_ood.files import writing as files
from clip_ood.files.pictures import UnreadableImage
from clip_ood.lightning_modules.feature_extractor import FeatureExtractor

PROJECT = Path(__file__).parents[1]
FP32, BF16 = {"precision": "fp32", "model": "a"}, {"precision": "bf16", "model": "a"}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return Lab(tmp_path, monkeypatch)


def touch(lab):
    os.utime(lab.root / "data/other/001.png", (1, 1))


def replace_image(lab):
    draw_images(lab.root / "data/other", 3, seed=99)


def add_image(lab):
    draw_images(lab.root / "data/other", 4, seed=3)


def remove_image(lab):
    (lab.root / "data/other/001.png").unlink()


def move(lab):
    (lab.root / "data/other").rename(lab.root / "data/elsewhere")
    (lab.root / "data/other").symlink_to(lab.root / "data/elsewhere")


def copy(lab):
    shutil.copy(lab.root / "data/other/001.png", lab.root / "data/other/again.png")


def of_the_id_set(lab):
    shutil.copy(lab.root / "data/id/cat/001.png", lab.root / "data/other/001.png")


def swap(lab):
    """Another image under the same name, of the same size and time."""
    path = lab.root / "data/other/001.png"
    state = path.stat()
    Image.new("RGB", (8, 8), "red").save(path, "PNG")
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * (state.st_size - len(content)))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size and path.stat().st_mtime_ns == state.st_mtime_ns


def replace_weights(lab):
    save_encoder(lab.root / "clip", seed=1)


def change_preprocessing(lab):
    path = lab.root / "clip/open_clip_config.json"
    described = {"model_cfg": CLIP, "preprocess_cfg": {"size": 16, "mean": [0.1, 0.1, 0.1]}}
    path.write_text(json.dumps(described))


def nothing(lab):
    pass


ID, OTHER, TEXT = ("encode_image", 11), ("encode_image", 3), ("encode_text", 2)


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


def test_a_file_that_cannot_be_had_ends_the_run_and_marks_nothing(lab, monkeypatch):
    real = Path.open

    def vanish(path, *args, **kwargs):
        if path.name == "001.png" and path.parent.name == "other":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", vanish)
    with pytest.raises(PermissionError, match=r"other/001\.png"):
        lab.load()
    monkeypatch.undo()
    features, _ = lab.load()
    assert features["other"].abs().sum(dim=1).all()


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


def test_a_file_system_without_a_time_of_change_is_sampled(lab, monkeypatch):
    """SquashFS and FAT: another image of the same name, size and time. A sample is read; one difference forgets the set."""

    def known_by(place, state):
        return identity_of(place.path, str(state.st_size), str(state.st_mtime_ns))

    monkeypatch.setattr(on_disk, "hides_changes", lambda state: True)
    monkeypatch.setattr(on_disk.Place, "known_by", known_by)
    before, _ = lab.load()
    lab.load()
    assert not lab.asked
    swap(lab)
    after, _ = lab.load()
    assert lab.asked == [("encode_image", 1)] and not torch.equal(after["other"], before["other"])
    lab.load()
    assert not lab.asked


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    states, real = [], os.fstat

    def fstat(descriptor):
        states.append(real(descriptor))
        if len(states) == 1:  # somebody writes between the first look and the second
            path.write_bytes(b"after that")
        return states[-1]

    monkeypatch.setattr(on_disk.os, "fstat", fstat)
    content, state = on_disk.read_whole(path)
    assert content == b"after that" and state.st_size == 10 and len(states) == 4
    monkeypatch.setattr(
        on_disk.os,
        "fstat",
        lambda descriptor: SimpleNamespace(st_size=6, st_mtime_ns=time.monotonic_ns(), st_ctime_ns=0, st_ino=0),
    )
    with pytest.raises(OSError, match="the file changes while it is read"):
        on_disk.read_whole(path)


def test_a_store_that_cannot_be_written_is_read(lab, monkeypatch):
    lab.load()

    def refuse(*arguments, **more):
        raise PermissionError(30, "Read-only file system")

    for place, name in (
        (entries_module, "write_segment"),
        (os, "utime"),
        (Path, "mkdir"),
        (entries_module, "FileLock"),
    ):
        monkeypatch.setattr(place, name, refuse)
    lab.load()
    assert not lab.asked


def test_a_damaged_segment_costs_its_own_images_alone(lab, capsys):
    lab.load()
    damaged = min(segments(lab.root / "features"))
    damaged.write_bytes(damaged.read_bytes()[:-50])
    features, _ = lab.load()
    assert lab.asked == [ID] and f"{damaged} is damaged" in capsys.readouterr().out
    fresh, _ = lab.load(store="fresh")
    assert torch.equal(features["id"], fresh["id"])


def test_what_a_file_was_wrongly_found_to_hold_is_mended(lab):
    """As after a flipped bit: the image counts as missing, is read again, and what is remembered is right from then on."""
    before, _ = lab.load()
    known = Entries(lab.root / "features" / "files")
    identities = known.segments[0].identities
    wrong = torch.from_numpy(np.full((len(identities), 2), 7))
    known.remove(identities)
    known.add(identities, {"identity": wrong}, name="0")
    for _ in range(2):
        after, _ = lab.load()
        assert not lab.asked and all(torch.equal(after[name], before[name]) for name in before)
    assert (
        not known.refresh()
        and not (known.rows(identities, ["identity"])["identity"].take(torch.arange(len(identities))) == 7).any()
    )


def test_a_list_of_absolute_paths_is_read(lab):
    places = sorted((lab.root / "data" / "other").iterdir())
    (lab.root / "data" / "list.txt").write_text("".join(f"{place} -1\n" for place in places))
    before, _ = lab.load()
    after, _ = lab.load("--data.ood={other: {list: list.txt}}")
    assert not lab.asked and torch.equal(after["other"], before["other"])


def test_an_unreadable_image_of_any_name_is_listed(lab):
    broken = os.fsencode(lab.root / "data" / "other") + b"/\xff.png"
    with open(broken, "wb") as file:
        file.write(b"no image")
    features, _ = lab.open("--data.max_unreadable=0.5")
    assert features["other"].valid.sum() == 3 and b"\xff.png" in (lab.root / "unreadable.csv").read_bytes()


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


def test_corrupted_images_need_no_look_at_their_files_of_their_own(lab):
    """In a first run, where several come of one file that was never read, and in a later one, which reads no file for them twice."""
    blurred = (
        "--data.ood={soft: {corruption: gaussian_blur, severity: 1}, hard: {corruption: gaussian_blur, severity: 5}}"
    )
    first, _ = lab.load(blurred)
    count = len(first["soft"])
    assert [each for kind, each in lab.asked if kind == "encode_image"] == [11, count, count]
    assert not torch.allclose(first["soft"], first["hard"], atol=1e-4)
    known = FeatureStore(lab.root / "features", FP32).files
    assert sum(map(len, known.places)) == 11
    again, _ = lab.load(blurred)
    assert not lab.asked and torch.equal(again["hard"], first["hard"])


def test_another_array_takes_one_more_pass_and_leaves_the_others_as_they_are(lab, monkeypatch):
    before, _ = lab.load()
    there = {path: path.read_bytes() for path in segments(lab.root / "features")}
    whole, step = FeatureStore.image_set, FeatureExtractor.predict_step

    def with_layers(extractor, batch, index):
        outputs = step(extractor, batch, index)
        return outputs | ({"layers.1": 2 * outputs["features"][:, :, None]} if "features" in outputs else {})

    monkeypatch.setattr(
        FeatureStore,
        "image_set",
        lambda self, name, images, arrays: whole(self, name, images, (*arrays, "layers.1")),
    )
    monkeypatch.setattr(FeatureExtractor, "predict_step", with_layers)
    after, _ = lab.load()
    assert lab.asked == [ID, OTHER] and all(torch.equal(after[name], before[name]) for name in before)
    assert all(path.read_bytes() == content for path, content in there.items())
    new = [open_segment(path) for path in segments(lab.root / "features") if path not in there]
    assert sum(map(len, new)) == 14 and all(set(each.arrays) == {"layers.1"} for each in new)
    lab.load()
    assert not lab.asked


def test_an_image_that_another_decoder_could_not_read_is_tried_again(lab, monkeypatch):
    real = image_list.decode

    other = (lab.root / "data/other/001.png").read_bytes()

    def without_decoder(file):
        if file.getvalue() == other:
            raise UnreadableImage("no decoder")
        return real(file)

    with monkeypatch.context() as patch:
        patch.setattr(image_list, "decode", without_decoder)
        patch.setattr(stored_set, "decoders", lambda: "Pillow 1")
        features, _ = lab.open("--data.max_unreadable=0.5")
        assert features["other"].valid.tolist() == [True, False, True]
    features, _ = lab.open()
    assert lab.asked == [("encode_image", 1)] and features["other"].valid.all()
    lab.open()
    assert not lab.asked


def test_a_file_that_changes_after_it_was_listed_is_named_at_once(lab, monkeypatch):
    monkeypatch.setattr(extraction_module.time, "sleep", lambda seconds: pytest.fail("waits for what will not come"))
    listed = ImageList.stamps

    def stamps(images, rows=None):
        found = listed(images, rows)
        if images.name == "other" and rows is None:
            touch(lab)
        return found

    monkeypatch.setattr(ImageList, "stamps", stamps)
    with pytest.raises(
        ValueError, match=r"Image set other: 001\.png changed while the run was reading images\. Run again"
    ):
        lab.load()
    monkeypatch.undo()
    lab.load()


def read_only(monkeypatch, root):
    """As if what lies below `root` could not be written."""

    def refusing(real):
        def run(place, *arguments, **more):
            if str(root) in str(place):
                raise OSError(30, "Read-only file system", str(place))
            return real(place, *arguments, **more)

        return run

    monkeypatch.setattr(files, "_locked", refusing(files._locked))
    monkeypatch.setattr(Path, "mkdir", refusing(Path.mkdir))
    monkeypatch.setattr(entries_module, "FileLock", refusing(entries_module.FileLock))
    monkeypatch.setattr(files.tempfile, "TemporaryFile", lambda dir: refusing(open)(dir))
    monkeypatch.setattr(os, "utime", refusing(os.utime))


def test_a_read_only_store_that_does_not_know_the_files_reads_them_once(lab, monkeypatch, capsys):
    """As after the images and the store were moved to another machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.root / "cache"))
    before, _ = lab.load()
    touch(lab)
    (lab.root / "data").rename(lab.root / "moved")
    (lab.root / "data").symlink_to(lab.root / "moved")
    read_only(monkeypatch, lab.root / "features")
    after, _ = lab.load()
    assert not lab.asked and all(torch.equal(after[name], before[name]) for name in before)
    assert capsys.readouterr().out.count(f"is kept in {lab.root}/cache/clip-ood/files") == 1
    monkeypatch.setattr(on_disk.OnDisk, "load", lambda *arguments: pytest.fail("read again"))
    lab.load()


def test_a_read_only_store_without_the_images_ends_the_run_with_its_first_batch(lab, monkeypatch):
    lab.load()
    replace_image(lab)
    read_only(monkeypatch, lab.root / "features")
    with pytest.raises(
        ValueError, match=r"features does not hold all features .* name another folder with --features_root"
    ):
        lab.load("--data.batch_size=2")
    assert lab.asked == [("encode_image", 2)]


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


def test_a_million_files_take_few_bytes(tmp_path):
    """What is kept of a file beside its name: 16 bytes of a stamp, 16 of an identity."""
    draw_images(tmp_path / "id", 50)
    images = list_images("id", ImageSet(folder=tmp_path / "id"), tmp_path, labelled=False, seed=0)
    stamps, _ = images.stamps()
    assert stamps.nbytes == 50 * 16 and stamps.dtype == np.uint64


def test_an_older_format_is_named(lab, capsys):
    old = lab.root / "features" / "0123456789abcdef" / "fedcba9876543210"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    lab.load()
    assert "older version (1 encoders), which are not read: clip-ood features remove --old" in capsys.readouterr().out


def test_a_run_stops_as_soon_as_too_many_images_are_unreadable(lab):
    """Not at the end of its images; what was read is kept, and the next run stops before it encodes anything."""
    for index in range(20):
        (lab.root / "data/id/cat" / f"torn{index:02d}.png").write_bytes(b"no image %d" % index)
    for index in range(2):
        with pytest.raises(ValueError, match=r"Image set id: [67] of 31 images cannot be read, and 5 may be"):
            lab.load("--data.batch_size=2")
        listed = (lab.root / "unreadable.csv").read_text().splitlines()
        assert 6 <= len(listed) - 1 <= 7 and "torn00.png" in listed[1]
        assert sum(count for _, count in lab.asked) == (0 if index else len(listed) - 1 + 6)
    lab.load("--data.max_unreadable=0.9")
    assert ("encode_image", 3) in lab.asked
