"""A run scores every training image by what has not seen it, and calibrates by these scores."""

from __future__ import annotations

import shutil

import judged_run
import numpy as np
import pytest
import tiny_clip
import torch
from judged_run import cross_fitted as make
from PIL import Image
from sklearn.metrics import roc_auc_score

import eval as evaluation
import train
from clip_ood import load
from clip_ood.config.loading import load_config
from clip_ood.cross_fit import folds
from clip_ood.detect.bank_images import FILE, BankImages
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.mahalanobis import Mahalanobis
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments import run as running
from clip_ood.outputs import Outputs


@pytest.fixture(scope="module")
def run(root):
    return judged_run.with_a_copy(root)


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


@pytest.fixture(scope="module")
def fitted(features):
    """The paths of the images, the fold of each, and what is fitted without each fold."""
    paths = list(features)
    classes = np.array([tiny_clip.CLASSES.index(path.split("/")[0]) for path in paths])
    groups = np.array([paths.index("cat/0.png") if path == "cat/again.png" else row for row, path in enumerate(paths)])
    dealt, everything = folds(groups, classes, 4, seed=42), torch.stack(list(features.values()))
    detectors = []
    for fold in range(4):
        kept = (dealt != fold) & (groups == np.arange(len(paths)))
        detectors.append(Mahalanobis())
        detectors[-1].update(Outputs(features=everything[kept], labels=torch.from_numpy(classes[kept])))
        detectors[-1].fit()
    return paths, dealt, detectors


def test_what_is_fitted_is_fitted_without_the_fold(run, features, fitted):
    scored, (paths, dealt, detectors) = judged_run.scores(run, "train"), fitted
    for path, fold in zip(paths, dealt, strict=True):
        expected = detectors[fold].score(Outputs(features=features[path][None])).item()
        assert scored[path]["mahalanobis"] == pytest.approx(expected, rel=1e-4)


def test_scores_of_folds_are_compared_as_shares_of_their_fold(root, run, features, fitted):
    """A share of the fold's images that score lower; of an OOD image, the mean over the folds."""
    paths, dealt, detectors = fitted
    predictor = load(run)
    with torch.inference_mode():
        pixels = [predictor.backbone.transform(Image.open(path)) for path in sorted((root / "data/near").iterdir())]
        near = predictor.outputs(torch.stack(pixels)).features
    inside, outside = np.zeros(len(paths)), np.zeros(len(near))
    for fold, detector in enumerate(detectors):
        rows = np.flatnonzero(dealt == fold)
        own = detector.score(Outputs(features=torch.stack([features[paths[row]] for row in rows]))).numpy()
        new = detector.score(Outputs(features=near)).numpy()
        inside[rows] = [((own < value).sum() + (own <= value).sum()) / 2 / len(own) for value in own]
        outside += np.array([((own < value).sum() + (own <= value).sum()) / 2 / len(own) for value in new]) / 4
    rows = {row["detector"]: row for row in tiny_clip.results(run)["rows"] if row["ood"] == "near"}
    truth = [1] * len(inside) + [0] * len(outside)
    assert rows["mahalanobis"]["auroc"] == pytest.approx(roc_auc_score(truth, [*inside, *outside]), abs=0.01)


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


@pytest.mark.slow
def test_each_seed_says_where_its_suspects_and_held_out_classes_are(root, capsys):
    keys = {"cross_fit": 4, "hold_out_classes": 2, "figures": False, "report": False}
    data = {"id": "four", "ood": {}}
    shutil.copytree(root / "data/id", root / "data/four")
    shutil.copytree(root / "data/near", root / "data/four/hen")
    run = make(root, "each", seeds=[0, 1], detectors=["knn"], evaluation=keys, data=data)
    said = "".join(capsys.readouterr().out.split())  # whatever lines a terminal folds
    files = {
        "Suspects": "suspects.csv",
        "Doubtful labels": "labels.csv",
        "AUROC with classes held out (held_out)": "results.json",
    }
    for what, name in files.items():
        places = [run / f"seed-{seed}" / name for seed in (0, 1)]
        assert all(path.is_file() for path in places)
        assert f"{what}, by each seed: {places[0]}, {places[1]}".replace(" ", "") in said


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


