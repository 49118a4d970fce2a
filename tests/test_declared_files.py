"""What a run's files hold is declared: a key of the wrong kind is named in one line, whichever file and key it is."""

from __future__ import annotations

import json
import shutil

import judged_run
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from safetensors.torch import load_file, save_file

from clip_ood import load
from clip_ood.backbones import fingerprint
from clip_ood.backbones.fingerprint import sha256
from clip_ood.callbacks.prediction_writer import PredictionParts
from clip_ood.detect.manifest import DetectorFolderError, sealed
from clip_ood.errors import ConfigError
from clip_ood.experiments.checkpoints import check_checkpoint
from clip_ood.experiments.resume import check_contents, check_images
from clip_ood.features.segment import StoreError, open_segment, write_segment
from clip_ood.features.upkeep import encoders
from clip_ood.files import download
from clip_ood.files.records import Count, Damaged, Record, Text, read_record
from clip_ood.report.compare import show
from clip_ood.runs.run_folder import read_results
from clip_ood.runs.seed_scores import SeedScores


class Known(Record):
    name: Text
    count: Count = 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"name": 3}', r"name is 3, and must be a text"),
        ('{"name": "a", "count": 1.5}', "count is 1.5, and must be a whole number"),
        ('{"name": "a", "count": true}', "count is true"),
        ('{"name": "a", "count": -1}', "count is -1, and must be greater than or equal to 0"),
        ('{"name": "a", "count": NaN}', "count is NaN"),
        ('{"count": 1}', "the key name is missing"),
        ('{"name": "a\\u0000"}', "name holds a NUL character"),
        ('{"name": "\\udc80"}', "name holds bytes that are no UTF-8"),
        ('{"name": "a", "name": "b"}', "the key 'name' stands twice"),
        ("[]", r"it is \[\], and must be a mapping"),
        ("", "Expecting value"),
        ("[" * 100_000, "too deep in each other"),
        ('{"name": "a", "count": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ],
)
def test_a_declared_file_names_the_key_that_does_not_fit(content, told, tmp_path):
    (tmp_path / "known.json").write_text(content)
    with pytest.raises(Damaged, match=told) as error:
        read_record(tmp_path / "known.json", Known)
    assert str(error.value).startswith(f"{tmp_path / 'known.json'} is damaged (") and len(str(error.value)) < 400


def test_keys_of_other_versions_are_passed_on(tmp_path):
    (tmp_path / "known.json").write_text('{"name": "a", "further": [1]}')
    assert read_record(tmp_path / "known.json", Known) == {"name": "a", "further": [1]}


# A run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return judged_run.make(tiny_clip.make(tmp_path_factory.mktemp("declared")), "probe")


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "probe")


def rewrite(path, change):
    content = json.loads(path.read_text())
    content = change(content) or content
    path.write_text(json.dumps(content))


RESULTS = {
    "a key is gone": lambda content: content.pop("notes") and None,
    "no seeds": lambda content: content.update(seeds=[]),
    "rows of texts": lambda content: content.update(rows=["a"]),
    "an AUROC of text": lambda content: content["rows"][0].update(auroc="high"),
    "an AUROC of 3": lambda content: content["rows"][0].update(auroc=3.0),
    "NaN": lambda content: content["rows"][0].update(fpr95=float("nan")),
    "an interval of one number": lambda content: content["rows"][0].update(intervals={"auroc": [0.5]}),
    "a row is gone": lambda content: content["rows"].pop() and None,
    "a row twice": lambda content: content["rows"].append(content["rows"][0]),
    "a bank of text": lambda content: content.update(bank="all"),
    "a split without training images": lambda content: content["split"].update(train=0),
    "a predictor of nothing": lambda content: content["predictor"].update(by="other"),
    "a calibration of text": lambda content: content.update(calibration="good"),
    "versions of numbers": lambda content: content.update(versions={"torch": 2.1}),
}


