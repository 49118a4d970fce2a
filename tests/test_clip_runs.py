"""Whole runs of a tiny random CLIP: every score against a naive implementation, settings, PLP, evaluating a run again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.special import logsumexp, softmax
from sklearn.metrics import average_precision_score, roc_auc_score

import eval as evaluation
import train
from clip_ood.config.loading import load_config
from clip_ood.detectors.detector import Detector
from clip_ood.experiments.benchmarks import load_benchmark

CLASSES = ("cat", "dog", "red_fox")
SIZES = {"id/cat": 24, "id/dog": 21, "id/red_fox": 20, "shifted/cat": 6, "shifted/dog": 5, "near": 9, "far": 7}
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PROBE = "{linear_probe: {epochs: 5, batch_size: 16, lr: 0.01}}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("clip")
    generator = np.random.default_rng(0)
    for number, (place, count) in enumerate(SIZES.items()):
        folder = root / "data" / place
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = generator.normal(40 + 25 * number, 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((40, 36)).save(folder / f"{index}.png")
    (root / "clip").mkdir()
    described = {"model_cfg": CLIP, "preprocess_cfg": {"size": 32}}
    (root / "clip" / "open_clip_config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}/clip", load_weights=False)
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in root.glob("data/*/*/*.png")])
    with torch.no_grad():  # features around 0: random towers otherwise send every image to one class
        projection, model.visual.proj = model.visual.proj, None
        model.visual.ln_post.bias -= model.visual(images).mean(dim=0)
        model.visual.proj = projection
    torch.save(model.state_dict(), root / "clip" / "open_clip_pytorch_model.bin")
    return root


def config(root, name, method):
    path = root / f"{name}.yaml"
    path.write_text(
        f"""
data:
  root: {root}/data
  id: id
  csid: {{shifted: shifted}}
  ood: {{near: {{folder: near, group: near}}, far: {{folder: far, group: far}}}}
  batch_size: 16
backbone: {{model: "local-dir:{root}/clip"}}
method: {method}
evaluation: {{figures: false, report: false}}
runs_root: {root}/runs
features_root: {root}/features
trainer: {{accelerator: cpu, devices: 1, enable_progress_bar: false}}
"""
    )
    return str(path)


@pytest.fixture(scope="module")
def probe(root):
    train.main(["--config", config(root, "probe", PROBE)])
    return root / "runs" / "probe"


@pytest.fixture(scope="module")
def naive(root):
    """g, h, labels by (set, path) from open_clip alone, the bank first."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}/clip")
    tokenize = open_clip.get_tokenizer(f"local-dir:{root}/clip")
    settings = load_config(config(root, "naive", "{zero_shot: {}}"))
    benchmark = load_benchmark(settings)
    model.eval()
    values = {}
    with torch.no_grad():
        for part in benchmark.evaluated:
            listed = benchmark.images[part.images]
            paths = [listed.names[row] for row in part.rows]
            images = torch.stack([transform(Image.open(Path(listed.root, path)).convert("RGB")) for path in paths])
            projection, model.visual.proj = model.visual.proj, None
            features = model.visual(images)
            model.visual.proj = projection
            embeddings = model.encode_image(images, normalize=True)
            values[part.name] = paths, features.double().numpy(), embeddings.double().numpy(), benchmark.labels(part)
        prompts = [[p.replace("{}", name.replace("_", " ")) for p in settings.data.prompts] for name in CLASSES]
        texts = torch.stack([model.encode_text(tokenize(of_class), normalize=True).mean(0) for of_class in prompts])
        texts = (texts / texts.norm(dim=1, keepdim=True)).double().numpy()
    return values, texts, model.logit_scale.exp().item()


def head_of(folder):
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weight, bias, mean, std = (
        state[f"head.{k}"].double().numpy() for k in ("linear.weight", "linear.bias", "mean", "std")
    )
    return lambda features: (features - mean) / std @ weight.T + bias


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def inverse(covariance, shrink):
    """Below full rank: the pseudo-inverse for logits, for features the inverse of 0.99 Σ + 0.01 (tr Σ / D) I."""
    width = len(covariance)
    if shrink and np.linalg.matrix_rank(covariance, tol=1e-10 * np.linalg.norm(covariance, 2)) < width:
        return np.linalg.inv(0.99 * covariance + 0.01 * np.trace(covariance) / width * np.eye(width))
    return np.linalg.pinv(covariance, rcond=1e-10)


def gaussian_scores(bank, labels, x, shrink):
    """Mahalanobis and RMD, a class at a time."""
    means = [bank[labels == c].mean(0) for c in np.unique(labels)]
    centred = np.concatenate([bank[labels == c] - means[c] for c in np.unique(labels)])
    within, total = inverse(centred.T @ centred / len(bank), shrink), inverse(np.cov(bank.T, bias=True), shrink)
    distance = np.stack([np.einsum("nd,de,ne->n", x - mean, within, x - mean) for mean in means], 1)
    overall = np.einsum("nd,de,ne->n", x - bank.mean(0), total, x - bank.mean(0))
    return -distance.min(1), -(distance - overall[:, None]).min(1)