def test_default_detectors_of_class_folders_and_of_a_flat_folder(root, capsys):
    run = make(root, "flat", data={"id": "id", "ood": {}})
    assert "will not be able to judge" not in capsys.readouterr().out
    flat = make(root, "flat_dogs", data={"id": "id/dog", "ood": {}})
    assert "takes 19 ID images, and there are 16" in capsys.readouterr().out
    assert len(judged_run.scores(flat)) == 16 and tiny_clip.results(flat)["accuracy"] is None
    assert not tiny_clip.results(flat)["omitted"]
    stated = tiny_clip.results(run)["calibration"]["thresholds"]
    assert list(stated)[:3] == ["knn", "lof", "knn_k0.2_kth"] and "mahalanobis" in stated
    assert tiny_clip.results(flat)["calibration"]["thresholds"] is None  # 16 images are too few
    saved = SavedDetector(run)
    assert (saved.calibration("knn").by, saved.calibration("lof").by) == ("leave_one_out", "approximate")


def test_two_images_are_the_fewest(root):
    few = root / "data/few"
    for count in (1, 2):
        few.mkdir(exist_ok=True)
        shutil.copy(root / f"data/id/dog/{count}.png", few)
        if count == 1:
            with pytest.raises(ConfigError, match="compares the ID images with each other, and there is 1"):
                make(root, "few", data={"id": "few", "ood": {}}, detectors=["knn"])
    run = make(root, "few", data={"id": "few", "ood": {}}, detectors=["knn"])
    assert len(judged_run.scores(run)) == 2


@pytest.mark.parametrize(
    ("folder", "detectors", "told"),
    [
        ("single", ["knn"], "there is 1: name two or more"),
        (
            "id/dog",
            ["mahalanobis", "rmd"],
            "mahalanobis: needs class labels of the ID training images; rmd: needs class labels",
        ),
        ("id/dog", ["mcm"], "mcm: needs text embeddings"),
        ("id", ["msp", "energy"], "msp: needs logits: this run trains no head"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_an_image_is_read(root, monkeypatch, folder, detectors, told):
    (root / "data/single").mkdir(exist_ok=True)
    shutil.copy(root / "data/id/dog/1.png", root / "data/single")
    monkeypatch.setattr(running, "load_features", lambda *given: pytest.fail("images are read"))
    with pytest.raises(UserError, match=told):
        make(root, "refused", data={"id": folder, "ood": {}}, detectors=detectors)


def test_detectors_of_which_one_can_run_leave_out_the_others(root):
    run = make(root, "one_runs", data={"id": "id/dog", "ood": {}}, detectors=["mahalanobis", "knn"])
    assert [each["detector"] for each in tiny_clip.results(run)["omitted"]] == ["mahalanobis"]


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


def test_scoring_a_run_again_gives_the_same(root, run, capsys):
    before = judged_run.scores(run, "train")
    evaluation.main(["--run", str(run)])
    said = capsys.readouterr().out  # of a copy among the training images, which no score counts twice
    assert "1 of the 47 images of train is a copy of others of it" in said and "counts such an image" not in said
    assert (
        f"Suspects: {run}-eval/suspects.csv ranks 47 images" in said or f"Suspects: {run}/suspects.csv ranks 47" in said
    )
    assert judged_run.scores(run, "train") == before


def test_images_outside_a_smaller_bank_are_scored_and_no_copies_of_it(root):
    keys = {"figures": False, "report": False, "cross_fit": 4, "bank_per_class": 8}
    run = make(root, "few_in_bank", data={"ood": {}}, detectors=["knn", "mahalanobis"], evaluation=keys)
    scored = judged_run.scores(run, "train")
    images = BankImages.read(run / "detector" / FILE)
    of_bank = [images.names(torch.tensor([row]))[0] for row in images.copy_of.tolist()]
    assert len(set(of_bank)) == 24 and len(scored) == 47 and scored.keys() > set(images.paths)
    for name in ("knn", "mahalanobis"):
        assert images.scores[name].tolist() == pytest.approx([scored[path][name] for path in images.paths])


@pytest.mark.parametrize("folds_", [1, 101])
def test_the_number_of_folds_is_checked_first(root, folds_):
    config = tiny_clip.config(root, "odd", {"zero_shot": {}}, evaluation={"cross_fit": folds_})
    with pytest.raises(ConfigError, match="cross_fit"):
        train.main(["--config", config])


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


def test_no_set_may_be_called_as_the_scored_training_images(root):
    data = {"root": f"{root}/data", "id": "id", "ood": {"train": "near"}}
    config = tiny_clip.config(root, "named", {"zero_shot": {}}, data=data, evaluation={"cross_fit": 3})
    with pytest.raises(ConfigError, match="train is the set of the training images that are scored"):
        load_config(config)


def test_a_corruption_needs_test_images(root):
    data = {"ood": {"noise": {"corruption": "gaussian_noise", "severity": 3}}}
    with pytest.raises(ConfigError, match="noise is made of the ID test images, and there are none"):
        make(root, "noise", data=data, detectors=["knn"])
