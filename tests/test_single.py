"""What detectors learn is kept as float32 numbers and in few columns: what that changes in scores, and what a folder saves by it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from detector_data import REFERENCE, fitted, sample

from clip_ood.backbones.spec import ImageSpec
from clip_ood.detect.manifest import MANIFEST, sealed
from clip_ood.detect.save import save_bank, save_detector
from clip_ood.detect.saved import SavedDetector
from clip_ood.detect.saved_encoder import Encoder
from clip_ood.detectors.build import build_detectors
from clip_ood.detectors.mahalanobis import RMD
from clip_ood.detectors.vim import Residual
from clip_ood.outputs import Outputs, Reference

NAMES = ["rmd", "mahalanobis", "mahalanobis_pp", "gaussian", "residual", "vim", "she", "fdbd", "kl_matching", "pca"]
MODULES = ("mahalanobis", "vim", "she", "fdbd", "kl_matching")


def of_width(width: int) -> Reference:
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(3)) / 4
    return replace(REFERENCE, class_names=tuple("abcde"), weight=weight)


def with_logits(rows: Outputs, reference: Reference) -> Outputs:
    return replace(rows, logits=rows.features.float() @ reference.weight.T + reference.bias, tokens=None)


def made(width: int, images: int, change=lambda features: features, bias: float = 1) -> tuple[dict, Outputs, Reference]:
    reference = of_width(width)
    reference = replace(reference, bias=bias * reference.bias)
    train, test = (
        with_logits(replace(rows, features=change(rows.features)), reference)
        for rows in (sample(images, 0, width), sample(40, 1, width))
    )
    detectors, omitted = build_detectors(NAMES, reference, {*vars(train), *vars(reference)})
    assert not omitted
    for detector in detectors.values():
        fitted(detector, train)
    return detectors, test, reference


KINDS = {
    "many images": (40, 400, lambda f: f),
    "few images": (300, 60, lambda f: f),
    "far from the origin": (40, 400, lambda f: f + 1000),
    "few, far from the origin": (300, 60, lambda f: f + 1000),
    "tight classes": (300, 60, lambda f: f + 300 * (f.mean(dim=1, keepdim=True) > 7)),
    "small": (40, 400, lambda f: 1e-6 * f, 1e-6),
    "nearly dependent": (40, 400, lambda f: torch.cat([f[:, :-1], f[:, :1] + 1e-3 * f[:, -1:]], dim=1)),
}

USUAL = ("many images", "few images")


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_changes_scores_as_little_as_that_of_features(monkeypatch, kind):
    rounded, test, _ = made(*KINDS[kind])
    scores = {name: each.score_with_grad(test) for name, each in rounded.items()}
    for module in MODULES:
        monkeypatch.setattr(f"clip_ood.detectors.{module}.single", lambda value: value)
    exact, _, _ = made(*KINDS[kind])
    features = test.features.double()
    noise = torch.rand(features.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moved = features * (1 + 2**-24 * (2 * noise - 1))
    for name, each in exact.items():
        expected = each.score_with_grad(replace(test, features=features))
        other = each.score_with_grad(replace(test, features=moved))
        bound = torch.maximum(20 * (other - expected).abs().max() + 1e-6, 1e-3 * expected.std())
        assert (scores[name] - expected).abs().max() < bound, name
        if kind in USUAL:
            assert (scores[name] - expected).abs().max() < 1e-5 * expected.std(), name


def size(detector) -> int:
    return sum(value.numel() for value in detector.state().values())


def test_few_images_leave_few_numbers():
    detectors, _, _ = made(300, 60)
    for name in ("mahalanobis", "rmd", "gaussian", "residual"):
        assert size(detectors[name]) < 0.5 * 300 * 300, name


def saved(folder, detectors, reference) -> SavedDetector:
    encoder = Encoder(ImageSpec("open_clip", "ViT-B-32", None), {}, "float32")
    for detector in detectors.values():
        detector.spec = {"name": detector.name} | ({"normalize": True} if detector.name == "mahalanobis_pp" else {})
    folder.mkdir()
    save_bank(folder, detectors)
    save_detector(folder, encoder, reference, detectors, (), None, {"batch_size": 8}, 0.95)
    return SavedDetector(folder)


@pytest.mark.parametrize("kind", USUAL)
def test_a_folder_keeps_float32_and_gives_the_same_scores(tmp_path, kind):
    detectors, test, reference = made(*KINDS[kind])
    detectors = {name: each for name, each in detectors.items() if name != "mahalanobis_pp"}
    found = saved(tmp_path / "detector", detectors, reference)
    for name, detector in found.detectors().items():
        assert torch.equal(detector.score_with_grad(test), detectors[name].score_with_grad(test)), name
    state = found.state()
    wide = {name for name, value in state.items() if value.dtype == torch.float64 and value.numel() > 5000}
    assert not wide and state.keys() > {"detectors.she.patterns", "detectors.vim.origin"}


def test_a_folder_of_an_earlier_version_is_read(tmp_path):
    detectors, test, reference = made(40, 400)
    found = saved(tmp_path / "detector", {"she": detectors["she"]}, reference)
    manifest = json.loads((found.folder / MANIFEST).read_text())
    del manifest["doubles"]
    (found.folder / MANIFEST).write_text(json.dumps(sealed(manifest | {"format": 2})))
    assert SavedDetector(found.folder).detector("she").score_with_grad(test).dtype == torch.float32  # as it is stored


def test_states_of_earlier_versions_are_taken():
    detectors, test, reference = made(40, 400)
    rmd = RMD(reference)
    rmd.restore(detectors["rmd"].state() | {"within": torch.eye(40), "means": torch.zeros(5, 40)})
    assert torch.equal(rmd.score(test), detectors["rmd"].score(test))
    few, test, reference = made(300, 60)
    state = few["residual"].state()
    inside = state.pop("principal")
    outside = torch.linalg.svd(inside).U[:, inside.shape[1] :]
    residual = Residual(reference)
    residual.restore(state | {"outside": outside})
    torch.testing.assert_close(residual.score(test), few["residual"].score(test), rtol=1e-5, atol=0)


def test_a_state_with_other_names_is_refused():
    detectors, _, reference = made(40, 400)
    state = detectors["rmd"].state()
    with pytest.raises(ValueError, match="differs in norms, other"):
        RMD(reference).restore(
            {name: value for name, value in state.items() if name != "norms"} | {"other": state["center"]}
        )
