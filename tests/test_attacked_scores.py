"""Every detector's score, fitted, has the gradient of its own finite difference, and an attack raises it."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
import yaml
from detector_data import ALL, BIAS, JOINT, REFERENCE, TEST, TRAIN, WEIGHT, WIDTH, fitted
from torch.nn.functional import normalize

import attack
from clip_ood.adversarial.images import pixels_of
from clip_ood.detectors import DETECTORS, build_detectors
from clip_ood.detectors.knn import KNN
from clip_ood.outputs import Outputs

PROJECTION = torch.randn(WIDTH, JOINT, generator=torch.Generator().manual_seed(8))
INSIDE = ("gl_mcm", "local_knn", "layered_mcm")
SPECS = [
    *(name for name in DETECTORS if name not in INSIDE),  # an attack sees g and h alone
    {"name": "knn", "k": 7},
    {"name": "mahalanobis", "normalize": True},
]


def outputs(features, labels=None):
    """All that follows from features, differentiable."""
    embeddings = normalize((features - 7) @ PROJECTION, dim=1)
    return Outputs(features, embeddings, features @ WEIGHT.T + BIAS, labels, torch.arange(len(features)))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_gradient_of_a_score_is_a_finite_difference(spec):
    built, omitted = build_detectors([spec], REFERENCE, ALL)
    assert not omitted
    detector = fitted(*built.values(), outputs(TRAIN.features, TRAIN.labels))
    features = TEST.features.clone().requires_grad_()
    scores = detector.score_with_grad(outputs(features))
    torch.testing.assert_close(scores.float(), detector.score(outputs(TEST.features)), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(scores.sum(), features)
    lengths = gradient.norm(dim=1)
    step = 2e-3 * gradient / lengths[:, None].clamp_min(1e-9)
    ahead, behind = (detector.score_with_grad(outputs(TEST.features + sign * step)) for sign in (1, -1))
    near = ((ahead - behind) / 4e-3 - lengths).abs() <= 0.02 * lengths + 1e-5
    flat = spec == "lof"  # where an image lies nearer to its neighbours than their k-th does
    assert (
        lengths.max() > 0 if flat else lengths.min() > 0
    ) and near.double().mean() >= 0.9  # a maximum over classes may have a kink in between


def test_a_score_needs_a_fit():
    with pytest.raises(ValueError, match="before fit"):
        KNN().score_with_grad(TEST)


def attacked(root, name, score, method=None, **keys):
    experiment = tiny_clip.config(root, name, method or {"linear_probe": {"epochs": 2, "batch_size": 16}}, **keys)
    content = {"name": name, "config": experiment, "runs_root": f"{root}/attacks", "ood": "near", "pairs": 5}
    content |= {"score": score, "steps": 20, "lr": 0.01, "smoothness": 0.0, "batch_size": 4, "sign": True}
    path = root / f"{name}_attack.yaml"
    path.write_text(yaml.safe_dump(content | {"budget": {"norm": "linf", "epsilon": 0.05}}))
    attack.main(["--config", str(path)])
    return root / "attacks" / name


@pytest.mark.parametrize("score", ["knn", "vim", "mahalanobis_pp"])
def test_what_learns_can_be_attacked(root, score):
    run = attacked(root, score, score)
    rows = pq.read_table(run / "scored" / "scores.parquet").to_pylist()
    before, after = (torch.tensor([r[score] for r in rows if r["set"] == name]) for name in ("before", "after"))
    assert len(after) == 5 and (after > before).all()
    means = attack_means(run)  # what the attack saw is what the run then found
    assert [means["before"], means["after"]] == pytest.approx([before.mean().item(), after.mean().item()], rel=1e-3)


def attack_means(run):
    return tiny_clip.results(run)["means"]


def test_an_encoder_that_cuts_out_the_middle_sees_what_was_attacked(root):
    timm = {"library": "timm", "model": "test_vit"}  # resizes to 168, sees 160
    run = attacked(root, "cut", "knn", {"zero_shot": {}}, backbone=timm)
    rows = pq.read_table(run / "scored" / "scores.parquet").to_pylist()
    found = {name: [row["knn"] for row in rows if row["set"] == name] for name in ("before", "after")}
    means = attack_means(run)
    for name, scores in found.items():
        assert means[name] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    assert means["after"] > means["before"]


def test_an_encoder_that_changes_a_saved_image_is_named():
    from clip_ood.backbones.create import create_backbone
    from clip_ood.config.schema import BackboneConfig

    backbone = create_backbone(BackboneConfig(library="timm", model="test_vit"))
    blur = torch.nn.AvgPool2d(3, 1, 1)
    backbone.transform.transforms.insert(3, blur)
    with pytest.raises(ValueError, match="sees a saved image as it was attacked"):
        pixels_of(backbone)
    del backbone.transform.transforms[-2:]
    with pytest.raises(ValueError, match="ends with Normalize"):
        pixels_of(backbone)


@pytest.mark.parametrize(
    ("score", "method", "message"),
    [
        ("knm", None, r"the experiment has no detector 'knm'\. Did you mean knn"),
        ("msp", {"zero_shot": {}}, "score: msp needs logits: this run trains no head"),
        ("csp", None, "score: csp needs negative labels"),
    ],
)
def test_a_score_that_the_run_cannot_give(root, score, method, message, monkeypatch):
    import clip_ood.experiments.seeds

    monkeypatch.setattr(clip_ood.experiments.seeds, "run", None)  # said before any work
    with pytest.raises(ValueError, match=message):
        attacked(root, "bad", score, method)
