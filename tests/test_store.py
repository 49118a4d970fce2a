"""The feature store: images known by their content, encoded once; runs that are killed or meet in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from clip_ood.backbones.open_clip_backbone import OpenClipBackbone
from clip_ood.features import entries as entries_module
from clip_ood.features.entries import Entries
from clip_ood.features.identity import identity_of, pairs
from clip_ood.features.store import FeatureStore, TextEmbeddings
from configs.errors import ConfigError
from configs.loading import load_config
from configs.schema import ImageSet
from datamodules import image_list, sources
from datamodules.benchmark import load_benchmark
from datamodules.image_list import list_images
from experiments.extraction import load_features

PROJECT = Path(__file__).parents[1]
FP32, BF16 = {"precision": "fp32", "model": "a"}, {"precision": "bf16", "model": "a"}


class InMemory:
    """A list of images that are known by their number."""

    def __init__(self, numbers):
        self.numbers = list(numbers)

    def __len__(self):
        return len(self.numbers)

    def identities(self):
        return pairs([identity_of(str(number)) for number in self.numbers])


def fill(stored, features, embeddings=None, errors=None):
    arrays = {"features": features} | ({} if embeddings is None else {"embeddings": embeddings})
    stored.add(stored.identities_of(np.arange(len(features))), arrays, errors)
    stored.refresh()


@pytest.mark.parametrize(("fingerprint", "dtype"), [(FP32, torch.float32), (BF16, torch.float16)], ids=["fp32", "bf16"])
def test_what_is_written_is_what_is_opened(tmp_path, fingerprint, dtype):
    store = FeatureStore(tmp_path, fingerprint)
    stored = store.image_set("cats", InMemory(range(10)), ("features", "embeddings"))
    assert stored.missing().tolist() == list(range(10))
    features, embeddings = torch.randn(10, 3), torch.randn(10, 2)
    fill(stored, features, embeddings)
    assert not len(stored.missing())
    found = FeatureStore(tmp_path, fingerprint).image_set("dogs", InMemory([7, 2]), ("features", "embeddings")).open()
    assert torch.equal(found.features.take(torch.arange(2)), features[[7, 2]].to(dtype))
    assert torch.equal(found.embeddings.take(torch.arange(2)), embeddings[[7, 2]].to(dtype))
    assert found.valid.all() and np.array_equal(found.identities, InMemory([7, 2]).identities())


def test_unreadable_rows_are_masked_and_say_why(tmp_path):
    stored = FeatureStore(tmp_path, FP32).image_set("cats", InMemory(range(10)))
    features = torch.randn(10, 3)
    features[6] = torch.nan  # whatever an encoder says of a blank image
    fill(stored, features, errors={1: "OSError: torn", 6: "ValueError: no picture"})
    found = stored.open()
    assert [row for row, valid in enumerate(found.valid.tolist()) if not valid] == [1, 6]
    assert stored.errors == {1: "OSError: torn", 6: "ValueError: no picture"}
    assert not found.features.take(torch.tensor([1, 6])).any()


@pytest.mark.parametrize(
    ("fingerprint", "value"), [(FP32, torch.nan), (FP32, -torch.inf), (BF16, 1e5)], ids=["nan", "inf", "above float16"]
)
@pytest.mark.parametrize("part", ["features", "embeddings"])
def test_features_that_are_not_finite_are_an_error(tmp_path, fingerprint, value, part):
    stored = FeatureStore(tmp_path, fingerprint).image_set("cats", InMemory(range(4)), ("features", "embeddings"))
    values = {"features": torch.randn(4, 3), "embeddings": torch.randn(4, 3)}
    values[part][1:3, 0] = value
    with pytest.raises(ValueError, match=r"Image set cats: 2 of 4 images .* Try backbone.precision=fp32"):
        fill(stored, values["features"], values["embeddings"])
    assert len(stored.missing()) == 4


def test_missing_features_are_an_error_that_counts_them(tmp_path):
    store = FeatureStore(tmp_path, FP32)
    fill(store.image_set("few", InMemory(range(3))), torch.randn(3, 2))
    with pytest.raises(FileNotFoundError, match="Image set cats: the features of 7 of 10 images are missing"):
        store.image_set("cats", InMemory(range(10))).open()


def test_text_embeddings_are_entries_of_their_own(tmp_path):
    store = FeatureStore(tmp_path, FP32)
    embeddings = torch.randn(3, 3)
    assert store.missing_texts(["a cat", "a dog", "a cat"]) == ["a cat", "a dog"]
    store.write_texts(["a cat", "a dog", "a fox"], TextEmbeddings(embeddings, 1 / 0.07))
    store.texts.refresh()
    found = store.texts_of(["a dog", "a cat", "a dog"])
    assert torch.equal(found.embeddings, embeddings[[1, 0, 1]]) and found.logit_scale == 1 / 0.07
    assert store.missing_texts(["a dog", "a cow"]) == ["a cow"]
    assert FeatureStore(tmp_path, BF16).missing_texts(["a cat"]) == ["a cat"]
    with pytest.raises(ValueError, match="text encoder gives NaN or Inf"):
        store.write_texts(["x"], TextEmbeddings(torch.full((1, 3), torch.nan), 1.0))


CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def draw_images(folder, count, seed=0):
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")


def save_encoder(folder, seed):
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {"size": 16}}))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")


class Lab:
    """A tiny CLIP, its images, and what was asked of it."""

    def __init__(self, root, monkeypatch):
        self.root, self.asked = root, []
        for place, count in {"id/cat": 6, "id/dog": 5, "other": 3}.items():
            draw_images(root / "data" / place, count, seed=count)
        save_encoder(root / "clip", seed=0)
        for kind in ("encode_image", "encode_text"):
            original = getattr(OpenClipBackbone, kind)
            monkeypatch.setattr(OpenClipBackbone, kind, self._watched(kind, original))

    def _watched(self, kind, original):
        def encode(backbone, batch):
            self.asked.append((kind, len(batch)))
            return original(backbone, batch)

        return encode

    def load(self, *changes, **where):
        """Features by set, read whole, with `changes` to the config, and the texts."""
        features, text = self.open(*changes, **where)
        return {name: each.features.take(torch.arange(len(each.valid))) for name, each in features.items()}, text

    def open(self, *changes, store="features", precision="32-true"):
        path = self.root / "tiny.yaml"
        path.write_text(
            f"""
