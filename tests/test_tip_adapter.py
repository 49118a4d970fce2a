"""Tip-Adapter: its logits against the formula and the authors' lines, draws, classes without images, runs, folders and processes."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import forked
import judged_run
import pytest
import tiny_clip
import torch
from PIL import Image
from tiny_clip import PROJECT
from torch.nn.functional import normalize, one_hot

import eval as evaluation
from clip_ood import load
from clip_ood.backbones.spec import ImageSpec
from clip_ood.config.method_schema import TipAdapter as Settings
from clip_ood.detect.manifest import MANIFEST, STATE
from clip_ood.detect.save import hashes, save_detector, seal
from clip_ood.detect.saved import SavedDetector
from clip_ood.detect.saved_encoder import Encoder
from clip_ood.errors import UserError
from clip_ood.evaluation import DetectorSuite
from clip_ood.experiments.commands import recalibrate
from clip_ood.experiments.exporting import export_run
from clip_ood.features.rows import Rows
from clip_ood.files.tensor_files import save_tensors
from clip_ood.head import cache_logits
from clip_ood.lightning_modules.linear_probe import few_shot
from clip_ood.lightning_modules.tip_adapter import TipAdapter
from clip_ood.model import ReferenceHead
from clip_ood.outputs import Cache, Outputs

METHOD = {"tip_adapter": {"per_class": 4}}
DETECTORS = ["msp", "max_logit", "energy", "gen", "mcm", "knn"]


def random(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 5.5), (0.0, 5.5), (3.0, 0.0), (0.5, 50.0)])
@pytest.mark.parametrize("keys", [1, 3, 4096])
def test_logits_are_those_of_the_formula_and_of_the_authors(alpha, beta, keys, monkeypatch):
    monkeypatch.setattr("clip_ood.head.KEYS", keys)
    h, text, cache = random(7, 8), random(3, 8, seed=1), random(5, 8, seed=2)
    labels = torch.tensor([0, 2, 2, 0, 2])  # none of class 1
    found = cache_logits(h, text, 100.0, Cache(cache, labels, alpha, beta))
    naive = [
        [
            100 * float(image.double() @ name.double())
            + alpha * sum(math.exp(-beta * (1 - float(image.double() @ f.double()))) for f in cache[labels == number])
            for number, name in enumerate(text)
        ]
        for image in h
    ]
    torch.testing.assert_close(found.double(), torch.tensor(naive, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    affinity = h @ cache.T  # main_imagenet.py of gaopengcuhk/Tip-Adapter
    authors = 100.0 * h @ text.T + ((-1) * (beta - beta * affinity)).exp() @ one_hot(labels, 3).float() * alpha
    torch.testing.assert_close(found, authors, rtol=1e-5, atol=1e-5)


def adapter(labels, per_class=2, **keys):
    stored = SimpleNamespace(embeddings=Rows((random(len(labels), 8),)))
    table = SimpleNamespace(stored=stored, rows=torch.arange(len(labels)), labels=torch.tensor(labels))
    classes = {"class_names": ("a", "b", "c"), "text_embeddings": random(3, 8, seed=1), "logit_scale": 10.0}
    return TipAdapter(Settings(per_class=per_class, **keys), table, 3, **classes)


def test_the_draw_is_that_of_a_probe_and_a_class_may_have_one_image_or_none():
    labels = [0, 0, 0, 1, -1]
    module = adapter(labels)
    drawn = few_shot(torch.tensor(labels), 2, 3)
    assert torch.equal(module.cache, random(5, 8)[drawn >= 0]) and module.cache_labels.tolist() == [0, 0, 1]
    assert module.trained_on == {"images": 3, "classes": 2, "fewest": 1, "most": 2}
    h = random(4, 8, seed=9)
    logits = module.outputs(Outputs(embeddings=h)).logits
    torch.testing.assert_close(logits[:, 2], 10 * h @ module.text_embeddings[2])
    assert (logits[:, :2] > 10 * h @ module.text_embeddings[:2].T).all()
    assert len(adapter(labels, None).cache) == 4


def test_without_a_label_it_is_refused():
    with pytest.raises(UserError, match="none of those that can be read has a label"):
        adapter([-1, -1])


@pytest.fixture(scope="module")
def run(root):
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near"}, "splits": judged_run.SPLITS, "batch_size": 8}
    evaluation.main(["--config", tiny_clip.config(root, "tip", METHOD, detectors=DETECTORS, data=data)])
    return root / "runs" / "tip"


def test_a_run_scores_its_logits_and_leaves_out_what_needs_a_linear_head(root, run):
    results = tiny_clip.results(run)
    assert list(dict.fromkeys(row["detector"] for row in results["rows"])) == DETECTORS
    assert results["trained_on"] == {"images": 12, "classes": 3, "fewest": 4, "most": 4}
    evaluation.main(["--config", tiny_clip.config(root, "vim", METHOD, detectors=["vim", "msp"])])
    reasons = {each["detector"]: each["reason"] for each in tiny_clip.results(root / "runs" / "vim")["omitted"]}
    assert reasons == {"vim": "needs the weights of a linear head: this run trains none"}


def test_a_folder_gives_the_logits_of_the_run_bit_for_bit_in_batches_of_any_size(tmp_path):
    module = adapter([0, 0, 2, 2, 2, -1], alpha=0.3, beta=7.1)
    suite = DetectorSuite(module.reference(), ["max_logit"])
    rows = Outputs(random(37, 6), random(37, 8, seed=5))
    suite.update(replace(module.outputs(rows), indices=torch.arange(37)))
    suite.fit()
    encoder = Encoder(ImageSpec("timm", "test_vit"), {"library": "timm"}, "float32")
    save_detector(tmp_path, encoder, suite.reference, suite.detectors, suite.omitted, None, {"batch_size": 4}, 0.95)
    saved = SavedDetector(tmp_path)
    head = ReferenceHead(saved.reference)
    whole = module.outputs(rows).logits
    parts = [head(rows.map(lambda value, i=i: value[i : i + 1])) for i in range(37)]
    assert torch.equal(torch.cat([each.logits for each in parts]), whole)
    assert torch.equal(
        saved.detector("max_logit").score(head(rows)), suite.detectors["max_logit"].score(module.outputs(rows))
    )


def test_a_folder_holds_every_detector_and_the_cache(run):
    saved = SavedDetector(run)
    assert saved.columns == DETECTORS and saved.manifest["omitted"] == []
    cache = saved.reference.cache
    assert cache.keys.dtype == torch.float32 and len(cache.keys) == len(cache.values) == 12
    assert (cache.alpha, cache.beta) == (1.0, 5.5)


def test_judging_gives_the_classes_and_scores_of_the_run_bit_for_bit(root, run):
    results = tiny_clip.results(run)
    assert results["calibration"]["default"] == "msp" and set(results["predictor"]["accuracy"]) == {
        "head",
        "text",
        "knn",
    }
    scores = judged_run.scores(run, "ood")
    paths = sorted(scores)
    judged = load(run, detector="all")([root / "data/near" / path for path in paths])
    assert [each.detector for each in judged] == DETECTORS * len(paths)
    assert {each.predicted_class for each in judged} <= set(tiny_clip.CLASSES)
    for place, path in enumerate(paths):
        for each in judged[place * len(DETECTORS) :][: len(DETECTORS)]:
            assert each.score == scores[path][each.detector]


@pytest.mark.parametrize("kind", ["pt2", pytest.param("onnx", marks=pytest.mark.extras)])
def test_an_exported_graph_has_the_scores_of_logits(run, tmp_path, kind, capsys):
    export_run(SavedDetector(run), path := tmp_path / f"model.{kind}")  # which compares it with the detectors
    told = capsys.readouterr().out
    assert (
        path.is_file()
        and "Left out" not in told
        and "pixels to scores of msp, max_logit, energy, gen, mcm, knn" in told
    )


def test_thresholds_are_set_anew_by_confirmed_images(root, run, tmp_path):
    photos, new = tmp_path / "photos", tmp_path / "new"
    for place in ("id/fox", "near"):
        for path in sorted((root / "data" / place).iterdir())[:12]:
            picture = Image.open(path).rotate(90)
            (photos / path.parent.name).mkdir(parents=True, exist_ok=True)
            picture.save(photos / path.parent.name / path.name)
    recalibrate.main(["--run", str(run), str(photos), "--gathered", "all", "--out", str(new)])
    images = sorted(photos.rglob("*.png"))
    before, after = load(run, "energy"), load(new, "energy")
    assert [each.score for each in after(images)] == [each.score for each in before(images)]
    assert after.threshold != before.threshold


def test_classes_of_new_images_are_by_the_cache_where_it_is_right_most_often(root, tmp_path):
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near"}, "splits": judged_run.SPLITS, "batch_size": 8}
    method = {"tip_adapter": {"per_class": None, "alpha": 1000.0, "beta": 50.0}}
    evaluation.main(["--config", tiny_clip.config(root, "headed", method, detectors=["max_logit"], data=data)])
    run = root / "runs/headed"
    assert SavedDetector(run).class_predictor.by == "head"
    named = {path: row["prediction"] for path, row in judged_run.scores(run, "ood").items()}
    judged_run.judged("--run", run, root / "data/near", "--out", tmp_path / "judged.csv")
    stream = ["--adapt", "oodd", "--memory", tmp_path / "memory.safetensors", "--out", tmp_path / "stream.csv"]
    judged_run.judged("--run", run, root / "data/near", *stream)
    for name in ("judged.csv", "stream.csv"):
        rows = judged_run.read(tmp_path / name)
        assert {Path(row["path"]).name: row["predicted_class"] for row in rows} == named


def rewritten(run, folder, change):
    """A copy of a run's detector folder whose tensors `change` has changed."""
    shutil.copytree(run / "detector", folder)
    saved = SavedDetector(folder)
    save_tensors(change(saved.state()), folder / STATE)
    seal(
        folder,
        saved.manifest | {"files": hashes(folder, (each for each in folder.rglob("*") if each.name != MANIFEST))},
    )
    return SavedDetector(folder)


