"""The feature store: whole chunks only, the right images only, mapped when read; runs that are killed or meet in it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from clip_ood.backbones.open_clip_backbone import OpenClipBackbone
from clip_ood.features import store as store_module
from clip_ood.features.rows import Rows
from clip_ood.features.store import FeatureStore, StoreError, TextEmbeddings
from configs.errors import ConfigError
from configs.loading import load_config
from datamodules.benchmark import load_benchmark
from experiments.extraction import load_features

PROJECT = Path(__file__).parents[1]
FP32, BF16 = {"precision": "fp32", "model": "a"}, {"precision": "bf16", "model": "a"}
FILES = [(f"{index}.png", 100, index) for index in range(10)]  # chunks of 4, 4 and 2


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK", 4)


def fill(place, features=None, embeddings=None, errors=None):
    """Writes all chunks of a set; `errors` by chunk."""
    features = torch.randn(place.count, 3) if features is None else features
    for chunk in place.chunks:
        rows = slice(place.rows(chunk).start, place.rows(chunk).stop)
        h = None if embeddings is None else embeddings[rows]
        place.write(chunk, features[rows].clone(), h, (errors or {}).get(chunk, {}))
    return features


@pytest.mark.parametrize("indices", [[], [5], [9, 0, 4, 3], [2, 2, 7, 2], list(range(10))], ids=str)
@pytest.mark.parametrize("sizes", [(10,), (4, 4, 2), (1,) * 10], ids=str)
def test_take_is_indexing(sizes, indices):
    whole = torch.randn(10, 3)
    rows = Rows(whole.split(sizes))
    assert len(rows) == 10 and rows.width == 3
    indices = torch.tensor(indices, dtype=torch.long)
    assert torch.equal(rows.take(indices), whole[indices])


@pytest.mark.parametrize(("fingerprint", "dtype"), [(FP32, torch.float32), (BF16, torch.float16)], ids=["fp32", "bf16"])
def test_what_is_written_is_what_is_opened(tmp_path, small, fingerprint, dtype):
    place = FeatureStore(tmp_path, fingerprint).image_set("cats", FILES)
    assert place.pending() == [0, 1, 2]
    embeddings = torch.randn(10, 2)
    features = fill(place, embeddings=embeddings)
    assert place.pending() == []
    found = place.open()
    assert torch.equal(found.features.take(torch.arange(10)), features.to(dtype))
    assert torch.equal(found.embeddings.take(torch.arange(10)), embeddings.to(dtype))
    assert found.valid.all() and place.errors == {}


def test_unreadable_rows_are_masked_and_say_why(tmp_path, small):
    place = FeatureStore(tmp_path, FP32).image_set("cats", FILES)
    features = torch.randn(10, 3)
    features[6] = torch.nan  # whatever an encoder says of a blank image
    fill(place, features, errors={0: {1: "OSError: torn"}, 1: {2: "ValueError: no picture"}})
    found = place.open()
    assert [row for row, valid in enumerate(found.valid.tolist()) if not valid] == [1, 6]
    assert place.errors == {1: "OSError: torn", 6: "ValueError: no picture"}
    assert not found.features.take(torch.tensor([1, 6])).any()


@pytest.mark.parametrize(
    ("fingerprint", "value"), [(FP32, torch.nan), (FP32, -torch.inf), (BF16, 1e5)], ids=["nan", "inf", "above float16"]
)
@pytest.mark.parametrize("part", ["features", "embeddings"])
def test_features_that_are_not_finite_are_an_error(tmp_path, small, fingerprint, value, part):
    place = FeatureStore(tmp_path, fingerprint).image_set("cats", FILES)
    values = {"features": torch.randn(4, 3), "embeddings": torch.randn(4, 3)}
    values[part][1:3, 0] = value
    with pytest.raises(ValueError, match=r"Image set cats: 2 of the images 4–7 .* Try backbone.precision=fp32"):
        place.write(1, values["features"], values["embeddings"], {})
    assert 1 in place.pending()


def truncate(path, other):
    path.write_bytes(path.read_bytes()[:-5])


def empty(path, other):
    path.write_bytes(b"")


def of_another_set(path, other):
    shutil.copy(other / path.name, path)


def of_another_place(path, other):
    shutil.copy(path.with_name("chunk-00000.safetensors"), path)


@pytest.mark.parametrize("damage", [truncate, empty, of_another_set, of_another_place])
def test_a_wrong_chunk_is_named_never_used_and_made_again(tmp_path, small, damage):
    store = FeatureStore(tmp_path, FP32)
    place, other = store.image_set("cats", FILES), store.image_set("dogs", FILES[::-1])
    features = fill(place)
    fill(other)
    path = place.folder / "chunk-00001.safetensors"
    damage(path, other.folder)
    with pytest.raises(StoreError, match=r"chunk-00001.safetensors .* delete it to have it made again"):
        place.open()
    path.unlink()
    assert place.pending() == [1]
    with pytest.raises(FileNotFoundError, match="cats: 1 of 3 chunks"):
        place.open()
    place.write(1, features[4:8], None, {})
    assert torch.equal(place.open().features.take(torch.arange(10)), features)


@pytest.mark.parametrize("limit", [64, 100_000])
def test_a_full_disk_is_an_error_that_leaves_nothing_behind(tmp_path, small, limit):
    place = FeatureStore(tmp_path, FP32).image_set("cats", FILES)
    fill(place, torch.randn(10, 3))
    (place.folder / "chunk-00002.safetensors").unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # no file may grow beyond
    try:
        with pytest.raises((StoreError, OSError), match=r"chunk-00002.safetensors cannot be written"):
            place.write(2, torch.randn(2, 50_000), None, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert place.pending() == [2] and not list(place.folder.glob("*.tmp"))


def test_leftovers_of_a_killed_run_go_and_those_of_a_running_one_stay(tmp_path, small):
    store = FeatureStore(tmp_path, FP32)
    place = store.image_set("cats", FILES)
    fill(place)
    left, running = (place.folder / f"chunk-00001.safetensors.{name}.tmp" for name in ("left", "running"))
    for file in (left, running):
        file.write_bytes(b"half")
    os.utime(left, (time.time() - 4000,) * 2)
    assert store.image_set("cats", FILES).pending() == []
    assert running.exists() and not left.exists()
    assert len(place.open().valid) == 10


def resident():
    """Bytes of this process that are in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read memory from")
