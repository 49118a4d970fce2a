"""Checks which values Lightning's callbacks and schedulers may monitor while a run trains."""

from __future__ import annotations

from lightning.pytorch import Trainer

from clip_ood.errors import UserError

HELD_OUT = "ood_val/"
REPORTED = ("ood/", "id/")  # begin values measured on sets that the table reports on


def check_monitors(trainer: Trainer, every_n_epochs: int = 1) -> None:
    """Refuses a monitor that would choose by test images, any monitor if nothing is validated, and one of OOD val that is not
    measured in every epoch, because callbacks would take an old value for a new one.

    It looks at every callback with a `monitor` (ModelCheckpoint, EarlyStopping, …) and, once they are there, at the
    monitors of learning-rate schedulers.
    Raises: ValueError, which names what monitors which value, and what to monitor instead.
    """
    monitors = [(type(each).__name__, each.monitor) for each in trainer.callbacks if getattr(each, "monitor", None)]
    for each in getattr(trainer.strategy, "lr_scheduler_configs", ()):
        if each.reduce_on_plateau and each.monitor is not None:
            monitors.append((type(each.scheduler).__name__, each.monitor))
    for who, monitor in monitors:
        if monitor.startswith(REPORTED):
            raise UserError(
                f"{who} monitors {monitor}, which is measured on test images: nothing may be chosen by what the table "
                "reports. Monitor val/accuracy, or ood_val/<detector>/<metric> with OOD images of its own (data.ood_val)"
            )
        if not trainer.limit_val_batches:
            raise UserError(
                f"{who} monitors {monitor}, and nothing is validated while this run trains: set "
                "evaluation.every_n_epochs to 1 or more (limit_val_batches of a Trainer of yours), or monitor nothing"
            )
        if monitor.startswith(HELD_OUT) and every_n_epochs != 1:
            raise UserError(
                f"{who} monitors {monitor} after every epoch, and it is measured "
                f"{f'every {every_n_epochs} epochs' if every_n_epochs else 'at the end alone'}: set evaluation.every_n_epochs=1, or "
                "monitor val/accuracy"
            )
