"""A run scores every training image by what has not seen it, and calibrates and judges by these scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import judged_run
import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import eval as evaluation
import train
from clip_ood import load
from clip_ood.config.loading import load_config
from clip_ood.cross_fit import folds
from clip_ood.detect.bank_images import FILE, BankImages
from clip_ood.detect.manifest import MANIFEST, DetectorFolderError
from clip_ood.detect.save import hashes, seal
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.mahalanobis import Mahalanobis
from clip_ood.errors import ConfigError, UserError
from clip_ood.files.records import Unfit
from clip_ood.outputs import Outputs

ALONE = {"val": 0, "test": 0}


def make(root, name, method="zero_shot", data=None, **keys):
    keys.setdefault("evaluation", {"figures": False, "report": False, "cross_fit": 4})
    return judged_run.make(root, name, method, data={"splits": ALONE} | (data or {}), **keys)


@pytest.fixture(scope="module")
def run(root):
    """All 46 images, of which one is a copy of another."""
    shutil.copy(root / "data/id/cat/0.png", root / "data/id/cat/again.png")
    return make(root, "whole", detectors=["knn", "mahalanobis", "mcm"])


@pytest.fixture(scope="module")
def features(root, run):
    """Features by path, as the run's encoder and store give them."""
    predictor, found = load(run), {}
    for path in sorted((root / "data/id").rglob("*.png")):
        with torch.inference_mode():
            pixels = predictor.backbone.transform(Image.open(path).convert("RGB"))[None]
            found[path.relative_to(root / "data/id").as_posix()] = predictor.outputs(pixels).features[0].clone()
    return found


def test_scores_of_neighbours_are_leave_one_out_and_copies_do_not_vouch(run, features):
    scored = judged_run.scores(run, "train")
    assert scored.keys() == features.keys() and len(scored) == 47
    for path in scored:
        others = [name for name in features if not torch.equal(features[name], features[path])]
        knn = KNN()
        knn.update(Outputs(features=torch.stack([features[name] for name in others])))
        knn.fit()
        assert scored[path]["knn"] == pytest.approx(knn.score(Outputs(features=features[path][None])).item(), abs=1e-6)
    assert scored["cat/0.png"]["knn"] == scored["cat/again.png"]["knn"] < 0.9999
    assert tiny_clip.results(run)["bank"]["images"] == 46


def test_what_is_fitted_is_fitted_without_the_fold(run, features):
    scored, paths = judged_run.scores(run, "train"), list(features)
    classes = np.array([tiny_clip.CLASSES.index(path.split("/")[0]) for path in paths])
    groups = np.array([paths.index("cat/0.png") if path == "cat/again.png" else row for row, path in enumerate(paths)])
    dealt = folds(groups, classes, 4, seed=42)
    everything = torch.stack([features[path] for path in paths])
    for fold in range(4):
        kept = (dealt != fold) & (groups == np.arange(len(paths)))
        detector = Mahalanobis()
        detector.update(Outputs(features=everything[kept], labels=torch.from_numpy(classes[kept])))
        detector.fit()
        for row in np.flatnonzero(dealt == fold):
            expected = detector.score(Outputs(features=everything[row][None])).item()
            assert scored[paths[row]]["mahalanobis"] == pytest.approx(expected, rel=1e-4)


def test_thresholds_come_from_these_scores_each_image_once(run):
    scored = judged_run.scores(run, "train")
    stated = tiny_clip.results(run)["calibration"]
    assert (stated["n"], stated["on"], stated["claim"]) == (46, "train", "at least ")
    once = sorted(row["knn"] for path, row in scored.items() if path != "cat/again.png")
    assert stated["thresholds"]["knn"] == pytest.approx(once[1])  # ⌊0.05 · 47⌋ = 2
    saved = SavedDetector(run)
    assert [saved.calibration(name).by for name in saved.columns] == ["leave_one_out", "approximate", "split"]


def test_auroc_without_test_images_is_that_of_the_training_images(run):
    rows = {row["detector"]: row for row in tiny_clip.results(run)["rows"] if row["ood"] == "near"}
    inside, outside = ([row["knn"] for row in judged_run.scores(run, role).values()] for role in ("train", "ood"))
    truth = [1] * len(inside) + [0] * len(outside)
    assert rows["knn"]["auroc"] == pytest.approx(roc_auc_score(truth, inside + outside))
    assert rows["knn"]["f1"] is None  # the threshold is from these images
    assert rows["mahalanobis"]["n_id"] == 47