def test_a_folder_of_an_earlier_version_has_no_cache_and_judges_without_logits(root, run, tmp_path):
    saved = rewritten(run, tmp_path / "old", lambda state: {k: v for k, v in state.items() if ".cache." not in k})
    assert saved.reference.cache is None and not saved.reference.has_head
    image = root / "data/near/0.png"
    assert load(tmp_path / "old", "mcm")([image])[0].score == load(run, "mcm")([image])[0].score


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": None}, "a cache without cache.alpha"),
        ({"values": torch.full((12,), 3)}, "cache.values names no classes, or such that there are not"),
        ({"values": torch.zeros(11, dtype=torch.int64)}, r"cache.values has the shape \(11,\)"),
        ({"beta": torch.tensor(float("nan"))}, "cache.beta holds numbers that are not finite"),
    ],
)
def test_a_cache_that_no_run_writes_is_refused(run, tmp_path, change, message):
    named = {f"reference.cache.{name}": value for name, value in change.items()}
    saved = rewritten(run, tmp_path / "bad", lambda state: {k: v for k, v in (state | named).items() if v is not None})
    with pytest.raises(UserError, match=message):
        _ = saved.reference


def test_a_flat_folder_is_refused(root):
    data = {"root": f"{root}/data", "id": {"images": "near", "class_names": ["a", "b"]}, "ood": {"far": "far"}}
    with pytest.raises(UserError, match=r"method\.tip_adapter needs labels"):
        evaluation.main(["--config", tiny_clip.config(root, "flat", METHOD, data=data)])


@pytest.mark.slow
def test_two_processes_score_as_one(root, run):
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near"}, "splits": judged_run.SPLITS, "batch_size": 8}
    given = tiny_clip.config(root, "two", METHOD, detectors=DETECTORS, data=data)
    several = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, str(PROJECT / "eval.py"), "--config", given, *several]
    process = forked.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    told = process.communicate(timeout=200)[0].decode()
    assert process.returncode == 0, told
    alone = judged_run.scores(run, "ood")
    for path, row in judged_run.scores(root / "runs" / "two", "ood").items():
        assert [row[name] for name in DETECTORS] == pytest.approx([alone[path][name] for name in DETECTORS], rel=1e-5)


def test_a_run_of_which_nothing_is_saved_has_a_report(root):
    keys = {"figures": False, "report": True}
    zoo = [{"name": "pytorch_ood.KNN", "k": 3, "as": "zoo"}]
    config = tiny_clip.config(root, "unsaved", METHOD, detectors=zoo, evaluation=keys)
    evaluation.main(["--config", config])
    assert "zoo" in (root / "runs/unsaved/report.html").read_text()
    with pytest.raises(UserError, match="none of the run's can be saved"):
        SavedDetector(root / "runs/unsaved")
