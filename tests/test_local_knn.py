"""The least familiar patch of an image against a naive search in float64, and runs that store patches of a few images of the bank."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from math import ceil

import forked
import judged_run
import pytest
import tiny_clip
import torch
from detector_data import TEST, TRAIN, close, fitted, part
from processes import together
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood import load
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors import build_detectors
from clip_ood.detectors.build import patched
from clip_ood.detectors.draws import drawn, hash_of
from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.gl_mcm import GLMCM
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.local_knn import LocalKNN
from clip_ood.detectors.statistic import share
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs, Reference


def naive(bank: Outputs, images: Outputs, kind="output", of=1000, patches=10_000, coreset=0.1, lowest=0.0, seed=0):
    """The coreset and the scores by loops over patches, in float64."""
    indices = bank.indices.tolist()
    kept = sorted(range(len(indices)), key=lambda row: int(hash_of(bank.indices[row], seed)))[:of]
    per_image = bank.tokens[kind].shape[1]
    found = sorted(
        (int(hash_of(torch.tensor(indices[row] * per_image + place), seed + 1)), row, place)
        for row in kept
        for place in range(per_image)
    )[:patches]
    vectors = [normalize(bank.tokens[kind][row, place].double(), dim=0) for _, row, place in found]
    chosen = [0]
    count = coreset if isinstance(coreset, int) else max(1, round(coreset * len(vectors)))
    while len(chosen) < min(count, len(vectors)):
        left = [each for each in range(len(vectors)) if each not in chosen]
        chosen.append(min(left, key=lambda each: max(float(vectors[each] @ vectors[other]) for other in chosen)))
    scores = []
    for image in images.tokens[kind].double():
        cosines = sorted(max(float(normalize(x, dim=0) @ vectors[each]) for each in chosen) for x in image)
        few = cosines[: max(1, ceil(lowest * len(cosines)))]
        scores.append(sum(few) / len(few))
    return [(found[each][1], found[each][2]) for each in chosen], scores


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"tokens": "value", "images": 7},
        {"patches": 40, "coreset": 9},
        {"patches": 40, "coreset": 1.0, "lowest": 0.5, "seed": 3},
        {"images": 1, "patches": 1, "lowest": 1.0},
    ],
)
@pytest.mark.parametrize("cells", [2**22, 100])
def test_scores_equal_a_naive_search(parameters, cells, monkeypatch):
    monkeypatch.setattr("clip_ood.detectors.patches.CELLS", cells)
    given = {"kind" if key == "tokens" else "of" if key == "images" else key: each for key, each in parameters.items()}
    chosen, expected = naive(TRAIN, TEST, **given)
    detector = fitted(LocalKNN(**parameters))
    assert detector.owners.tolist() == [int(TRAIN.indices[row]) for row, _ in chosen]
    close(detector.score(TEST), expected)


def test_local_scores_are_those_of_the_patches():
    detector = fitted(LocalKNN())
    cosines = detector.local_scores(TEST)
    assert cosines.shape == (30, 6)
    torch.testing.assert_close(cosines.amin(dim=1), detector.score(TEST))
    text = normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    of_classes = GLMCM(Reference(text_embeddings=text), weight=1.0)
    whole = of_classes.score(replace(TEST, tokens={"value": torch.zeros(30, 6, 8)})) - 1 / 5
    torch.testing.assert_close(of_classes.local_scores(TEST).amax(dim=1) + whole, of_classes.score(TEST))
    with pytest.raises(UserError, match="knn: it scores no single patches"):
        fitted(KNN()).local_scores(TEST)


def test_no_image_is_compared_with_its_own_patches():
    detector = fitted(LocalKNN(coreset=1.0))
    known = replace(TRAIN, copy_of=TRAIN.indices)
    assert (detector.local_scores(TRAIN) > 1 - 1e-5).all()
    others = detector.local_scores(known)
    expected = fitted(LocalKNN(coreset=1.0), part(TRAIN, slice(1, None))).local_scores(part(TRAIN, slice(0, 1)))
    torch.testing.assert_close(others[:1], expected)
    alone = fitted(LocalKNN(), part(TRAIN, slice(0, 1)))
    assert (alone.score(part(known, slice(0, 1))) == -1).all()


def test_batches_without_tokens_are_images_whose_patches_are_not_looked_at(monkeypatch):
    rows = torch.isin(TRAIN.indices, drawn(TRAIN.indices, 20, 0))
    few = fitted(LocalKNN(images=20), part(TRAIN, rows), replace(part(TRAIN, ~rows), tokens=None))
    torch.testing.assert_close(few.score(TEST), fitted(LocalKNN(images=20)).score(TEST))
    assert few.notes == ["12 patches of 20 of the 120 ID training images"]
    assert not fitted(LocalKNN()).notes


def test_no_more_tokens_are_kept_than_twice_the_images():
    detector = LocalKNN(images=10)
    for rows in torch.arange(120).split(7):
        detector.update(part(TRAIN, rows))
        assert sum(map(len, detector.bank._chunks)) <= 20


@pytest.mark.parametrize("shares", [((0, 57), (57, 120)), ((0, 0), (0, 119), (119, 120))])
def test_processes_draw_the_same_images(shares):
    def work(exchange: Exchange) -> tuple[Tensor, Tensor, list[str]]:
        detector = LocalKNN(images=9, patches=31, coreset=0.5)
        detector.update(part(TRAIN, slice(*shares[exchange.rank])))
        for statistic in share([detector]):
            statistic.join(exchange)
        detector.fit()
        return detector.patches, detector.owners, detector.notes

    expected = fitted(LocalKNN(images=9, patches=31, coreset=0.5))
    for patches, owners, notes in together(len(shares), work):
        torch.testing.assert_close(patches, expected.patches, rtol=0, atol=0)
        assert owners.tolist() == expected.owners.tolist() and notes == expected.notes


def test_equal_patches_give_a_score():
    same = Outputs(tokens={"output": torch.ones(4, 3, 2)}, indices=torch.arange(4))
    close(fitted(LocalKNN(coreset=1.0), same).score(same), [1.0] * 4)


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"tokens": "both"}, "tokens = both, expected output or value"),
        ({"images": 0}, "images = 0, expected 1 or more"),
        ({"patches": 0}, "patches = 0, expected 1 or more"),
        ({"coreset": 0}, "coreset = 0, expected a whole number from 1 on, or a share"),
        ({"coreset": 1.5}, r"coreset = 1.5, expected"),
        ({"lowest": 2}, "lowest = 2, expected a share from 0 to 1"),
        ({"coreset": "all"}, "coreset = all, expected a number"),
    ],
)
def test_what_it_cannot_be_is_said(parameters, why):
    with pytest.raises(UserError, match=why):
        build_detectors([{"name": "local_knn", **parameters}], Reference(), {"tokens"})


def test_images_without_tokens_or_indices_are_said():
    with pytest.raises(UserError, match="no ID training image came with tokens"):
        fitted(LocalKNN(), replace(TRAIN, tokens=None))
    with pytest.raises(UserError, match="a draw of images needs the indices of all"):
        fitted(LocalKNN(), replace(TRAIN, indices=None))


def test_the_images_of_all_detectors_are_stored_and_of_no_others():
    rows = torch.arange(500)
    specs = [{"name": "local_knn", "images": [3, 5]}, {"name": "local_knn", "images": 4, "seed": 7, "as": "other"}]
    expected = {*drawn(rows, 5, 0).tolist(), *drawn(rows, 4, 7).tolist()}
    assert set(patched(specs, rows).tolist()) == expected
    assert not len(patched(["knn", "gl_mcm"], rows))


# Runs

FEW = {"name": "local_knn", "images": 4, "coreset": 20, "tokens": "value", "as": "few"}
DETECTORS = ["knn", "local_knn", FEW, {"name": "gl_mcm", "weight": 0.5}]
ALONE = [FEW]


@pytest.fixture(scope="module")
def finished(root):
    return judged_run.make(root, "local", "zero_shot", detectors=DETECTORS)


def test_new_images_are_scored_as_the_evaluation_scores_them(root, finished):
    scores = judged_run.scores(finished, "ood")
    for prediction in load(finished, detector="all")([root / "data/near/0.png", root / "data/near/1.png"]):
        name = prediction.path.rpartition("/")[2]
        assert prediction.score == pytest.approx(scores[name][prediction.detector], rel=1e-5), prediction.detector


def test_the_coreset_is_the_state(finished):
    state = SavedDetector(finished).detector("few").state()
    assert {name: tuple(each.shape) for name, each in state.items()} == {"patches": (20, 16), "owners": (20,)}


def test_patches_of_the_bank_are_stored_of_the_drawn_images_alone(tmp_path):
    root = tiny_clip.make(tmp_path)
    run = judged_run.make(root, "few", "zero_shot", detectors=ALONE)
    counts = {}
    for segment in (root / "features").glob("*/images/*.safetensors"):
        with safe_open(segment, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                counts[name] = counts.get(name, 0) + file.get_slice(name).get_shape()[0]
    bank = tiny_clip.results(run)["bank"]["images"]
    assert counts["tokens.value"] == counts["features"] - bank + 4
    (note,) = tiny_clip.results(run)["notes"]
    assert note["note"] == f"20 patches of 4 of the {bank} ID training images"


def test_an_encoder_without_texts_has_patches_too(root):
    backbone = {"library": "timm", "model": "test_vit", "image_size": 32}
    run = judged_run.make(root, "textless", "zero_shot", backbone=backbone, detectors=["knn", "local_knn"])
    assert {row["detector"] for row in tiny_clip.results(run)["rows"]} == {"knn", "local_knn"}


def test_cross_fitted_images_are_scored_without_their_patches(root):
    run = judged_run.cross_fitted(root, "crossed", detectors=["local_knn", "knn"])
    rows = judged_run.scores(run, "train")
    assert len(rows) == 46
    assert all(row["local_knn"] < 1 - 1e-5 for row in rows.values())


@pytest.mark.parametrize("method", ["finetune", "linear_probe"])
def test_other_methods_see_them_too(root, method):
    run = judged_run.make(root, f"local_{method}", method, detectors=["local_knn", FEW])
    scores = judged_run.scores(run, "ood")
    for prediction in load(run, detector="all")([root / "data/near/0.png"]):
        assert prediction.score == pytest.approx(scores["0.png"][prediction.detector], rel=1e-4)


@pytest.mark.slow
def test_two_processes_score_as_one(root, finished):
    keys = {
        "data": {
            "root": f"{root}/data",
            "id": "id",
            "ood": {"near": "near"},
            "splits": judged_run.SPLITS,
            "batch_size": 8,
        }
    }
    keys |= {"detectors": DETECTORS, "features_root": f"{root}/features2"}
    config = tiny_clip.config(root, "local_both", {"zero_shot": {}}, **keys)
    done = forked.run(
        [sys.executable, "eval.py", "--config", config, "--trainer.devices=2", "--trainer.strategy=ddp"],
        cwd=tiny_clip.PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    alone = judged_run.scores(finished)
    for path, row in judged_run.scores(root / "runs" / "local_both").items():
        for column in ("local_knn", "few"):
            assert row[column] == pytest.approx(alone[path][column], rel=1e-5)


@pytest.mark.parametrize("spec", [{"name": "local_knn", "images": 0}, {"name": "local_knn", "coreset": 2.5}])
def test_a_wrong_value_is_said_before_anything_is_encoded(root, spec):
    with pytest.raises(UserError, match="expected"):
        judged_run.make(root, "wrong", "zero_shot", detectors=[spec], features_root=f"{root}/none")
    assert not list((root / "none").rglob("*.safetensors"))