def test_own_images_are_recognised_and_keep_their_scores(root, run):
    scored = judged_run.scores(run, "train")
    predictor = load(run, detector="all", nearest=2)
    own, new = root / "data/id/dog/3.png", root / "data/near/0.png"
    found = predictor([own, own.read_bytes(), new])
    for prediction in found[:6]:
        assert prediction.copy_of == "dog/3.png"
        assert prediction.score == pytest.approx(scored["dog/3.png"][prediction.detector], rel=1e-6)
    assert all(each.copy_of is None for each in found[6:])
    assert "dog/3.png" not in [each.path for each in found[0].nearest] and len(found[0].nearest) == 2
    assert found[0].nearest[0].cosine == pytest.approx(found[0].score)
    assert found[6].nearest[0].cosine == pytest.approx(found[6].score)


def test_neighbours_and_copies_stand_in_the_files(root, run, tmp_path, capsys):
    out = tmp_path / "out.csv"
    judged_run.judged("--run", run, root / "data/id/dog", root / "data/near", "--nearest", 3, "--out", out)
    rows = judged_run.read(out)
    assert [row["copy_of"] for row in rows[:16]] == [f"dog/{n}" for n in sorted(f"{n}.png" for n in range(16))]
    assert {row["copy_of"] for row in rows[16:]} == {""}
    near = json.loads(rows[-1]["nearest"])
    assert len(near) == 3 and near[0]["cosine"] == pytest.approx(float(rows[-1]["score"]))
    assert "16 of these images are copies of ID images of the run" in capsys.readouterr().err


def test_too_many_neighbours_and_a_folder_that_names_no_images(root, run, tmp_path):
    with pytest.raises(UserError, match="nearest = 46, expected 1 to 45"):
        load(run, nearest=46)
    nameless = tmp_path / "detector"
    shutil.copytree(run / "detector", nameless)
    with (nameless / FILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DetectorFolderError, match="is not the file that was saved"):
        load(nameless)


