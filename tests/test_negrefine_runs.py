"""Whole runs of NegRefine on a tiny random CLIP: scores from open_clip alone, when the text tower is loaded, judging, export, refusals."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import open_clip
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from PIL import Image
from test_negrefine import naive

import detect
import eval as evaluation
from clip_ood import load
from clip_ood.detect.manifest import DetectorFolderError
from clip_ood.detect.saved import SavedDetector
from clip_ood.outputs import NegativeLabels, Outputs, Reference

pytestmark = pytest.mark.slow

WORDS = ["sea star", "iron gate", "paper boat", "old nail", "blue ring", "wet stone", "round table", "loud bell"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny_clip.make(tmp_path_factory.mktemp("negrefine"))
    (root / "words.txt").write_text("\n".join(WORDS))
    return root


def evaluated(root, name, *options, detectors=("negrefine", "neglabel", "mcm"), **keys):
    config = tiny_clip.config(root, name, {"zero_shot": {}}, detectors=list(detectors), **keys)
    words = [f"--data.negative_words={root}/words.txt", "--data.negative_choice=given", "--data.splits.val=0.2"]
    evaluation.main(["--config", config, *words, *options])
    return root / "runs" / name


@pytest.fixture(scope="module")
def run(root):
    return evaluated(root, "refined")


class OpenClip:
    """The text side of a model of open_clip."""

    def __init__(self, place):
        self.model, _, self.transform = open_clip.create_model_and_transforms(place)
        self.tokenize = open_clip.get_tokenizer(place)

    def encode_text(self, texts):
        return self.model.encode_text(self.tokenize(texts), normalize=True)


@torch.no_grad()
def test_scores_are_those_of_open_clip_and_the_formula(root, run, monkeypatch):
    clip = OpenClip(f"local-dir:{root}/clip")
    monkeypatch.setattr("test_negrefine.Tower", lambda: clip)
    nice = [clip.encode_text([f"the nice {name}" for name in names]) for names in (tiny_clip.CLASSES, WORDS)]
    scale = clip.model.logit_scale.exp().item()
    known = Reference(tiny_clip.CLASSES, logit_scale=scale, neglabel=NegativeLabels(*nice, tuple(WORDS)))
    table = pq.read_table(run / "scores.parquet").to_pylist()
    for row in table[::4]:
        folder = root / "data" / ("id" if row["role"] in ("id", "val") else row["set"])
        pixels = clip.transform(Image.open(folder / row["path"]).convert("RGB"))[None]
        h = clip.model.encode_image(pixels, normalize=True)
        assert row["negrefine"] == pytest.approx(naive(Outputs(embeddings=h), known)[0], abs=1e-4)
    assert len({round(row["negrefine"], 4) for row in table}) > len(table) / 2


def test_a_saved_detector_judges_images_as_the_run_did(root, run, tmp_path):
    with pytest.raises(SystemExit):
        detect.main(
            [
                "--run",
                str(run),
                str(root / "data/near"),
                "--detector=negrefine",
                "--accept=0.7",
                f"--out={tmp_path}/o.csv",
            ]
        )
    with (tmp_path / "o.csv").open() as file:
        judged = [float(row["score"]) for row in csv.DictReader(file)]
    scores = pq.read_table(run / "scores.parquet").to_pandas().query("set == 'near'")
    assert judged == pytest.approx(scores["negrefine"].tolist(), abs=1e-5)


def test_the_text_tower_is_loaded_only_where_it_is_asked(root, run, monkeypatch):
    def forbidden(spec, *_):
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr("clip_ood.experiments.models.create_backbone", forbidden)
    evaluated(root, "plain", detectors=["neglabel", "mcm"])  # all features are stored
    with pytest.raises(AssertionError, match="was loaded"):
        evaluated(root, "asking", detectors=["negrefine"])
    monkeypatch.undo()
    monkeypatch.setattr(SavedDetector, "_text_side", property(forbidden))
    load(run, "neglabel", accept=0.7)
    with pytest.raises(AssertionError, match="was loaded"):
        load(run, "negrefine", accept=0.7)
    assert SavedDetector(root / "runs/plain").manifest["texts"] is None


def test_a_graph_leaves_it_out_with_the_reason(run, tmp_path, capsys):
    detect.main(["--run", str(run), "--detector=negrefine,neglabel", "--accept=0.7", f"--export={tmp_path}/m.pt2"])
    told = "".join(capsys.readouterr())
    assert "reads new texts while it scores, which no graph holds" in told


def test_another_text_encoder_than_the_run_s_is_refused(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run / "detector", copy)
    saved = SavedDetector(copy)
    saved.manifest["texts"]["fingerprint"] = {**saved.texts.fingerprint, "weights": "others"}
    del saved.__dict__["texts"]
    with pytest.raises(DetectorFolderError, match="is not the encoder of"):
        saved.load_texts(["text_tower"])


def test_a_text_encoder_that_is_gone_is_told_with_the_way_out(root, run, tmp_path):
    saved = SavedDetector(run)
    spec = replace(saved.texts.spec, model=f"local-dir:{tmp_path}/gone")
    saved.__dict__["texts"] = replace(saved.texts, spec=spec)
    with pytest.raises(DetectorFolderError, match=r"The text encoder of .* reads no new texts \(--detector\)"):
        saved.load_texts(["text_tower"])


def test_an_encoder_of_images_leaves_it_out(root):
    folder = evaluated(
        root, "images", "--data.negative_words=null", detectors=["negrefine", "knn"],
        backbone={"library": "timm", "model": "test_vit", "pretrained": None},
    )  # fmt: skip
    (reason,) = [each for each in json.loads((folder / "results.json").read_text())["omitted"]]
    assert reason["detector"] == "negrefine" and "text encoder" in reason["reason"]
