"""Parameters of detectors chosen on ID val against OOD val, never on what is reported."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import train
from clip_ood.calibration import Calibration
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors.names import read_specs
from clip_ood.errors import ConfigError
from clip_ood.evaluation import DetectorSuite
from clip_ood.metrics import OODMetrics
from clip_ood.outputs import Outputs, Reference
from clip_ood.val_division import ValDivision

SIZES = {"id/cat": 14, "id/dog": 14, "near": 7, "chosen_by": 9}


@pytest.fixture
def images(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for place, count in SIZES.items():
        folder = tmp_path / "data" / place
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).resize((40, 32)).save(folder / f"{index}.png")
    return tmp_path


def run(root, *more, ood_val="ood_val: chosen_by,"):
    config = root / "tiny.yaml"
    config.write_text(
        f"""
data: {{root: {root}/data, id: id, ood: {{near: near}}, {ood_val} splits: {{val: 0.3}}, batch_size: 8}}
backbone: {{library: timm, model: test_vit}}
method: {{linear_probe: {{epochs: 2}}}}
detectors: [msp, {{name: knn, k: [1, 2, 9]}}, {{name: energy, temperature: [0.5, 2.0], as: free}}]
evaluation: {{figures: false, report: false}}
runs_root: {root}/runs
features_root: {root}/features
trainer: {{accelerator: cpu, devices: 1, enable_progress_bar: false}}
"""
    )
    train.main(["--config", str(config), "--overwrite", *more])
    return json.loads((root / "runs" / "tiny" / "results.json").read_text())


def test_the_table_has_the_chosen_one_and_says_among_which(images):
    results = run(images)
    assert list(dict.fromkeys(row["detector"] for row in results["rows"])) == ["msp", "knn", "free"]
    assert {row["ood"] for row in results["rows"]} == {"near", "mean"}
    note = next(note for note in results["notes"] if note["detector"] == "knn")["note"]
    values = {part.split()[0]: float(part.split()[1]) for part in note.partition("ood_val: ")[2].split(", ")}
    assert list(values) == ["knn_k1", "knn_k2", "knn_k9"]
    assert note.startswith(f"{max(values, key=values.get)}, chosen by AUROC of ID val")


def test_the_test_sets_have_no_say(images):
    before = run(images)["notes"]
    shutil.rmtree(images / "data" / "near")
    shutil.copytree(images / "data" / "id" / "cat", images / "data" / "near")
    assert run(images)["notes"] == before


def test_without_images_to_choose_by_it_is_an_error(images):
    with pytest.raises(ConfigError, match=r"knn has several values to choose from.*data.ood_val"):
        run(images, ood_val="")
    with pytest.raises(ConfigError, match=r"ood_val: near is reported on; nothing may be chosen on it"):
        run(images, ood_val="ood_val: {folder: near, group: far},")
    with pytest.raises(ConfigError, match=r"data.ood_val stands against ID val, which has no images"):
        run(images, "--data.splits.val=0")


def test_the_candidate_that_separates_val_is_kept_and_ties_go_to_the_first():
    bank = torch.eye(4).repeat(5, 1) + 0.01 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    suite = DetectorSuite(Reference(), [{"name": "knn", "k": [20, 4, 5]}, {"name": "knn", "as": "one"}])
    suite.update(Outputs(features=bank, indices=torch.arange(20)))
    suite.fit()
    val, ood = (suite.score(Outputs(features=x, indices=torch.arange(4))) for x in (torch.eye(4), torch.ones(4, 4)))
    metric = OODMetrics(list(suite.detectors))
    for scores, is_id in ((val, True), (ood, False)):
        metric.update(scores.matrix(metric.detectors), is_id)
    suite.choose({name: metric.compute()[f"{name}/auroc"].item() for name in metric.detectors})
    assert list(suite.detectors) == ["knn", "one"]
    assert suite.detectors["knn"].k == 4  # 20: the mean over all; 4 and 5 separate perfectly
    assert list(suite.score(Outputs(features=torch.eye(4), indices=torch.arange(4))).scores) == ["knn", "one"]


def test_lists_of_values_are_all_combinations():
    specs = read_specs([{"name": "knn", "k": [1, 5], "kth": [False, True]}])
    assert [(spec.label, spec.chosen_as) for spec in specs] == [
        ("knn_k1_kthFalse", "knn"),
        ("knn_k1_kth", "knn"),
        ("knn_k5_kthFalse", "knn"),
        ("knn_k5_kth", "knn"),
    ]


def test_val_is_divided_where_both_halves_are_twice_what_a_threshold_takes():
    for val, halves in ((75, False), (76, True)):  # 19 images for 95 %
        assert ValDivision.of(val, 10, True, 0.95).halves is halves
    assert not ValDivision.of(1000, 10, False, 0.95).halves and not ValDivision.of(1000, 0, True, 0.95).halves


def val_scores(root, detector):
    rows = pq.read_table(root / "runs" / "tiny" / "scores.parquet").to_pylist()
    return torch.tensor([row[detector] for row in rows if row["role"] == "val"])


def test_one_half_of_val_chooses_and_the_other_calibrates_what_was_chosen(images, monkeypatch):
    seen, update = [], OODMetrics.update

    def record(self, scores, is_id, indices=None):
        if "knn_k1" in self.detectors and is_id is True:
            seen.extend(indices.tolist())
        update(self, scores, is_id, indices)

    monkeypatch.setattr(OODMetrics, "update", record)
    stated = run(images, "--evaluation.accept=0.5", "--data.splits.val=0.4")["calibration"]  # a threshold takes 1 image
    knn, msp = val_scores(images, "knn"), val_scores(images, "msp")
    assert stated["chosen"] == {} and stated["n"] == len(msp) >= 4
    assert len(set(seen)) == len(msp) - len(msp) // 2  # those that calibrate are not among them
    assert stated["thresholds"]["knn"] == Calibration(knn[1::2]).threshold(0.5)
    assert stated["thresholds"]["msp"] == Calibration(msp).threshold(0.5)
    saved = SavedDetector(images / "runs" / "tiny")
    assert saved.calibration("knn").scores.equal(knn[1::2].sort().values)
    assert saved.calibration("msp").scores.equal(msp.sort().values)


def test_where_val_is_too_small_for_that_the_stated_share_allows_for_the_choice(images):
    results = run(images, "--evaluation.accept=0.875", "--data.splits.val=0.4")
    stated, among = results["calibration"], str(results["notes"]).count("knn_k") - 1  # the chosen one is named twice
    n = len(val_scores(images, "knn"))
    assert 3 <= n < 28 and stated["chosen"].keys() == {"knn", "free"}
    assert stated["thresholds"]["knn"] == Calibration(val_scores(images, "knn")).threshold(0.875)
    calibration = SavedDetector(images / "runs" / "tiny").calibration("knn")
    assert (calibration.choice.candidates, calibration.choice.images) == (
        among,
        len(list((images / "data" / "chosen_by").iterdir())),
    )
    assert (
        calibration.expected(0.875)
        == stated["chosen"]["knn"]["expected"]
        < Calibration(calibration.scores).expected(0.875)
    )
    assert stated["expected"] == Calibration(calibration.scores).expected(0.875)  # of msp, which nobody chose


def test_the_heads_of_a_sweep_are_candidates_too(images):
    sweep = "--method={linear_probe: {epochs: 2, sweep: {lr: [0.001, 0.01]}}}"
    results = run(images, sweep, "--evaluation.accept=0.875", "--data.splits.val=0.4")
    stated, among = results["calibration"], str(results["notes"]).count("knn_k") - 1
    assert {name: each["candidates"] for name, each in stated["chosen"].items()} == {"msp": 2, "knn": among, "free": 4}
