"""Each module can be made from the checkpoint of a run, without the run."""

from __future__ import annotations

import judged_run
import pytest
import tiny_clip
import torch

from clip_ood.backbones.create import create_backbone
from clip_ood.config.loading import load_config
from clip_ood.data.labelled import LabelledImages
from clip_ood.lightning_modules.fine_tune import FineTune
from clip_ood.lightning_modules.linear_probe import LinearProbe
from clip_ood.lightning_modules.plp import PLP
from clip_ood.lightning_modules.probe_sweep import LinearProbeSweep
from clip_ood.outputs import Outputs

SWEEP = {"linear_probe": {"epochs": 1, "batch_size": 16, "sweep": {"lr": [0.001, 0.01]}}}


def checkpoint(run):
    path = run / "checkpoints" / "last.ckpt"
    return path, torch.load(path, weights_only=True)  # no object of a class


@pytest.mark.parametrize(("method", "kind"), [("linear_probe", LinearProbe), ("plp", PLP)])
def test_a_probe(root, method, kind):
    path, content = checkpoint(judged_run.make(root, method, method))
    module = kind.load_from_checkpoint(path, weights_only=True)
    assert list(module.class_names) == content["class_names"] and module.text_embeddings.shape[0] == len(
        module.class_names
    )
    assert module.settings == kind.Settings(**judged_run.METHODS[method][method]) and module.seed == 42
    weights = module.state_dict()
    assert weights.keys() == content["state_dict"].keys()
    assert all(torch.equal(weights[name], value) for name, value in content["state_dict"].items())
    features = torch.randn(5, module.hparams["width"])
    assert module.outputs(Outputs(features)).logits.shape == (5, len(module.class_names))


def test_a_sweep(root):
    config = tiny_clip.config(
        root, "swept", SWEEP, data={"root": f"{root}/data", "id": "id", "ood": {}, "splits": judged_run.SPLITS}
    )
    judged_run.train.main(["--config", config])
    path, content = checkpoint(root / "runs" / "swept")
    module = LinearProbeSweep.load_from_checkpoint(path, weights_only=True)
    assert module.sweep == content["sweep"] and len(module.candidates) == 2
    chosen = next(head for head in module.sweep if head["chosen"])
    assert module.settings.lr == chosen["lr"]


def test_fine_tuning_with_its_encoder(root):
    run = judged_run.make(root, "tuned", "finetune")
    path, content = checkpoint(run)
    backbone = create_backbone(load_config(str(run / "config.yaml")).backbone)
    module = FineTune.load_from_checkpoint(path, weights_only=True, backbone=backbone).eval()
    assert torch.equal(module.head.weight, content["state_dict"]["head.weight"])
    images = torch.randn(2, 3, *backbone.preprocessing.size)
    batch = LabelledImages(images, torch.tensor([0, 1]), torch.tensor([0, 1]))
    with torch.no_grad():
        assert module.outputs(batch).logits.shape == (2, len(module.class_names))
