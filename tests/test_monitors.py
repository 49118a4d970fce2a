"""Lightning's own callbacks choose by what an evaluation logs: by ID val and OOD val, never by test images."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import forked
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from monitored import Data, Drifting, image_sets
from torch import optim
from torch.utils.data import DataLoader

from clip_ood.callbacks.ood_evaluation import OODEvaluation

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each process saw, by number of processes."""
    found = {}
    for devices in (1, 2):
        folder = tmp_path_factory.mktemp(f"of_{devices}")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
        command = [sys.executable, str(PROJECT / "tests" / "monitored.py"), str(folder), str(devices)]
        done = forked.run(command, cwd=folder, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "recommended to use `self.log" not in done.stderr
        found[devices] = [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(devices)]
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["epoch=1.ckpt"]
    return found


@pytest.mark.parametrize("devices", [1, 2])
def test_the_checkpoint_of_the_best_ood_val_is_kept_and_training_stops_after_it(seen, devices):
    for process in seen[devices]:
        assert process["kept"] == "epoch=1.ckpt"  # the test set is farthest from ID in epoch 2
        assert process["score"] > 0.95 and process["stopped"] == 3


def test_every_process_logs_the_same_numbers(seen):
    (alone,), (first, second) = seen[1], seen[2]
    assert first["logged"] == second["logged"]
    assert first["logged"] == pytest.approx(alone["logged"], abs=1e-6)
    keys = {
        "val/accuracy",
        "id/accuracy",
        "id/knn_accuracy",
        "ood_val/knn/auroc",
        "ood_val/mcm/fpr95",
        "ood_val/mcm/best_f1",
    }
    assert keys | {"ood/far/knn/auroc", "ood/lone/mcm/aupr_in", "ood/mean/knn/fpr95"} <= alone["logged"].keys()
    assert alone["logged"]["val/accuracy"] == pytest.approx(20 / 21)


def fit(*callbacks, module=None, every=1.0):
    data = Data(*image_sets(), batch_size=8)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        limit_val_batches=every,
        callbacks=[*callbacks, OODEvaluation(["knn"], data.evaluated)],
        use_distributed_sampler=False,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(module or Drifting(), datamodule=data)


@pytest.mark.parametrize("key", ["ood/mean/knn/auroc", "ood/far/knn/fpr95", "id/accuracy", "id/knn_accuracy"])
@pytest.mark.parametrize("kind", [ModelCheckpoint, EarlyStopping])
def test_nothing_is_chosen_by_test_images(tmp_path, kind, key):
    watching = kind(tmp_path, monitor=key) if kind is ModelCheckpoint else kind(key)
    with pytest.raises(ValueError, match=rf"{kind.__name__} monitors {key}, .* test images.*val/accuracy, or ood_val/"):
        fit(watching)
    assert not any(tmp_path.iterdir())


class Plateau(Drifting):
    def __init__(self, monitor):
        super().__init__()
        self.monitor = monitor

    def configure_optimizers(self):
        optimizer = optim.SGD(self.parameters(), lr=0.1)
        scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": self.monitor}}


def test_a_scheduler_may_not_choose_by_them_either():
    fit(module=Plateau("ood_val/knn/auroc"))
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau monitors ood/far/knn/auroc"):
        fit(module=Plateau("ood/far/knn/auroc"))


@pytest.mark.parametrize("monitor", ["val/accuracy", "ood_val/knn/auroc"])
def test_a_monitor_where_nothing_is_validated_is_refused(monitor):
    with pytest.raises(
        ValueError, match=rf"EarlyStopping monitors {monitor}, and nothing is validated.*every_n_epochs"
    ):
        fit(EarlyStopping(monitor), every=0)


class Encoder(Drifting):
    def predict_step(self, batch, batch_idx):
        raise AssertionError("an image was encoded")


def test_they_are_refused_before_images_are_encoded(tmp_path):
    """Extraction is a predict loop of the same Trainer, before it trains."""
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, callbacks=[EarlyStopping("id/accuracy"), OODEvaluation(None)]
    )
    with pytest.raises(ValueError, match=r"EarlyStopping monitors id/accuracy"):
        trainer.predict(Encoder(), DataLoader(range(2)))
