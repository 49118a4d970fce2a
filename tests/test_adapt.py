"""detect.py --adapt: scores of a stream in its order, and the memory in its file between calls."""

from __future__ import annotations

import io
import json

import judged_run
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from judged_run import judged, read
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import detect
from clip_ood import load
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import ConfigError, UserError
from clip_ood.stream.build import make
from clip_ood.stream.evaluation import score_stream
from clip_ood.stream.names import read_methods

pytestmark = pytest.mark.slow

WORDS = ["sea star", "iron gate", "paper boat", "old nail", "blue ring", "wet stone", "round table", "loud bell"]
NAMES = ("adaneg", "oodd", "clipscope")


def with_words(root, name, words):
    (root / f"{name}.txt").write_text("\n".join(words))
    keys = {"negative_words": f"{root}/{name}.txt", "negative_choice": "given"}
    evaluation = {"figures": False, "report": False, "stream": {"orders": 1}}
    return judged_run.make(root, name, "zero_shot", data=keys, detectors=["mcm"], evaluation=evaluation)


@pytest.fixture(scope="module")
def run(root):
    return with_words(root, "adapting", WORDS)


@pytest.fixture(scope="module")
def images(root):
    near = sorted((root / "data/near").glob("*.png"))
    known = sorted((root / "data/id").rglob("*.png"))[::5]
    return [each for pair in zip(near, known, strict=False) for each in pair]  # 2 · 9 or so


def scored(run, images, name, memory, out, *options):
    judged("--run", run, *images, "--adapt", name, "--memory", memory, "--out", out, *options)
    return read(out)


def test_paths_without_an_image_make_no_memory(run, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.odt").touch()
    (tmp_path / "none.txt").touch()
    memory = tmp_path / "memory.safetensors"
    for number, path in enumerate(("empty", "none.txt")):
        with pytest.raises(UserError, match=f"{path}: no image that can be read is there"):
            scored(run, [tmp_path / path], "oodd", memory, tmp_path / f"{number}.csv")
        assert not (tmp_path / f"{number}.csv").exists()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b""))))
    with pytest.raises(UserError, match="-: no image that can be read is there"):
        scored(run, ["-"], "oodd", memory, tmp_path / "scores.csv")
    assert not memory.exists()


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_method_on_the_run_s_embeddings(run, images, name, tmp_path):
    rows = scored(run, images, name, tmp_path / "m.safetensors", tmp_path / "o.csv", "--batch-size=4")
    predictor = load(run)
    pixels = [predictor.backbone.transform(picture) for picture in map(opened, images)]
    embeddings = predictor.outputs(torch.stack(pixels)).embeddings
    method = make(read_methods([name])[0], SavedDetector(run).reference)
    expected = score_stream(method, embeddings.float(), 4)
    assert [row["path"] for row in rows] == list(map(str, images))
    assert [float(row["score"]) for row in rows] == pytest.approx(expected.tolist(), abs=1e-4)
    assert np.std([float(row["score"]) for row in rows]) > 1e-4


