"""predicted_class is by whatever is best on ID val, and what is told of it; pseudo-label probing that went wrong says so."""

from __future__ import annotations

import json
import shutil

import judged_run
import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image

import detect
from clip_ood import load
from clip_ood.class_predictions import ClassPredictor, predict, voted
from clip_ood.detect.manifest import sealed
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors.bank import Bank
from clip_ood.outputs import Outputs
from clip_ood.runs.results_table import predictions_told

COLOURS = {"cat": (200, 30, 30), "dog": (30, 200, 30), "fox": (30, 30, 200)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images that k-NN tells apart by their colours, and a random encoder, whose texts say nothing."""
    root = tiny_clip.make(tmp_path_factory.mktemp("predictions"))
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for path in (root / "data" / "id" / name).iterdir():
            pixels = generator.normal(colour, 15, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((40, 36)).save(path)
    return root


@pytest.fixture(scope="module")
def zero_shot(root):
    return judged_run.make(root, "zero_shot", "zero_shot")


def hits(predictions):
    return sum(prediction.predicted_class == prediction.path.split("/")[-2] for prediction in predictions)


def files(root):
    return sorted((root / "data" / "id").rglob("*.png"))


def test_k_nn_predicts_where_it_is_better_than_the_texts(root, zero_shot, capsys):
    stated = tiny_clip.results(zero_shot)["predictor"]
    assert stated["by"] == "knn" and stated["accuracy"]["knn"] == 1 > stated["accuracy"]["text"]
    assert stated["images"] == tiny_clip.results(zero_shot)["calibration"]["n"]
    for column in ("knn", "mcm"):  # whichever detector judges
        predictor = load(zero_shot, column)
        predictions = predictor(files(root))
        assert predictor.by == "knn" and hits(predictions) == len(predictions)
        assert all(0 < prediction.confidence <= 1 + 1e-9 for prediction in predictions)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        detect.main(["--run", str(zero_shot), str(root / "data" / "near")])
    assert "predicted_class is by k-NN (right on" in capsys.readouterr().err


def test_what_is_told_are_the_shares_of_val_that_are_right(root, zero_shot):
    val = {row["path"]: row for row in judged_run.scores(zero_shot, "val").values()}
    stated = tiny_clip.results(zero_shot)["predictor"]
    right = sum(row["prediction"] == row["label"] for row in val.values())  # zero-shot, as the table has it
    assert stated["accuracy"]["text"] == pytest.approx(right / len(val)) and stated["images"] == len(val)


def test_a_head_predicts_where_it_is_best_and_a_folder_of_the_older_format_is_read(root, zero_shot, tmp_path):
    run = judged_run.make(
        root, "probe", method="linear_probe", detectors=["msp"]
    )  # which keeps no bank: k-NN is no candidate
    assert tiny_clip.results(run)["predictor"]["accuracy"].keys() == {"head", "text"}
    folder = tmp_path / "old"
    shutil.copytree(zero_shot / "detector", folder)
    manifest = json.loads((folder / "detector.json").read_text())
    del manifest["predictor"]
    (folder / "detector.json").write_text(json.dumps(sealed(manifest | {"format": 1})))
    texts = load(folder)
    assert texts.by == "head" and hits(texts(files(root))) < len(files(root))


def test_without_labels_the_texts_predict_and_nothing_is_told(root, capsys):
    flat = root / "data" / "flat"
    flat.mkdir(exist_ok=True)
    for path in files(root):
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    data = {"id": {"images": "flat", "class_names": list(COLOURS)}}
    run = judged_run.make(root, "flat", "zero_shot", data=data)
    assert tiny_clip.results(run)["predictor"] is None and load(run).by == "head"
    assert "predicted_class of new images" not in capsys.readouterr().out


def test_votes_are_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    bank, features, labels = Bank(), torch.randn(50, 6, generator=generator), torch.arange(60) % 4
    labels[::7] = -1
    order = torch.randperm(60, generator=generator)[:50]
    bank.update(Outputs(features=features, indices=order))
    rows = torch.randn(9, 6, generator=generator)
    found = voted(Outputs(features=rows), bank, labels)
    for row, (label, share) in zip(rows, found.tolist(), strict=True):
        cosines = torch.nn.functional.cosine_similarity(features, row[None])
        nearest = cosines.argsort(descending=True)[:20]
        votes = dict.fromkeys(range(4), 0.0)
        for place in nearest.tolist():
            if (its := int(labels[order[place]])) >= 0:
                votes[its] += float((cosines[place] / 0.02).exp())
        best = max(votes, key=votes.get)
        assert int(label) == best and share == pytest.approx(votes[best] / sum(votes.values()), rel=1e-4)


@pytest.mark.parametrize("images", [5, 21, 40])
def test_an_image_of_the_bank_has_no_vote_in_its_own_class(images):
    bank, places = Bank(), torch.arange(images)
    features = torch.randn(images, 6, generator=torch.Generator().manual_seed(0))
    bank.update(Outputs(features=features, indices=places))
    labels = (places == 3).long()  # the only one of its class
    found = voted(Outputs(features=features, copy_of=places), bank, labels)
    assert found[3].tolist() == [0, pytest.approx(1)]


def test_where_no_neighbour_has_a_class_none_is_predicted():
    bank = Bank()
    bank.update(Outputs(features=torch.eye(40)[:30], indices=torch.arange(30)))
    labels = torch.full((30,), -1)
    labels[29] = 2
    features = torch.eye(40)[:1] + 0.9 * torch.eye(40)[:21].sum(dim=0)
    assert voted(Outputs(features=features), bank, labels)[0].tolist() == [-1, 0]


def test_the_texts_predict_beside_a_head_where_they_are_asked():
    outputs = Outputs(embeddings=torch.eye(3), logits=torch.eye(3).flip(0))
    text = torch.eye(3)
    assert predict(outputs, text, 9.0)[0].tolist() == [2, 1, 0]
    assert predict(outputs, text, 9.0, by="text")[0].tolist() == [0, 1, 2]
    assert predict(Outputs(logits=torch.eye(3)), None, by="text") is None


@pytest.mark.parametrize(
    ("accuracy", "by"),
    [({"head": 0.5, "text": 0.5, "knn": 0.5}, "head"), ({"text": 0.4, "knn": 0.5, "head": 0.1}, "knn"), ({}, None)],
)
def test_the_best_is_taken_and_of_equals_the_first(accuracy, by):
    best = ClassPredictor.best(accuracy, 10)
    assert (best and best.by) == by and ClassPredictor.best(accuracy, 0) is None


# Pseudo-label probing


def plp(head=None, text=None, starved=0, seeds=(42,)):
    found = None if head is None else {"by": "text", "accuracy": {"head": head, "text": text}, "images": 38}
    if found and len(seeds) > 1:
        found = [{"seed": seed, **found} for seed in seeds]
    return {"method": "plp", "seeds": list(seeds), "predictor": found, "pseudo_labels": {"starved": starved}}


def test_a_head_that_is_worse_than_zero_shot_says_so():
    choice, line = predictions_told(plp(0.44, 0.61, starved=3))
    assert "PLP went wrong: of ID val its head predicts 44.0 % right, zero-shot 61.0 %" in line
    assert "method.plp.min_confidence" in line and "is by the texts (right on 38 held-out ID images" in choice
    assert len(predictions_told(plp(0.61, 0.61, starved=3))) == 1
    assert "PLP went wrong in 2 of 2 seeds" in predictions_told(plp(0.44, 0.61, seeds=(1, 2)))[0]


def test_without_labels_classes_of_fewer_than_two_images_are_told():
    (line,) = predictions_told(plp(starved=3))
    assert "fewer than 2 images of 3 classes" in line
    assert predictions_told(plp(starved=0)) == []
    assert predictions_told(plp(starved=3) | {"method": "zero_shot", "pseudo_labels": None}) == []


def test_a_plp_run_says_it(root, capsys):
    flat = {"images": "flat", "class_names": [*COLOURS, "an unseen kind"]}
    (root / "data" / "flat").mkdir(exist_ok=True)
    for path in files(root):
        shutil.copy(path, root / "data" / "flat" / f"{path.parent.name}-{path.name}")
    capsys.readouterr()
    run = judged_run.make(root, "plp_flat", "plp", data={"id": flat})
    passed = tiny_clip.results(run)["pseudo_labels"]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PLP kept fewer")]
    assert passed["starved"] >= 1 and len(told) == 1
    assert SavedDetector(run).class_predictor is None