data: {{root: {self.root}/data, id: id, ood: {{other: other}}, batch_size: 64, prompts: ["a {{}}."]}}
backbone: {{model: "local-dir:{self.root}/clip"}}
method: {{zero_shot: {{}}}}
features_root: {self.root}/{store}
"""
        )
        config = load_config(str(path), list(changes))
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = Trainer(accelerator="cpu", devices=1, precision=precision, **off)
        self.asked.clear()
        benchmark = load_benchmark(config)
        features, text = load_features(config, benchmark, trainer, self.root)
        return {benchmark.images[key].name: each for key, each in features.items()}, text


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


@pytest.fixture
def many(tmp_path):
    """300 images, so many that a run is met in the midst of them."""
    draw_images(tmp_path / "data" / "id", 300)
    return tmp_path


def start(root, name, store, *options, **variables):
    path = root / f"{name}.yaml"
    path.write_text(
        f"""
data: {{root: {root}/data, id: id, batch_size: 8}}
backbone: {{library: timm, model: test_vit}}
method: {{zero_shot: {{}}}}
detectors: [knn]
evaluation: {{resamples: 0, figures: false, report: false}}
runs_root: {root}/runs
features_root: {root}/{store}
trainer: {{accelerator: cpu, devices: 1, enable_progress_bar: false}}
"""
    )
    command = [
        sys.executable,
        str(PROJECT / "tests" / "small_parts.py"),
        "eval",
        "--config",
        str(path),
        "--overwrite",
        *options,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process):
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output


def segments(folder):
    return sorted(folder.glob("*/images/*.safetensors"))


def entries(store):
    """Every image of a store: identity -> the bytes of its arrays."""
    found = {}
    for folder in store.glob("*/images"):
        for segment in Entries(folder).segments:
            for row, identity in enumerate(segment.identities.tolist()):
                values = {name: array[row].contiguous().numpy().tobytes() for name, array in segment.arrays.items()}
                assert found.setdefault(tuple(identity), values) == values
    return found


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_a_killed_run_goes_on_with_any_number_of_processes(many, devices):
    finish(start(many, "whole", "whole"))
    killed = start(many, "killed", "store")
    while not segments(many / "store") and killed.poll() is None:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    there = entries(many / "store")
    assert 0 < len(there) < 300
    finish(start(many, "killed", "store", f"--trainer.devices={devices}", "--trainer.strategy=ddp"))
    assert entries(many / "store") == entries(many / "whole") and len(entries(many / "whole")) == 300
    assert not list((many / "store").rglob("*.tmp"))


@pytest.mark.parametrize("step", [1, 2, 3, 4, 8, 13, 37, 38, 39, 40, 41, 42, 60])
def test_a_kill_at_any_write_loses_nothing(few, step):
    """Before a file is synced, renamed, removed: of parts, of what files were found to hold, of merged segments. The run goes on
    with 1, 2 or 3 processes."""
    killed = start(few, "killed", "store", KILL_AT=str(step))
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    devices = 1 + step % 3
    finish(start(few, "killed", "store", f"--trainer.devices={devices}", "--trainer.strategy=ddp"))
    assert entries(few / "store") == entries(few / "whole") and len(entries(few / "whole")) == 90


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """90 images and a store that holds them, made without a kill."""
    root = tmp_path_factory.mktemp("few")
    draw_images(root / "data" / "id", 90)
    finish(start(root, "whole", "whole"))
    return root


@pytest.fixture(autouse=True)
def no_store(request):
    yield
    if "few" in request.fixturenames:
        shutil.rmtree(request.getfixturevalue("few") / "store", ignore_errors=True)


def test_two_runs_on_one_store_agree(many):
    for process in [start(many, "first", "shared"), start(many, "second", "shared")]:
        finish(process)
    finish(start(many, "alone", "store"))
    assert entries(many / "shared") == entries(many / "store")
    tables = [(many / "runs" / name / "scores.parquet").read_bytes() for name in ("alone", "first", "second")]
    assert tables[0] == tables[1] == tables[2]


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
    monkeypatch.setattr(image_list, "is_vague", lambda state: True)
    monkeypatch.setattr(
        image_list, "stamp", lambda path, state, *inside: identity_of(path, str(state.st_size), str(state.st_mtime_ns))
    )
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

    monkeypatch.setattr(sources.os, "fstat", fstat)
    content, state = sources.read_whole(path)
    assert content == b"after that" and state.st_size == 10 and len(states) == 4
    monkeypatch.setattr(
        sources.os,
        "fstat",
        lambda descriptor: SimpleNamespace(st_size=6, st_mtime_ns=time.monotonic_ns(), st_ctime_ns=0, st_ino=0),
    )
    with pytest.raises(OSError, match="the file changes while it is read"):
        sources.read_whole(path)


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
    files = Entries(lab.root / "features" / "files")
    identities = files.segments[0].identities
    wrong = torch.from_numpy(np.full((len(identities), 2), 7))
    files.remove(identities)
    files.add(identities, {"identity": wrong}, name="0")
    for _ in range(2):
        after, _ = lab.load()
        assert not lab.asked and all(torch.equal(after[name], before[name]) for name in before)
    assert (
        not files.refresh() and not (files.rows(identities, "identity").take(torch.arange(len(identities))) == 7).any()
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
    assert (
        "older version (1 encoders), which are not read: python -m clip_ood.features remove --old"
        in capsys.readouterr().out
    )