def opened(path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def test_nothing_is_decided_and_a_column_says_that_it_adapts(run, images, tmp_path):
    rows = scored(run, images, "oodd", tmp_path / "m.safetensors", tmp_path / "o.csv", "--batch-size=4")
    assert {(row["is_ood"], row["p_value"], row["detector"]) for row in rows} == {("", "", "oodd")}
    assert [int(row["adapted_on"]) for row in rows] == list(range(len(images)))
    assert {row["predicted_class"] for row in rows} <= set(tiny_clip.CLASSES)


@pytest.mark.parametrize("name", NAMES)
def test_two_calls_with_one_memory_are_one(run, images, name, tmp_path):
    whole = scored(run, images, name, tmp_path / "w.safetensors", tmp_path / "w.csv", "--batch-size=4")
    memory = tmp_path / "m.safetensors"
    first = scored(run, images[:8], name, memory, tmp_path / "1.csv", "--batch-size=4")
    second = scored(run, images[8:], name, memory, tmp_path / "2.csv", "--batch-size=4")
    assert [each["score"] for each in first + second] == [each["score"] for each in whole]
    assert [each["adapted_on"] for each in first + second] == [each["adapted_on"] for each in whole]
    assert memory.read_bytes() == (tmp_path / "w.safetensors").read_bytes()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_other_formats_say_the_same(run, images, suffix, tmp_path):
    rows = scored(run, images, "oodd", tmp_path / "c.safetensors", tmp_path / "o.csv")
    out = tmp_path / f"o.{suffix}"
    judged("--run", run, *images, "--adapt", "oodd", "--memory", tmp_path / "m.safetensors", "--out", out)
    lines = pq.read_table(out).to_pylist() if suffix == "parquet" else map(json.loads, out.read_text().splitlines())
    for line, row in zip(lines, rows, strict=True):
        assert (line["is_ood"], line["p_value"], line["adapted_on"]) == (None, None, int(row["adapted_on"]))
        assert line["score"] == pytest.approx(float(row["score"]), abs=1e-6)


def test_printed_scores_end_with_what_was_done(run, images, tmp_path, capsys):
    memory = tmp_path / "m.safetensors"
    for seen in (0, 3):
        judged("--run", run, *images[:3], "--adapt", "clipscope", "--memory", memory)
        told = capsys.readouterr()
        assert len(told.out.splitlines()) == 4 and f"after {seen:,} earlier ones" in told.err
        assert "None is accepted or rejected" in told.err and str(memory) in told.err


def test_a_call_that_fails_leaves_the_memory_as_it_was(run, images, tmp_path, monkeypatch):
    memory = tmp_path / "m.safetensors"
    scored(run, images[:4], "oodd", memory, tmp_path / "1.csv")
    before = memory.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clip_ood.detect.prediction_files.CSVFile.write", full)
    with pytest.raises((OSError, SystemExit)):
        detect.main(
            ["--run", str(run), str(images[5]), "--adapt=oodd", f"--memory={memory}", f"--out={tmp_path}/2.csv"]
        )
    assert memory.read_bytes() == before


def test_a_link_stays_one_and_its_file_is_gone_on_from(run, images, tmp_path):
    memory, link = tmp_path / "m.safetensors", tmp_path / "link.safetensors"
    scored(run, images[:3], "oodd", memory, tmp_path / "a.csv")
    link.symlink_to(memory)
    assert [row["adapted_on"] for row in scored(run, images[3:5], "oodd", link, tmp_path / "b.csv")] == ["3", "4"]
    assert link.is_symlink()
    assert [row["adapted_on"] for row in scored(run, images[5:6], "oodd", memory, tmp_path / "c.csv")] == ["5"]
    memory.unlink()
    assert "is a link to a file that is not there" in asked(run, images[0], "oodd", link)


def test_nothing_is_pickled(run, images, tmp_path):
    memory = tmp_path / "m.safetensors"
    scored(run, images, "adaneg", memory, tmp_path / "o.csv")
    with safe_open(memory, "pt") as file:
        header = json.loads(file.metadata()["memory"])
    assert (header["method"], header["seen"], header["format"]) == ("adaneg", len(images), 1)
    assert set(load_file(memory)) == {"embeddings", "entropies", "labels"}


def asked(run, image, name, memory):
    with pytest.raises((UserError, SystemExit)) as ended:
        detect.main(["--run", str(run), str(image), "--adapt", name, "--memory", str(memory)])
    return str(ended.value)


def test_a_memory_that_is_not_ours_is_refused(root, run, images, tmp_path):
    memory = tmp_path / "m.safetensors"
    scored(run, images, "oodd", memory, tmp_path / "o.csv")
    content, tensors = memory.read_bytes(), load_file(memory)
    with safe_open(memory, "pt") as file:
        metadata = file.metadata()
    assert "is the memory of oodd, and not of clipscope" in asked(run, images[0], "clipscope", memory)
    other = judged_run.make(
        root,
        "fewer",
        "zero_shot",
        data={"id": {"images": {"folder": "id", "keep_classes": ["cat", "dog"]}}},
        detectors=["mcm"],
    )
    assert "of another detector" in asked(other, images[0], "oodd", memory)
    for wrong in (content[:-9], b"", b"{}" * 40):
        memory.write_bytes(wrong)
        assert "is damaged, or no file" in asked(run, images[0], "oodd", memory)
    memory.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "not what was written" in asked(run, images[0], "oodd", memory)
    save_file(tensors, memory)
    assert "is damaged, or no file" in asked(run, images[0], "oodd", memory)
    save_file(tensors, memory, metadata | {"memory": metadata["memory"].replace('"seen": ', '"seen": -')})
    assert "is damaged, or no file" in asked(run, images[0], "oodd", memory)
    assert memory.read_bytes() != content  # a refused file is left alone


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--adapt=adanag", "--memory=m.safetensors"], "nearest: adaneg"),
        (["--adapt=knn", "--memory=m.safetensors"], "does not learn from the images"),
        (["--adapt=oodd"], "go together"),
        (["--memory=m.safetensors"], "go together"),
        (["--adapt=oodd", "--memory=m.pt"], "must end with .safetensors"),
        (["--adapt=oodd", "--memory=nowhere/m.safetensors"], "no folder nowhere"),
        (["--adapt=oodd", f"--memory={'m' * 210}.safetensors"], "is too long by 4 bytes"),
        (["--adapt=oodd", "--memory=m.safetensors", "--accept=0.9"], "leave --accept out"),
        (["--adapt=oodd", "--memory=m.safetensors", "--fdr=0.1"], "leave --fdr out"),
        (["--adapt=oodd", "--memory=m.safetensors", "--detector=knn"], "leave --detector out"),
        (["--adapt=oodd", "--memory=m.safetensors", "--fail-on-ood"], "leave --fail-on-ood out"),
    ],
)
def test_options_that_do_not_go_together(run, images, options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, UserError, SystemExit), match=told):
        detect.main(["--run", str(run), str(images[0]), *options])
    assert not list(tmp_path.iterdir())


def test_a_run_without_words_says_what_is_missing(root, images, tmp_path):
    bare = judged_run.make(root, "bare", "zero_shot", detectors=["knn", "mcm"])
    assert "clipscope needs negative words" in asked(bare, images[0], "clipscope", tmp_path / "m.safetensors")
    assert scored(bare, images, "oodd", tmp_path / "m.safetensors", tmp_path / "o.csv")


def test_several_processes_are_refused(run, images, tmp_path, monkeypatch):
    class Two:
        world_size = 2

    monkeypatch.setattr("clip_ood.experiments.detect.judging_trainer", lambda request: Two())
    assert "there are 2 processes" in asked(run, images[0], "oodd", tmp_path / "m.safetensors")
