"""Makes the Trainer of a run, and checks the steps of fine-tuning before an image is read."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from clip_ood.callbacks.averaging import MovingAverage
from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.callbacks.stopped_early import StoppedEarly
from clip_ood.callbacks.throughput import Throughput
from clip_ood.config.schema import Config, FineTune
from clip_ood.experiments.checkpoints import WholeCheckpoints
from clip_ood.experiments.loggers import label, make_loggers
from clip_ood.experiments.own_classes import make_callbacks
from clip_ood.experiments.trainer import new_trainer


def make_trainer(
    config: Config, folder: Path, evaluation: OODEvaluation, trains: bool, validates: bool = False
) -> Trainer:
    """Makes the one Trainer that extracts, trains (and then keeps the last step) and evaluates.

    With `validates`, it looks at ID val after every epoch.
    """
    every = config.evaluation.every_n_epochs
    last = ModelCheckpoint(
        folder / "checkpoints", filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )  # save_last would keep nothing before the end
    own = make_callbacks(config.trainer)
    ours = {
        "max_epochs": getattr(config.method.settings, "epochs", 1),
        "callbacks": [*([last, StoppedEarly(), Throughput()] if trains else []), evaluation, *own],
        "enable_checkpointing": trains or any(isinstance(each, Checkpoint) for each in own),
        "plugins": [WholeCheckpoints()],
        "logger": make_loggers(config.trainer, folder, label(config, folder)),
        "default_root_dir": folder,  # Lightning looks there for what it saved when SLURM ended a job
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1 if validates else every or 1,
        "limit_val_batches": 1.0 if every or validates or not trains else 0,
        "reload_dataloaders_every_n_epochs": int(validates and every > 1),  # ID val in most epochs, otherwise all sets
        "gradient_clip_val": getattr(config.method.settings, "clip_gradient", None),
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return new_trainer(ours, config.trainer)


def plan_steps(trainer: Trainer, settings: FineTune, images: int) -> None:
    """Checks the steps of fine-tuning before an image is read, and adds the averaging of weights over them.

    Raises as `decay_of` does.
    """
    decay = decay_of(settings, images, trainer.world_size, trainer.accumulate_grad_batches)
    if decay is not None:  # it comes first, so that the other callbacks see the averaged weights
        trainer.callbacks.insert(0, MovingAverage(decay, trainer.strategy.root_device))


def decay_of(settings: FineTune, images: int, devices: int, accumulated: int) -> float | None:
    """Returns the decay of the weights' average in a fine-tuning on this many images, or None for no averaging.

    Raises: UserError for a batch size that does not fit, and for an average that is longer than the run.
    """
    from clip_ood.datamodules.image_data import check_batch

    check_batch(settings, images, devices, accumulated)
    return settings.averaging(settings.epochs * (images // settings.batch_size))
