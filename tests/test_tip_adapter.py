"""Tip-Adapter: its logits against the formula and the authors' lines, draws, classes without images, runs, folders and processes."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import forked
import judged_run
import pytest
import tiny_clip
import torch
from tiny_clip import PROJECT
from torch.nn.functional import normalize, one_hot

import eval as evaluation
from clip_ood import load
from clip_ood.config.method_schema import TipAdapter as Settings
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError
from clip_ood.features.rows import Rows
from clip_ood.lightning_modules.linear_probe import few_shot
from clip_ood.lightning_modules.tip_adapter import TipAdapter, tip_logits
from clip_ood.outputs import Outputs

METHOD = {"tip_adapter": {"per_class": 4}}
DETECTORS = ["msp", "max_logit", "energy", "gen", "mcm", "knn"]


def random(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 5.5), (0.0, 5.5), (3.0, 0.0), (0.5, 50.0)])
@pytest.mark.parametrize("rows", [1, 3, 1024])
def test_logits_are_those_of_the_formula_and_of_the_authors(alpha, beta, rows, monkeypatch):
    monkeypatch.setattr("clip_ood.lightning_modules.tip_adapter.ROWS", rows)
    h, text, cache = random(7, 8), random(3, 8, seed=1), random(5, 8, seed=2)
    labels = torch.tensor([0, 2, 2, 0, 2])  # none of class 1
    found = tip_logits(h, text, 100.0, cache, labels, alpha, beta)
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


def adapter(labels, per_class=2):
    stored = SimpleNamespace(embeddings=Rows((random(len(labels), 8),)))
    table = SimpleNamespace(stored=stored, rows=torch.arange(len(labels)), labels=torch.tensor(labels))
    classes = {"class_names": ("a", "b", "c"), "text_embeddings": random(3, 8, seed=1), "logit_scale": 10.0}
    return TipAdapter(Settings(per_class=per_class), table, 3, **classes)


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


def test_a_folder_keeps_what_needs_no_logits_and_says_why(root, run):
    saved = SavedDetector(run)
    assert saved.columns == ["mcm", "knn"]
    left_out = {each["detector"]: each["reason"] for each in saved.manifest["omitted"]}
    assert set(left_out) == {"msp", "max_logit", "energy", "gen"} and "no linear layer" in left_out["msp"]
    results = tiny_clip.results(run)
    assert results["calibration"]["default"] == "mcm" and set(results["predictor"]["accuracy"]) == {"text", "knn"}
    scores = judged_run.scores(run, "ood")["0.png"]
    for each in load(run, detector="all")([root / "data/near/0.png"]):
        assert each.score == pytest.approx(scores[each.detector], rel=1e-5)


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
    config = tiny_clip.config(root, "unsaved", METHOD, detectors=["msp"], evaluation=keys)
    evaluation.main(["--config", config])
    assert "msp" in (root / "runs/unsaved/report.html").read_text()
    with pytest.raises(UserError, match="none of the run's can be saved"):
        SavedDetector(root / "runs/unsaved")