def test_names_that_are_not_those_of_the_bank_are_refused(run, tmp_path):
    folder = tmp_path / "detector"
    shutil.copytree(run / "detector", folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    images = BankImages.read(folder / FILE)
    replace(images, rows=images.rows + 100, copy_of=images.copy_of + 100).write(folder)
    seal(folder, manifest | {"files": hashes(folder, [folder / name for name in manifest["files"]])})
    load(folder)
    with pytest.raises(DetectorFolderError, match=r"bank.parquet .* does not name all images of the bank"):
        load(folder, nearest=2)


def test_seeds_that_redraw_nothing_have_intervals_over_the_images(root):
    detectors = ["knn", "mahalanobis"]
    run = make(root, "of_seeds", detectors=detectors, seeds=[1, 2])
    results = tiny_clip.results(run)
    assert results["split"]["redrawn"] is False
    rows = {row["detector"]: row for row in results["rows"] if row["ood"] == "near"}
    low, high = rows["knn"]["intervals"]["auroc"]
    assert low < rows["knn"]["auroc"] < high and high - low > 0.01
    assert rows["mahalanobis"]["intervals"] == {}  # the scores of its folds are no scores of one detector


def test_a_head_is_trained_for_each_fold(root):
    run = make(root, "heads", "linear_probe", {"ood": {}}, detectors=["msp", "knn"])
    again = make(root, "again", "linear_probe", {"ood": {}}, detectors=["msp", "knn"])
    scored = judged_run.scores(run, "train")
    assert scored == judged_run.scores(again, "train")
    own = sorted((root / "data/id").rglob("*.png"))
    predictor = load(run, detector="msp")
    pixels = torch.stack([predictor.backbone.transform(Image.open(path).convert("RGB")) for path in own])
    with torch.inference_mode():
        of_all = predictor.outputs(pixels).logits.softmax(dim=1).amax(dim=1).tolist()
    of_folds = [scored[path.relative_to(root / "data/id").as_posix()]["msp"] for path in own]
    assert not np.allclose(of_all, of_folds, atol=1e-4) and np.allclose(of_all, of_folds, atol=0.3)
    assert all(row["prediction"] is not None for row in scored.values())
    assert SavedDetector(run).calibration("msp").by == "approximate"


def test_test_images_keep_the_table_and_train_images_stay_out_of_it(root, run):
    run = make(root, "both", data={"splits": {"val": 0, "test": 0.3}}, detectors=["knn"])
    rows = tiny_clip.results(run)["rows"]
    inside = judged_run.scores(run, "id")
    assert rows[0]["n_id"] == len(inside) and len(judged_run.scores(run, "train")) == 47 - len(inside)


def test_a_flat_folder_without_anything_else(root, tmp_path):
    run = make(root, "flat", data={"id": "id/dog", "ood": {}}, detectors=["knn", "gaussian"])
    assert len(judged_run.scores(run)) == 16 and tiny_clip.results(run)["accuracy"] is None


def test_two_images_are_the_fewest(root):
    few = root / "data/few"
    for count in (1, 2):
        few.mkdir(exist_ok=True)
        shutil.copy(root / f"data/id/dog/{count}.png", few)
        if count == 1:
            with pytest.raises(ConfigError, match="there are 1 that can be read and are no copies"):
                make(root, "few", data={"id": "few", "ood": {}}, detectors=["knn"])
    run = make(root, "few", data={"id": "few", "ood": {}}, detectors=["knn"])
    assert len(judged_run.scores(run)) == 2


def test_near_copies_do_not_vouch_for_each_other(root):
    folder = root / "data/near_copies"
    shutil.copytree(root / "data/id/fox", folder)
    with Image.open(folder / "1.png") as image:
        image.resize((80, 72)).save(folder / "larger.png")
    keys = {"figures": False, "report": False, "cross_fit": 3}
    scored = {}
    for leaks in ("exact", "near"):
        data = {"id": "near_copies", "ood": {}}
        run = make(root, f"near_{leaks}", data=data, detectors=["knn"], evaluation=keys | {"leaks": leaks})
        scored[leaks] = judged_run.scores(run)
        assert tiny_clip.results(run)["bank"]["images"] == (14 if leaks == "near" else 15)
    for path in ("1.png", "larger.png"):
        assert scored["near"][path]["knn"] < scored["exact"][path]["knn"]


def test_copies_alone_are_no_images_to_compare(root):
    same = root / "data/same"
    same.mkdir()
    for number in range(4):
        shutil.copy(root / "data/id/dog/1.png", same / f"{number}.png")
    with pytest.raises(ConfigError, match="there are 1 that can be read and are no copies"):
        make(root, "same", data={"id": "same", "ood": {}}, detectors=["knn"])


def test_fine_tuning_is_refused(root):
    config = tiny_clip.config(root, "tuned", {"finetune": {}}, evaluation={"cross_fit": 3})
    with pytest.raises(ConfigError, match=r"cross_fit scores training images .* method.finetune tunes the encoder"):
        load_config(config)


def test_scoring_a_run_again_gives_the_same(root, run):
    before = judged_run.scores(run, "train")
    evaluation.main(["--run", str(run)])
    assert judged_run.scores(run, "train") == before


def test_bank_images_come_back_as_they_were_written(tmp_path):
    contents = np.array([[3, 1], [2, 0], [3, 2]], np.uint64)
    images = BankImages(
        ["a.png", "b\udce9.png", "c.png"],
        contents,
        np.array([0, 4, 7]),
        np.array([0, 4, 0]),
        {"knn": np.ones(3, np.float32)},
    )
    images.write(tmp_path)
    back = BankImages.read(tmp_path / FILE)
    assert back.paths == images.paths and np.array_equal(back.contents, contents)
    assert back.find(contents[::-1]).tolist() == [2, 1, 0]
    assert back.find(np.array([[3, 9]], np.uint64)).tolist() == [-1]
    assert back.copies(np.array([2, -1, 1])).tolist() == [0, -1, 4]
    assert back.names(torch.tensor([7, 0])) == ["c.png", "a.png"]


def test_images_outside_a_smaller_bank_are_scored_and_no_copies_of_it(root):
    keys = {"figures": False, "report": False, "cross_fit": 4, "bank_per_class": 8}
    run = make(root, "few_in_bank", data={"ood": {}}, detectors=["knn", "mahalanobis"], evaluation=keys)
    scored = judged_run.scores(run, "train")
    images = BankImages.read(run / "detector" / FILE)
    of_bank = [images.names(torch.tensor([row]))[0] for row in images.copy_of.tolist()]
    assert len(set(of_bank)) == 24 and len(scored) == 47 and scored.keys() > set(images.paths)
    for name in ("knn", "mahalanobis"):
        assert images.scores[name].tolist() == pytest.approx([scored[path][name] for path in images.paths])


def test_damaged_bank_images_are_told(tmp_path):
    contents = np.zeros((2, 2), np.uint64)
    BankImages(["a", "b"], contents, np.array([1, 0]), np.array([1, 0])).write(tmp_path)
    with pytest.raises(Unfit, match="rows are not in order"):
        BankImages.read(tmp_path / FILE)
    BankImages(["a", "b"], contents, np.array([0, 1]), np.array([0, 5])).write(tmp_path)
    with pytest.raises(Unfit, match="a copy has no original"):
        BankImages.read(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(b"PAR1")
    with pytest.raises(Unfit):
        BankImages.read(tmp_path / FILE)


@pytest.mark.parametrize("folds_", [1, 101])
def test_the_number_of_folds_is_checked_first(root, folds_):
    config = tiny_clip.config(root, "odd", {"zero_shot": {}}, evaluation={"cross_fit": folds_})
    with pytest.raises(ConfigError, match="cross_fit"):
        train.main(["--config", config])


@pytest.fixture(scope="module")
def four(root):
    """Four classes of twelve images."""
    for name, source in (("a", "cat"), ("b", "dog"), ("c", "fox"), ("d", "cat")):
        folder = root / "data/four" / name
        folder.mkdir(parents=True)
        for number in range(12):
            with Image.open(root / f"data/id/{source}/{number}.png") as image:
                image.transpose(Image.Transpose.ROTATE_90 if name == "d" else Image.Transpose.ROTATE_180).save(
                    folder / f"{number}.png"
                )
    return "four"


@pytest.mark.parametrize("method, detectors", [("zero_shot", ["knn", "mcm"]), ("linear_probe", ["knn", "msp"])])
def test_each_class_is_held_out_once(root, four, method, detectors):
    keys = {"figures": False, "report": True, "hold_out_classes": 2}
    data = {"id": four, "ood": {}, "splits": {"val": 0, "test": 0.25}}
    run = make(root, f"held_{method}", method, data, detectors=detectors, evaluation=keys)
    held_out = tiny_clip.results(run)["held_out"]
    assert sorted(name for group in held_out["groups"] for name in group["classes"]) == ["a", "b", "c", "d"]
    for group in held_out["groups"]:
        assert list(group["auroc"]) == detectors and (group["n_id"], group["n_ood"]) == (4, 18)
    means = [np.mean([group["auroc"][name] for group in held_out["groups"]]) for name in held_out["mean"]]
    assert list(held_out["mean"].values()) == pytest.approx(means) and means == sorted(means, reverse=True)
    assert "Which detector, without OOD images?" in (run / "report.html").read_text()


def test_a_held_out_class_is_told_from_what_was_fitted_on_the_others(root, four, run):
    """The AUROC of k-NN is that of the images themselves."""
    keys = {"figures": False, "report": False, "hold_out_classes": 2}
    data = {"id": four, "ood": {}, "splits": {"val": 0, "test": 0.25}}
    predictor = load(run)  # has the same encoder
    run = make(root, "held_knn", "zero_shot", data, detectors=["knn"], evaluation=keys)
    scored = judged_run.scores(run, "id")
    train = [
        path
        for path in sorted((root / "data/four").rglob("*.png"))
        if path.relative_to(root / "data/four").as_posix() not in scored
    ]
    with torch.inference_mode():
        pixels = torch.stack([predictor.backbone.transform(Image.open(path).convert("RGB")) for path in train])
        found = predictor.outputs(pixels).features
    labels = np.array(["abcd".index(path.parent.name) for path in train])
    for group in tiny_clip.results(run)["held_out"]["groups"]:
        gone = np.isin(labels, ["abcd".index(name) for name in group["classes"]])
        inside = np.flatnonzero(~gone)
        tested = inside[folds(inside, labels[inside], 5, seed=42) == 0]
        knn = KNN()
        knn.update(Outputs(features=found[np.setdiff1d(inside, tested)]))
        knn.fit()
        scores = knn.score(Outputs(features=found[np.concatenate([tested, np.flatnonzero(gone)])]))
        truth = [1] * len(tested) + [0] * int(gone.sum())
        assert group["auroc"]["knn"] == pytest.approx(roc_auc_score(truth, scores))


def test_three_classes_are_too_few_to_hold_one_out(root, capsys):
    keys = {"figures": False, "report": False, "hold_out_classes": 2}
    run = make(root, "three", data={"ood": {}, "splits": {"val": 0, "test": 0.25}}, detectors=["knn"], evaluation=keys)
    assert tiny_clip.results(run)["held_out"] is None
    assert "it takes 4 or more, and there are 3" in capsys.readouterr().out


def test_runs_are_compared_without_what_was_scored_in_folds(root, run, capsys):
    other = make(root, "other", detectors=["knn", "mahalanobis", "mcm"], seed=7)
    assert tiny_clip.results(run)["by_folds"] == ["mahalanobis"]
    evaluation.main(["--compare", str(run), str(other)])
    said = capsys.readouterr().out
    assert "Left out: mahalanobis: scored in folds" in said and "knn" in said
    with pytest.raises(ConfigError, match="mahalanobis: scored in folds"):
        evaluation.main(["--compare", f"{run}:mahalanobis", f"{other}:mahalanobis"])


def test_more_neighbours_than_there_are_others_leave_knn_out(root):
    run = make(root, "many", data={"id": "id/dog", "ood": {}}, detectors=["knn", {"name": "knn", "k": 16, "as": "all"}])
    omitted = tiny_clip.results(run)["omitted"]
    assert [each["detector"] for each in omitted] == ["all"] and "15" in omitted[0]["reason"]


def test_copies_outside_a_smaller_bank_are_in_one_fold(root, run):
    """The head has seen neither of them where one of them is scored."""
    outside = root / "outside.txt"
    outside.write_text("cat/0.png\ncat/again.png\n")
    keys = {"figures": False, "report": False, "cross_fit": 4, "bank_without": str(outside)}
    run = make(root, "outside", "linear_probe", {"ood": {}}, detectors=["msp", "knn"], evaluation=keys)
    scored = judged_run.scores(run, "train")
    assert scored["cat/0.png"]["msp"] == pytest.approx(scored["cat/again.png"]["msp"], abs=1e-6)


def test_a_chosen_detector_has_the_scores_of_the_folds(root, run):
    """A candidate that OOD val chose is called by its column, and its training images are scored as by itself alone."""
    keys = {"figures": False, "report": False, "cross_fit": 4}
    data = {"splits": {"val": 0.3, "test": 0}, "ood_val": "far", "ood": {"near": "near"}}
    several = [{"name": "pca", "dim": [2, 5]}, "knn"]
    chosen = make(root, "chosen", data=data, detectors=several, evaluation=keys)
    note = next(each["note"] for each in tiny_clip.results(chosen)["notes"] if each["detector"] == "pca")
    dim = int(note.split("pca_dim")[1].split(",")[0])
    alone = make(root, "alone", data=data, detectors=[{"name": "pca", "dim": dim}, "knn"], evaluation=keys)
    scores = [judged_run.scores(each, "train") for each in (chosen, alone)]
    assert [row["pca"] for row in scores[0].values()] == [row["pca"] for row in scores[1].values()]
    assert tiny_clip.results(chosen)["by_folds"] == ["pca"]
    assert tiny_clip.results(chosen)["rows"] == tiny_clip.results(alone)["rows"]


def test_copies_of_held_out_images_are_not_learnt_from(root, four):
    folder = root / "data/twice"
    shutil.copytree(root / "data/four", folder)
    for path in list(folder.rglob("*.png")):
        shutil.copy(path, path.with_name(f"again{path.name}"))
    keys = {"figures": False, "report": False}
    data = {"ood": {}, "splits": {"val": 0, "test": 0}}
    found = [
        tiny_clip.results(
            make(root, f"held_{name}", data=data | {"id": name}, detectors=["knn"], evaluation=keys | more)
        )
        for name, more in (
            ("twice", {"hold_out_classes": 2, "cross_fit": 3}),
            ("four", {"hold_out_classes": 2, "cross_fit": 3}),
        )
    ]
    for twice, once in zip(*(each["held_out"]["groups"] for each in found), strict=True):
        assert twice["auroc"]["knn"] == pytest.approx(once["auroc"]["knn"])
        assert (twice["n_id"], twice["n_ood"]) == (2 * once["n_id"], 2 * once["n_ood"])


def test_no_set_may_be_called_as_the_scored_training_images(root):
    data = {"root": f"{root}/data", "id": "id", "ood": {"train": "near"}}
    config = tiny_clip.config(root, "named", {"zero_shot": {}}, data=data, evaluation={"cross_fit": 3})
    with pytest.raises(ConfigError, match="train is the set of the training images that are scored"):
        load_config(config)


def test_a_corruption_needs_test_images(root):
    data = {"ood": {"noise": {"corruption": "gaussian_noise", "severity": 3}}}
    with pytest.raises(ConfigError, match="noise is made of the ID test images, and there are none"):
        make(root, "noise", data=data, detectors=["knn"])
