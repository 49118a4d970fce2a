"""Scores from an encoder's features in single and half precision: the encoder ends in a LayerNorm, as open_clip's towers do."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import VIT, clip, encoder, shaken, write_folder
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from clip_ood.detectors.build import build_detectors
from clip_ood.detectors.gaussian import Moments
from clip_ood.features.store import dtype_of
from clip_ood.outputs import Outputs, Reference

CLASSES, TRAIN, TEST = 4, 240, 80  # images a class
GAUSSIANS = ["mahalanobis", "mahalanobis_pp", "rmd", "rmd_pp"]


def pictures(count: int, kind: Tensor, seed: int) -> Tensor:
    """(C · count, 3, 32, 32) of noise around the picture of each class (C, 3, 32, 32)."""
    noise = torch.randn(len(kind) * count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return noise + kind.repeat_interleave(count, dim=0)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Of training, ID test and OOD images, by precision, as the feature store keeps them, and those of bf16 in bfloat16."""
    import open_clip

    folder = tmp_path_factory.mktemp("vit")
    write_folder(folder, clip(VIT | {"width": 32, "head_width": 16}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = shaken(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    kinds = 0.8 * torch.randn(2 * CLASSES, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    sets = [pictures(TRAIN, kinds[:CLASSES], 0), pictures(TEST, kinds[:CLASSES], 1), pictures(TEST, kinds[CLASSES:], 2)]
    made = {}
    for precision in ("fp32", "fp16", "bf16"):
        backbone = encoder(f"local-dir:{folder}", precision=precision)
        made[precision] = [backbone.encode_image(images).to(dtype_of(precision)) for images in sets]
    made["bfloat16"] = [rows.bfloat16() for rows in made["bf16"]]
    return made


@pytest.fixture(scope="module")
def fitted(features):
    """By precision: the detectors after a fit, and their scores of ID test and OOD images."""
    labels = torch.arange(CLASSES).repeat_interleave(TRAIN)
    made = {}
    for precision, (train, test, ood) in features.items():
        detectors, omitted = build_detectors(GAUSSIANS, Reference(), {"features", "labels"})
        assert not omitted
        scores = {}
        for name, detector in detectors.items():
            detector.update(Outputs(features=train, labels=labels))
            detector.fit()
            scores[name] = torch.cat([detector.score(Outputs(features=each)) for each in (test, ood)])
        made[precision] = detectors, scores
    return made


def rank_correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double())[0, 1])


def auroc(scores: Tensor) -> float:
    ranks = scores.argsort().argsort() / len(scores)
    return float(binary_auroc(ranks, torch.arange(len(scores)) < CLASSES * TEST))


@pytest.mark.parametrize("name", ["mahalanobis", "rmd"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "bfloat16"])
def test_the_layernorm_s_direction_alone_is_dropped_in_each_precision(fitted, features, precision, name):
    detector = fitted[precision][0][name]
    assert detector.within.shape == (32, 31) and not detector.notes
    dropped = torch.linalg.svd(detector.within).U[:, -1]
    null = torch.linalg.eigh(features["fp32"][0].double().T.cov()).eigenvectors[:, 0]
    assert abs(float(dropped @ null)) > 0.999


@pytest.mark.parametrize(
    ("name", "least"), dict(mahalanobis=0.995, rmd=0.995, mahalanobis_pp=0.95, rmd_pp=0.95).items()
)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "bfloat16"])
def test_scores_of_half_precision_features_are_those_of_single_precision(fitted, precision, name, least):
    half, single = fitted[precision][1][name], fitted["fp32"][1][name]
    assert rank_correlation(half, single) > least
    assert auroc(half) == pytest.approx(auroc(single), abs=0.01)
    assert 0.6 < auroc(single) < 0.9  # an AUROC that a change of scores would move


def test_the_dtype_of_computation_is_seen_in_what_was_stored(features):
    def precision(rows: Tensor) -> float:
        moments = Moments("features")
        moments.update(Outputs(features=rows[:7], labels=torch.zeros(7, dtype=torch.int64)))
        moments.update(Outputs(features=rows[7:], labels=torch.zeros(len(rows) - 7, dtype=torch.int64)))
        return moments.rounding().direction / float(rows.double().square().mean())

    found = {name: precision(train.float()) for name, (train, _, _) in features.items()}
    assert found["fp32"] < 1e-11
    assert found["fp16"] == pytest.approx(torch.finfo(torch.float16).eps ** 2 / 4, rel=0.01)
    assert found["bf16"] == pytest.approx(torch.finfo(torch.bfloat16).eps ** 2 / 4, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_direction_that_varies_as_little_as_half_precision_can_tell_is_kept(dtype):
    """Images that look alike to an encoder, as to one with random weights: in most directions they vary by one machine epsilon."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(1000)
    strong = torch.randn(len(labels), 1, generator=generator) * torch.randn(64, generator=generator)
    noise = 0.3 * strong + torch.finfo(dtype).eps * torch.randn(len(labels), 64, generator=generator)
    rows = torch.nn.functional.layer_norm(torch.randn(CLASSES, 64, generator=generator)[labels] + noise, (64,)).to(
        dtype
    )
    detector = build_detectors(["mahalanobis"], Reference(), {"features", "labels"})[0]["mahalanobis"]
    detector.update(Outputs(features=rows, labels=labels))
    detector.fit()
    assert detector.within.shape == (64, 63) and not detector.notes