@pytest.mark.parametrize("wrong", RESULTS)
def test_wrong_results(wrong, run, finished):
    rewrite(run / "results.json", RESULTS[wrong])
    for read in (lambda: read_results(run), lambda: show([str(finished), str(run)])):
        with pytest.raises(
            ConfigError, match=r"results\.json is damaged \(.*Remove the results\.json.*--resume"
        ) as error:
            read()
        assert "\n" not in str(error.value)


def test_wrong_images_and_contents(run):
    rewrite(run / "images.json", lambda content: content["train"].update(images="many"))
    with pytest.raises(ConfigError, match=r"images\.json is damaged \(train.images is .many.*--overwrite"):
        check_images(run, None)
    rewrite(run / "contents.json", lambda content: content.update(train=3))
    with pytest.raises(ConfigError, match=r"contents\.json is damaged \(train is 3.*--overwrite"):
        check_contents(run, {})


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("path", None, "no column 'path'"),
        ("path", 3, "'path' is of the type int64"),
        ("set", None, "no column 'set'"),
        ("role", "ood", "none has ID images"),
        ("knn", "high", "'knn' holds other things than finite scores"),
        ("knn", float("nan"), "'knn' holds other things than finite scores"),
    ],
)
def test_wrong_scores(column, values, told, run):
    table = pq.read_table(run / "scores.parquet")
    place = table.column_names.index(column)
    table = table.remove_column(place)
    if values is not None:
        table = table.add_column(place, column, pa.array([values] * len(table)))
    pq.write_table(table, run / "scores.parquet")
    with pytest.raises(ConfigError, match=rf"scores\.parquet is damaged \(.*{told}.*Remove the results\.json"):
        SeedScores(run, {})


def test_scores_that_are_no_parquet(run):
    (run / "scores.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(ConfigError, match=r"scores\.parquet is damaged"):
        SeedScores(run, {})


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.update(epoch="1"),
        lambda held: held.update(state_dict=[]),
        lambda held: held.update(class_names=None),
        lambda held: held.update(class_names=["cat", "dog"]),
        lambda held: held.pop("optimizer_states"),
        lambda held: held["state_dict"].pop("head.mean"),
        lambda held: held["state_dict"].update({"head.mean": torch.zeros(3)}),
    ],
)
def test_wrong_checkpoints(change, run):
    path = run / "checkpoints" / "last.ckpt"
    held = torch.load(path, weights_only=True)
    change(held)
    torch.save(held, path)
    with pytest.raises(ConfigError, match=r"last\.ckpt is damaged \(.*Remove it"):
        check_checkpoint(path)


def test_an_encoder_of_the_store_that_nobody_can_read(tmp_path):
    (tmp_path / "abc").mkdir()
    for content in ("{", "[]", '{"library": 3}'):
        (tmp_path / "abc" / "encoder.json").write_text(content)
        assert "damaged" in encoders(tmp_path)[0].title


# A detector's folder

MANIFESTS = {
    "batch_size": [None, "8", 0, 1.5, 10**20, [8]],
    "class_names": ["cat", [1], {}, ["a\0b", "b", "c"], ["cat", "dog"]],
    "logit_scale": ["10", [], float("nan")],
    "detectors": [None, {}, [3], [{}], [{"column": "knn", "spec": {}, "notes": []}], [{"column": "knn", "spec": [], "notes": []}]],
    "omitted": [None, "none", [{"detector": "a"}]],
    "predictor": ["knn", {}, {"by": "knn", "accuracy": {}, "images": 1}, {"by": "other", "accuracy": {"other": 1}, "images": 1}],
    "accept": [None, "0.95", 0, 1, 2, True],
    "files": [None, [], {"a": 3}, {"": "a"}, {"a\0": "b"}],
    "encoder": [None, [], {}, "encoder"],
    "calibration": ["yes", {}, {"n": -1}],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in MANIFESTS.items() for value in values])
def test_wrong_manifests(key, value, run):
    rewrite(run / "detector" / "detector.json", lambda content: sealed(content | {key: value}))
    with pytest.raises(DetectorFolderError) as error:
        load(run, detector="all")
    assert str(run / "detector") in str(error.value) and "\n" not in str(error.value)


