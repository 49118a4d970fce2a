"""Every number of a table goes through torchmetrics: against scikit-learn, with and without repeated images."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score, roc_curve
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import clip_ood.table
import train
from clip_ood.metrics import ImageScores, OODMetrics, class_accuracies, ood_metrics
from clip_ood.metrics.curves import OF_SCORES
from clip_ood.scores import Scores

SIZES = {"id/cat": 30, "id/dog": 24, "id/fox": 17, "near": 19, "lone": 1, "shifted/cat": 5, "shifted/fox": 6, "val": 11}
DETECTORS = ["knn", "msp", "rmd", "rmd_logits"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("metrics")
    generator = np.random.default_rng(0)
    for number, (place, count) in enumerate(SIZES.items()):
        folder = root / "data" / place
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = generator.normal(100 + 5 * number, 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def run(root, name, *options):
    path = root / f"{name}.yaml"
    path.write_text(
        f"""
data: {{root: {root}/data, id: id, csid: {{shifted: shifted}}, ood: {{near: near, lone: lone}}, ood_val: val, batch_size: 16}}
backbone: {{library: timm, model: test_vit}}
method: {{linear_probe: {{epochs: 2}}}}
detectors: [{", ".join(DETECTORS)}]
evaluation: {{figures: false, report: false, batch_size: 13, every_n_epochs: 1, save_detector: false}}
runs_root: {root}/runs
features_root: {root}/features
trainer: {{accelerator: cpu, devices: 1, enable_progress_bar: false}}
"""
    )
    train.main(["--config", str(path), *options])
    return root / "runs" / name


@pytest.fixture(scope="module")
def finished(root):
    drawn, found = [], clip_ood.table.ood_metrics
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_ood.table, "ood_metrics", lambda *about: drawn.append(about) or found(*about))
        folder = run(root, "finished", "--trainer.num_sanity_val_steps=2")  # the sanity check evaluates nothing
    return folder, drawn


def scored(folder):
    """The columns of scores.parquet."""
    table = pq.read_table(folder / "scores.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_table_is_scikit_learns(finished):
    table = scored(finished[0])
    rows = [row for row in results(finished[0])["rows"] if row["ood"] != "mean"]
    assert len(rows) == len(DETECTORS) * 2 * 2
    for row in rows:
        positives = ["id"] if row["setting"] == "standard" else ["id", "csid"]
        inside = table[row["detector"]][np.isin(table["role"], positives)]
        outside = table[row["detector"]][table["set"] == row["ood"]]
        scores, is_id = np.concatenate([inside, outside]), np.repeat([1, 0], [len(inside), len(outside)])
        assert (row["n_id"], row["n_ood"]) == (len(inside), len(outside))
        assert row["auroc"] == pytest.approx(roc_auc_score(is_id, scores), abs=1e-9)
        assert row["aupr_in"] == pytest.approx(average_precision_score(is_id, scores), abs=1e-9)
        assert row["aupr_out"] == pytest.approx(average_precision_score(1 - is_id, -scores), abs=1e-9)
        accepted, kept, _ = roc_curve(is_id, scores, drop_intermediate=False)
        assert row["fpr95"] == pytest.approx(accepted[kept >= 0.95].min(), abs=1e-9)


def test_accuracies_are_scikit_learns(finished):
    table = scored(finished[0])
    for role, tag in (("id", "id/accuracy"), ("val", "val/accuracy")):
        rows = table["role"] == role
        expected = accuracy_score(table["label"][rows], table["prediction"][rows])
        assert last(finished[0], tag) == pytest.approx(expected, abs=1e-6)
        if role == "id":
            assert results(finished[0])["accuracy"] == pytest.approx(expected, abs=1e-6)


def last(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events.Scalars(tag)[-1].value


def test_what_may_be_chosen_by_stands_beside_what_is_for_looking(finished):
    events = EventAccumulator(str(finished[0]))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"ood_val/{name}/auroc" for name in DETECTORS} <= tags
    assert not [tag for tag in tags if tag.endswith("/fpr95")]  # which the table and callbacks have
    assert {f"ood/{ood}/{name}/auroc" for name in DETECTORS for ood in ("near", "lone", "mean")} <= tags
    assert len(events.Scalars("ood_val/knn/auroc")) == len(events.Scalars("val/accuracy")) == 3  # two epochs, the test


def test_intervals_are_found_at_the_test_alone(finished):
    assert len(finished[1]) == len(DETECTORS) * 2 * 2  # settings and OOD sets; two epochs were validated
    assert all(row["intervals"]["fpr95"] for row in results(finished[0])["rows"] if row["ood"] == "near")


def test_the_table_is_made_of_the_metrics(root, finished, monkeypatch):
    """Another `compute` gives another table: what the callback holds is no decoration."""

    def compute(self):
        values = OODMetrics._metrics(self, torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, True, False]))
        return {f"{name}/{metric}": value for name in self.detectors for metric, value in values.items()}

    monkeypatch.setattr(OODMetrics, "compute", compute)
    rows = results(run(root, "other"))["rows"]
    assert {row["auroc"] for row in rows} == {0.5} and {row["fpr95"] for row in rows} == {1.0}
    assert {row["auroc"] for row in results(finished[0])["rows"]} != {0.5}


def test_the_accuracies_are_those_of_torchmetrics(root, monkeypatch):
    kind = class_accuracies.MulticlassAccuracy
    monkeypatch.setattr(kind, "compute", lambda self: torch.tensor(0.125))
    found = results(run(root, "half"))
    assert found["accuracy"] == found["knn_accuracy"] == 0.125


def test_several_detectors_are_the_columns_of_one_metric():
    generator = torch.Generator().manual_seed(0)
    scores, is_id = torch.randn(60, 2, generator=generator), torch.arange(60) % 3 > 0
    for wrong in ("knn", ["a", "a"]):
        with pytest.raises(ValueError, match="expected a list of names, each once"):
            OODMetrics(wrong)
    metric = OODMetrics(["a", "b"])
    for rows in torch.arange(60).split(7):
        metric.update(scores[rows], is_id[rows])
    found = metric.compute()
    assert list(found) == [f"{name}/{key}" for name in "ab" for key in OF_SCORES]
    for column, name in enumerate("ab"):
        expected = ood_metrics(scores[is_id, column], scores[~is_id, column])
        assert {key: found[f"{name}/{key}"].item() for key in OF_SCORES} == {k: e.value for k, e in expected.items()}


def test_an_image_that_comes_twice_counts_once():
    """Lightning's distributed sampler repeats images, so that all processes have the same number."""
    scores, is_id, indices = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([1, 1, 0, 0]), torch.tensor([0, 1, 0, 1])
    once, twice = OODMetrics(), OODMetrics()
    once.update(scores, is_id)
    twice.update(scores, is_id, indices)
    twice.update(scores[1:3], is_id[1:3], indices[1:3])
    assert once.compute() == twice.compute()
    padded = OODMetrics()
    padded.update(torch.cat([scores, scores[1:2]]), torch.cat([is_id, is_id[1:2]]))
    assert padded.compute()["auroc"] != once.compute()["auroc"]