def test_every_score_is_that_of_a_naive_implementation(probe, naive):
    values, texts, scale = naive
    head = head_of(probe)
    _, bank, _, labels = values["bank"]
    table = pq.read_table(probe / "scores.parquet").to_pylist()
    assert len(table) == sum(len(paths) for name, (paths, *_) in values.items() if name != "bank")
    for name, (paths, features, embeddings, _) in list(values.items())[1:]:
        rows = {row["path"]: row for row in table if row["set"] == name}
        logits, scores = head(features), {}
        scores["knn"] = (unit(features) @ unit(bank).T).max(1)
        scores["mcm"] = softmax(embeddings @ texts.T, axis=1).max(1)
        scores["msp"] = softmax(logits, axis=1).max(1)
        scores["max_logit"] = logits.max(1)
        scores["energy"] = logsumexp(logits, axis=1)
        scores["mahalanobis"], scores["rmd"] = gaussian_scores(bank, np.array(labels), features, True)
        scores["mahalanobis_logits"], scores["rmd_logits"] = gaussian_scores(
            head(bank), np.array(labels), logits, False
        )
        for detector, expected in scores.items():
            found = np.array([rows[path][detector] for path in paths])
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=f"{detector} on {name}")
        predicted = [rows[path]["prediction"] for path in paths]
        assert predicted == [CLASSES[c].replace("_", " ") for c in logits.argmax(1)]
    assert scale > 1


def test_the_table_is_that_of_scikit_learn_on_the_written_scores(probe):
    table = pq.read_table(probe / "scores.parquet")
    sets, roles = np.array(table["set"]), np.array(table["role"])
    for row in json.loads((probe / "results.json").read_text())["rows"]:
        if row["ood"] == "mean":
            continue
        scores = np.array(table[row["detector"]]).astype(float)
        positives = (roles == "id") | ((roles == "csid") & (row["setting"] == "full_spectrum"))
        inside, outside = scores[positives], scores[sets == row["ood"]]
        assert (row["n_id"], row["n_ood"]) == (len(inside), len(outside))
        is_id = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
        both = np.r_[inside, outside]
        assert row["auroc"] == pytest.approx(roc_auc_score(is_id, both), abs=1e-9)
        assert row["aupr_in"] == pytest.approx(average_precision_score(is_id, both), abs=1e-9)
        assert row["aupr_out"] == pytest.approx(average_precision_score(1 - is_id, -both), abs=1e-9)
        threshold = np.sort(inside)[::-1][int(np.ceil(0.95 * len(inside))) - 1]
        assert row["fpr95"] == pytest.approx((outside >= threshold).mean(), abs=1e-9)


def test_settings_groups_and_means(probe):
    with (probe / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["setting"] for row in rows} == {"standard", "full_spectrum"}
    assert {(row["ood"], row["group"]) for row in rows} == {("near", "near"), ("far", "far"), ("mean", "")}
    by_set = {
        row["ood"]: float(row["auroc"]) for row in rows if (row["detector"], row["setting"]) == ("knn", "standard")
    }
    assert by_set["mean"] == pytest.approx((by_set["near"] + by_set["far"]) / 2, abs=0.02)


def test_evaluating_a_run_again_gives_its_own_numbers(root, probe):
    evaluation.main(["--run", str(probe)])
    first, again = (json.loads((root / "runs" / name / "results.json").read_text()) for name in ("probe", "probe-eval"))
    assert again["rows"] == first["rows"] and again["accuracy"] == first["accuracy"]


def test_plp_learns_what_the_text_encoder_says(root, naive):
    values, texts, scale = naive
    _, _, embeddings, labels = values["bank"]
    probabilities = softmax(scale * embeddings @ texts.T, axis=1)
    least = float(np.median(probabilities.max(1)))
    method = f"{{plp: {{epochs: 2, batch_size: 16, min_confidence: {least}}}}}"
    train.main(["--config", config(root, "plp", method)])
    report = json.loads((root / "runs" / "plp" / "results.json").read_text())["pseudo_labels"]
    passed = probabilities.max(1) >= least
    right = probabilities.argmax(1)[passed] == np.array(labels)[passed]
    assert report["images"] == len(labels) and abs(report["passed"] - passed.sum()) <= 1
    assert report["accuracy"] == pytest.approx(right.mean(), abs=0.05)


def test_plp_with_a_filter_that_nothing_passes_says_what_to_change(root):
    with pytest.raises(ValueError, match=r"0 of 33 images .* Lower method.plp.min_confidence"):
        train.main(["--config", config(root, "strict", "{plp: {min_confidence: 1.0}}")])
    assert not (root / "runs" / "strict" / "config.yaml").exists()


def test_zero_shot_without_ood_sets_gives_scores_and_no_rows(root):
    path = config(root, "alone", "{zero_shot: {}}")
    evaluation.main(["--config", path, "--data.ood={}", "--data.csid={}"])
    results = json.loads((root / "runs" / "alone" / "results.json").read_text())
    assert results["rows"] == [] and results["accuracy"] is not None
    assert "knn" in pq.read_table(root / "runs" / "alone" / "scores.parquet").column_names


class Norm(Detector):
    """‖g‖: somebody's own detector."""

    name = "norm"
    requires = ("features",)

    def _score(self, rows):
        return rows.features.norm(dim=1)


def test_a_detector_of_ones_own_by_its_dotted_path(root, naive, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    path = config(root, "mine", "{zero_shot: {}}")
    evaluation.main(["--config", path, "--detectors=[test_clip_runs.Norm, knn]"])
    table = pq.read_table(root / "runs" / "mine" / "scores.parquet")
    (column,) = set(table.column_names) - {"set", "role", "path", "label", "prediction", "image", "knn"}
    expected = np.concatenate([np.linalg.norm(f, axis=1) for name, (_, f, *_) in naive[0].items() if name != "bank"])
    np.testing.assert_allclose(np.sort(np.array(table[column])), np.sort(expected), rtol=1e-4)