TENSORS = {
    "reference.weight": lambda tensor: tensor[:-1],
    "reference.bias": lambda tensor: tensor[None],
    "reference.text_embeddings": lambda tensor: tensor.T.contiguous(),
    "calibration.knn": lambda tensor: tensor.long(),
    "calibration.mcm": lambda tensor: tensor[:, None],
    "bank_labels": lambda tensor: tensor + 5,
    "detectors.mahalanobis.means": lambda tensor: tensor[:, :-1].contiguous(),
    "detectors.mahalanobis.norms": lambda tensor: tensor * float("nan"),
    "detectors.vim.alpha": lambda tensor: tensor.repeat(7),
}


@pytest.mark.parametrize("name", TENSORS)
def test_wrong_tensors(name, run):
    path = run / "detector" / "state.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: TENSORS[name](tensors[name])}, path)
    rewrite(
        run / "detector" / "detector.json",
        lambda content: sealed(content | {"files": content["files"] | {"state.safetensors": sha256(path)}}),
    )
    with pytest.raises(DetectorFolderError) as error:
        load(run, detector="all")
    assert str(run / "detector") in str(error.value) and "\n" not in str(error.value)


# Caches, stores and parts


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": 3}', "[" * 100_000, "3", "\udc80"])
def test_a_cache_of_hashes_that_nobody_can_read_is_made_again(content, tmp_path):
    (tmp_path / "hashes.json").write_text(content, errors="surrogateescape")
    assert fingerprint._remembered(tmp_path / "hashes.json") == {}


@pytest.mark.parametrize("content", ["[1]", "{", '{"total": "a", "version": null}', '{"total": -1}', "3", "\udc80"])
def test_notes_of_a_download_that_nobody_can_read_are_none(content, tmp_path):
    (tmp_path / "a.part.json").write_text(content, errors="surrogateescape")
    assert download._remembered(tmp_path / "a.part") is None


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"errors": []},
        {"errors": {}, "made_with": 3},
        {"errors": {"a": "b"}, "made_with": []},
        {"errors": {"0": 3}, "made_with": []},
    ],
)
def test_a_segment_that_does_not_say_what_it_is(about, tmp_path):
    write_segment(tmp_path / "a.safetensors", np.zeros((1, 2), np.uint64), {"valid": [torch.ones(1)]}, about)
    with pytest.raises(StoreError, match="is damaged"):
        open_segment(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["first", "second", "order", "valid"])
@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.zeros(())])
def test_a_segment_with_arrays_of_other_shapes(name, wrong, tmp_path):
    arrays = {key: torch.zeros(2, dtype=torch.int64) for key in ("first", "second", "order", "valid")} | {name: wrong}
    about = {"about": json.dumps({"errors": {}, "made_with": []})}
    save_file(arrays, tmp_path / "a.safetensors", about)
    if name == "valid" and len(wrong.shape) and len(wrong) == 2:
        assert len(open_segment(tmp_path / "a.safetensors")) == 2
        return
    with pytest.raises(StoreError, match="is damaged"):
        open_segment(tmp_path / "a.safetensors")


def test_a_changed_part_of_predictions_is_judged_again(tmp_path):
    parts = PredictionParts(tmp_path / "parts", "key")
    lines = [{"path": "a.png", "score": 1.25}, {"path": "b.png", "score": 2.5}]
    parts.keep(0, [], [json.dumps(line).encode() + b"\n" for line in lines])
    path = parts.path(0)
    assert parts.is_whole(0, []) and list(parts.read(1)) == lines
    whole = path.read_bytes()
    for content in (
        whole.replace(b"1.25", b"1.26"),
        whole[:-5],
        whole.splitlines()[0],
        b"[" * 100_000,
        b"\xff",
        b"3\n",
    ):
        path.write_bytes(content)
        assert not parts.is_whole(0, [])
