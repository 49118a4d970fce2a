"""A model that was trained with a sigmoid loss: its logit bias, and the score that needs it, through a whole run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from detector_data import REFERENCE, TEST
from PIL import Image
from safetensors.torch import save_file
from tiny_towers import TEXT, TIMM_VIT, clip, encoder, shaken, write_folder

import eval as evaluation
from clip_ood import load
from clip_ood.detectors.build import build_detectors
from clip_ood.detectors.mcm import MCM
from clip_ood.detectors.mcm_sigmoid import MCMSigmoid
from clip_ood.outputs import Reference

SIGLIP = clip(
    TIMM_VIT | {"timm_pool": "map", "timm_proj": "none"},
    TEXT | {"context_length": 32, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    custom_text=True,
    init_logit_bias=-10,
) | {"embed_dim": 64}
DATA = {
    "id": "id",
    "ood": {"near": "near", "far": "far"},
    "splits": {"val": 0.4, "test": 0.3},
    "batch_size": 8,
}


def test_scores_are_those_of_a_loop_over_images_and_classes():
    found = MCMSigmoid(REFERENCE).score(TEST)
    text = REFERENCE.text_embeddings.double()
    for score, h in zip(found.tolist(), TEST.embeddings.double(), strict=True):
        pairs = [10.0 * float(h @ t / h.norm() / t.norm()) - 3.0 for t in text]
        assert score == pytest.approx(max(1 / (1 + math.exp(-pair)) for pair in pairs), rel=1e-6)


def test_one_class_is_enough_and_a_model_without_a_bias_is_told():
    alone = Reference(("cat",), REFERENCE.text_embeddings[:1], 10.0, logit_bias=-3.0)
    fields = {"embeddings", "text_embeddings", "logit_scale", "logit_bias"}
    detectors, omitted = build_detectors(["mcm", "mcm_sigmoid"], alone, fields)
    assert list(detectors) == ["mcm_sigmoid"] and [each.detector for each in omitted] == ["mcm"]
    detectors, omitted = build_detectors(["mcm_sigmoid"], alone, fields - {"logit_bias"})
    assert not detectors and "this encoder has none, as its training had no sigmoid loss" in omitted[0].reason


def test_the_bias_cancels_in_a_softmax():
    logits = 10.0 * TEST.embeddings.double() @ REFERENCE.text_embeddings.double().T
    expected = (logits - 3.0).softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(MCM(REFERENCE, tau=0.1).score(TEST).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Images, a tiny SigLIP of open_clip in clip/, and a run of it."""
    root = tiny_clip.make(tmp_path_factory.mktemp("siglip"))
    for file in (root / "clip").iterdir():
        file.unlink()
    write_folder(root / "clip", SIGLIP)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = shaken(open_clip.create_model(f"local-dir:{root}/clip", load_weights=False))
    save_file(model.state_dict(), root / "clip" / "open_clip_model.safetensors")
    data = DATA | {"root": f"{root}/data"}
    evaluation.main(["--config", tiny_clip.config(root, "siglip", {"zero_shot": {}}, data=data)])
    return root


@pytest.mark.slow
@torch.no_grad()
def test_a_run_s_scores_are_open_clip_s_own_probabilities(root):
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}/clip")
    assert encoder(f"local-dir:{root}/clip").logit_bias == pytest.approx(model.logit_bias.item())
    tokenize = open_clip.get_tokenizer(f"local-dir:{root}/clip")
    prompts = ["a photo of a {}.", "a blurry photo of a {}.", "a photo of many {}."]
    prompts += ["a photo of the large {}.", "a photo of the small {}."]
    texts = [
        model.eval().encode_text(tokenize([each.format(name) for each in prompts]), normalize=True)
        for name in tiny_clip.CLASSES
    ]
    classes = torch.nn.functional.normalize(torch.stack([each.mean(dim=0) for each in texts]), dim=1)
    rows = pq.read_table(root / "runs" / "siglip" / "scores.parquet").to_pylist()
    for row in rows[::5]:
        folder = root / "data" / ("id" if row["role"] in ("id", "val") else row["set"])
        h = model.encode_image(transform(Image.open(folder / row["path"]).convert("RGB"))[None], normalize=True)
        logits = model.logit_scale.exp() * h @ classes.T + model.logit_bias
        assert row["mcm_sigmoid"] == pytest.approx(logits.sigmoid().max().item(), rel=1e-3)
    assert np.ptp([row["mcm_sigmoid"] for row in rows]) > 0
    omitted = json.loads((root / "runs" / "siglip" / "results.json").read_text())["omitted"]
    assert "mcm_sigmoid" not in {each["detector"] for each in omitted}


@pytest.mark.slow
def test_a_detector_s_folder_keeps_the_bias(root):
    predictor = load(root / "runs" / "siglip", detector="mcm_sigmoid", accept=0.5)
    rows = [
        row for row in pq.read_table(root / "runs" / "siglip" / "scores.parquet").to_pylist() if row["set"] == "near"
    ]
    found = list(predictor([root / "data" / "near" / row["path"] for row in rows]))
    np.testing.assert_allclose([each.score for each in found], [row["mcm_sigmoid"] for row in rows], rtol=1e-4)


@pytest.mark.slow
def test_texts_of_an_earlier_store_without_a_bias_are_encoded_again(tmp_path):
    from clip_ood.features import store as module
    from clip_ood.features.store import FeatureStore, TextEmbeddings

    kept = FeatureStore(tmp_path, {"precision": "fp32"})
    kept.texts.add(module._strings(["a cat"]), {"embeddings": torch.ones(1, 4)}, made_with=module.made_with(None))
    kept.texts.add(module.SCALE, {"logit_scale": torch.ones(1, 1).double()}, made_with=module.made_with(None))
    assert kept.missing_texts(["a cat"]) == ["a cat"]
    for bias in (None, -16.5):
        again = FeatureStore(tmp_path / str(bias), {"precision": "fp32"})
        again.write_texts(["a cat"], TextEmbeddings(torch.ones(1, 4), 10.0, logit_bias=bias))
        assert again.missing_texts(["a cat"]) == [] and again.texts_of(["a cat"]).logit_bias == bias
