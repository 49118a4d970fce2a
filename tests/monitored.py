"""A training run whose OOD val set is farthest from ID in epoch 1, its test OOD set in epoch 2, watched by Lightning's own
ModelCheckpoint and EarlyStopping: python tests/monitored.py FOLDER DEVICES. Each process writes what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.data.benchmark import Part
from clip_ood.datamodules.feature_data import FeatureData
from clip_ood.features.rows import Rows
from clip_ood.features.stored_set import Features
from clip_ood.lightning_modules.zero_shot import ZeroShot
from clip_ood.outputs import Outputs

SIZES = {"bank": 40, "val": 21, "ood_val": 13, "id_test": 31, "far": 17, "lone": 1}
ROLES = {"bank": "bank", "val": "val", "ood_val": "ood_val", "id_test": "id", "far": "ood", "lone": "ood"}
SHIFT = {"ood_val": [0.1, 3.0, 0.6, 0.3, 0.2], "ood": [0.1, 0.3, 3.0, 0.6, 0.2]}  # by epoch
MONITOR = "ood_val/knn/auroc"


def image_sets() -> tuple[SimpleNamespace, dict[str, Features]]:
    """A benchmark of random features and one loader a part."""
    generator = torch.Generator().manual_seed(0)
    parts = {name: Part(name, role, "", name, list(range(SIZES[name]))) for name, role in ROLES.items()}
    labels = {name: [row % 3 if "ood" not in part.role else -1 for row in part.rows] for name, part in parts.items()}
    benchmark = SimpleNamespace(
        parts={part.key: part for part in parts.values()},
        evaluated=list(parts.values()),
        labels=lambda part: labels[part.name],
        class_names=("a", "b", "c"),
    )
    stored = {}
    for name, part in parts.items():
        features = (
            torch.randn(len(part.rows), 4, generator=generator)
            + 2 * torch.eye(4)[:3].repeat(len(part.rows), 1)[: len(part.rows)]
        )
        valid = torch.ones(len(part.rows), dtype=torch.bool)
        stored[name] = Features(Rows([features]), Rows([normalize(features, dim=1)]), valid)
    return benchmark, stored


class Data(FeatureData):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(4), batch_size=2)


class Drifting(ZeroShot):
    """Nothing is learnt: the OOD sets move along the last axis, by epoch."""

    def __init__(self) -> None:
        super().__init__(("a", "b", "c"), torch.eye(4)[:3], 100.0)
        self.weight = nn.Parameter(torch.ones(1))
        self.roles = list(ROLES.values())

    def training_step(self, batch, batch_idx):
        return self.weight.square().sum()

    def test_step(self, batch: Outputs, batch_idx: int, dataloader_idx: int = 0) -> Outputs:
        shift = SHIFT.get(self.roles[dataloader_idx], [0.0] * 5)[min(self.current_epoch, 4)]
        moved = batch.features + shift * 3 * torch.eye(4)[3]
        return Outputs(moved, normalize(moved, dim=1), None, batch.labels, batch.indices)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main() -> None:
    folder, devices = Path(sys.argv[1]), int(sys.argv[2])
    keep = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", monitor=MONITOR, mode="max")
    stop = EarlyStopping(MONITOR, mode="max", patience=2)
    data = Data(*image_sets(), batch_size=8)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=5,
        callbacks=[keep, stop, OODEvaluation(["knn", "mcm"], data.evaluated)],
        use_distributed_sampler=False,
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(Drifting(), datamodule=data)
    seen = {
        "kept": Path(keep.best_model_path).name,
        "score": float(keep.best_model_score),
        "stopped": stop.stopped_epoch,
        "logged": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }
    (folder / f"seen-{trainer.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