def test_a_broken_detector_is_named():
    metric = OODMetrics(["fine", "broken"])
    metric.update(torch.tensor([[1.0, 1.0], [0.0, torch.nan]]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"broken: 1 of 1 OOD scores are NaN"):
        metric.compute()
    with pytest.raises(ValueError, match=r"\(2, 3\) and is_id \(2,\), expected \(B, 2\) and \(B,\)"):
        metric.update(torch.ones(2, 3), True)
    with pytest.raises(ValueError, match=r"indices have shape \(1,\), expected \(2,\)"):
        metric.update(torch.ones(2, 2), True, torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("count", [1, 5])
def test_images_are_gathered_once_in_the_order_of_their_rows(count):
    indices = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    whole = Scores(indices, {"a": indices + 0.5, "b": -1.0 * indices}, predictions=indices % 3)
    images = ImageScores(["a", "b"])
    for rows in (*torch.arange(count).split(2), torch.arange(1), torch.arange(0)):  # one image twice, an empty batch
        images.update(
            Scores(whole.indices[rows], {k: v[rows] for k, v in whole.scores.items()}, whole.predictions[rows])
        )
    found = images.gathered()
    assert torch.equal(found.indices, torch.arange(count)) and found.votes is None
    assert torch.equal(found.scores["a"], torch.arange(count) + 0.5) and torch.equal(
        found.predictions, found.indices % 3
    )