def test_opening_maps(tmp_path):
    width = 75_000
    place = FeatureStore(tmp_path, FP32).image_set("large", FILES[:1] * 1024)
    size = 1024 * width * 4  # 307 MB, sparse
    about = {"encoder": place.identity["encoder"], "files": place.identity["files"], "chunk": 0, "errors": {}}
    header = {
        "__metadata__": {"about": json.dumps(about)},
        "features": {"dtype": "F32", "shape": [1024, width], "data_offsets": [0, size]},
        "valid": {"dtype": "BOOL", "shape": [1024], "data_offsets": [size, size + 1024]},
    }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    place.folder.mkdir(parents=True)
    with (place.folder / "chunk-00000.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + size + 1024)
    before = resident()
    features = place.open().features
    taken = features.take(torch.tensor([1000, 3]))
    assert taken.shape == (2, width) and not taken.any()
    assert resident() - before < 30e6


def test_text_embeddings_are_those_of_exactly_these_strings_in_this_order(tmp_path):
    store = FeatureStore(tmp_path, FP32)
    embeddings = torch.randn(2, 3)
    assert store.texts(["a cat", "a dog"]) is None
    store.write_texts(["a cat", "a dog"], TextEmbeddings(embeddings, 1 / 0.07))
    found = store.texts(["a cat", "a dog"])
    assert torch.equal(found.embeddings, embeddings) and found.logit_scale == 1 / 0.07
    assert store.texts(["a dog", "a cat"]) is None and store.texts(["a cat"]) is None
    assert FeatureStore(tmp_path, BF16).texts(["a cat", "a dog"]) is None
    (path,) = tmp_path.rglob("text/*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="delete it to have it made again"):
        store.texts(["a cat", "a dog"])
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

    def load(self, *changes, store="features", precision="32-true"):
        """Features by set, read whole, with `changes` to the config."""
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
        features, text = load_features(config, load_benchmark(config), trainer, self.root)
        everything = {name: each.features.take(torch.arange(len(each.valid))) for name, each in features.items()}
        return everything, text


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return Lab(tmp_path, monkeypatch)


def touch(lab):
    os.utime(lab.root / "data/other/001.png", (1, 1))


def replace_image(lab):
    draw_images(lab.root / "data/other", 3, seed=99)


def add_image(lab):
    draw_images(lab.root / "data/other", 4, seed=3)


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
        (touch, [], [OTHER]),
        (replace_image, [], [OTHER]),
        (add_image, [], [("encode_image", 4)]),
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
    assert features["ood/other"].abs().sum(dim=1).all()


@pytest.fixture
def many(tmp_path):
    """300 images, so many that a run is met in the midst of them."""
    draw_images(tmp_path / "data" / "id", 300)
    return tmp_path


def start(root, name, store):
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
    command = [sys.executable, str(PROJECT / "tests" / "small_chunks.py"), "eval", "--config", str(path), "--overwrite"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process):
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output


def chunks(folder):
    return sorted(folder.rglob("chunk-*.safetensors"))


def test_a_killed_run_goes_on_and_two_runs_on_one_store_agree(many):
    killed = start(many, "killed", "store")
    while not chunks(many / "store") and killed.poll() is None:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    whole = {path: path.stat().st_mtime_ns for path in chunks(many / "store")}
    assert 0 < len(whole) < 19
    finish(start(many, "killed", "store"))
    assert len(chunks(many / "store")) == 19
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in whole.items())

    for process in [start(many, "first", "shared"), start(many, "second", "shared")]:
        finish(process)
    assert not list((many / "shared").rglob("*.tmp"))
    contents = [
        {path.relative_to(many / name): path.read_bytes() for path in chunks(many / name)}
        for name in ("store", "shared")
    ]
    assert contents[0] == contents[1]
    tables = [(many / "runs" / name / "scores.parquet").read_bytes() for name in ("killed", "first", "second")]
    assert tables[0] == tables[1] == tables[2]
