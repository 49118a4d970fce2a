"""Fits detectors on the bank and scores every other set, at test and, if asked for, at validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import track
from torch import Tensor

from clip_ood.calibration import summary
from clip_ood.callbacks.monitors import check_monitors
from clip_ood.class_predictions import ClassPredictor, class_logits, classes_by
from clip_ood.cross_fit import CrossFit
from clip_ood.data.benchmark import BANK
from clip_ood.data.labelled import LabelledTable, labels_of
from clip_ood.detectors.names import read_specs
from clip_ood.distributed import exchange
from clip_ood.errors import UserError
from clip_ood.evaluation import DetectorSuite, Results
from clip_ood.joint import JointTable, with_auoscr_intervals
from clip_ood.metrics.class_accuracies import ClassAccuracies
from clip_ood.metrics.curves import OF_SCORES
from clip_ood.metrics.image_scores import ImageScores
from clip_ood.metrics.metric import OODMetrics
from clip_ood.metrics.score_range import ScoreRange
from clip_ood.outputs import Outputs, Reference
from clip_ood.scores import Scores
from clip_ood.table import TableMetrics, row_values, table_rows, with_intervals
from clip_ood.terminal.console import Terminal
from clip_ood.val_division import ValDivision

PREDICTED_BY = "predicted by "
TRAIN = "train"  # the role of training images that are scored
HELD_OUT = ("val", "ood_val")  # roles of the sets by which something may be chosen


class OODEvaluation(Callback):
    """Fits detectors on loader 0, the bank, and scores the sets of all other loaders.

    ID val is scored first. If OOD val follows, candidates for detectors are chosen by these two. Then the other sets are scored:
    ID training images, ID test, covariate-shifted ID, OOD.

    The module's `validation_step` and `test_step` return `Outputs`. Its `reference()`, if it has one, returns what detectors know
    besides these (`Reference`): class names, text embeddings, the head. `tables` has one table for each loader, with `part`,
    `labels` and `rows`; it may be set later, before the first loop. `images` may be set then too: by set, a number (int64) for
    each row of its image set, which is the same if an image is in two sets or is made of one that is; without it all images are
    taken for different ones. `cross_fit` must be set if training images are scored, and says how they are by what has not seen them.
    They take the place of ID val or ID test images only where there are none of these. F1 is at the threshold that accepts the share
    `accept` of ID val; it is left out if ID val has too few images for that.

    Every number goes through a torchmetrics `Metric` on the module's device, which gathers the images of all processes, and is
    logged in all of them:

    - `val/loss`, `val/accuracy`, and `ood_val/<detector>/<metric>` (ID val against OOD val) are those that ModelCheckpoint or
      EarlyStopping may choose by; another monitor is refused
    - `id/accuracy`, `id/knn_accuracy`, and `ood/<set>/<detector>/<metric>` (ID test against an OOD set) are for looking only

    Of a detector's metrics, loggers are given the AUROC, while callbacks see all of them. A validation whose only loader is ID
    val logs only val/loss and val/accuracy; `every_n_epochs` says in which epochs all loaders are validated (0: in none).

    A detector whose scores are not all finite, or are the same for all ID and OOD images, is left out by name with the reason.
    `bank_labels` (N,) are the classes of the bank's images by row of their set, once detectors are fitted.
    After every evaluation, `scored` holds the scores by set in every process, and `results` the results on rank 0, after a test with
    `intervals` if they are wanted.
    """

    results: Results | None = None
    cross_fit: CrossFit | None = None

    def __init__(
        self,
        detectors: Sequence[str | Mapping[str, Any]] | None,
        tables: Sequence[LabelledTable] = (),
        every_n_epochs: int = 1,
        accept: float = 0.95,
        intervals: bool = True,
    ) -> None:
        self.specs, self.tables, self.every_n_epochs, self.accept = detectors, tables, every_n_epochs, accept
        self.intervals = intervals
        self.images: Mapping[str, Tensor] = {}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        check_monitors(trainer, self.every_n_epochs)
        if not self.tables and stage != "predict":
            raise UserError("OODEvaluation does not know what the loaders hold: give it tables=data.evaluated")

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        check_monitors(trainer, self.every_n_epochs)  # now the schedulers are there too

    def _start(self, trainer: Trainer, module: LightningModule) -> None:
        known = module.reference() if hasattr(module, "reference") else Reference()
        self._bank, *self._tables = self.tables
        later = {"tokens"} if all(getattr(table, "tokens", ()) for table in self._tables) else set()
        self.suite = DetectorSuite(known, self.specs, later=frozenset(later))
        sizes = {table.part.role: len(table.rows) for table in self._tables}
        self._calibrating = "val" if "val" in sizes else TRAIN
        self._tested = "id" if "id" in sizes else TRAIN
        several = any(spec.chosen_as is not None for spec in read_specs(self.specs))
        self._division = ValDivision.of(sizes.get("val", 0), sizes.get("ood_val", 0), several, self.accept)
        self.bank_labels: Tensor | None = None
        self._table_metrics: TableMetrics | None = None
        self._images: dict[str, ImageScores] = {}
        self._classes = ClassAccuracies(len(known.class_names or ()))
        self._judges_jointly, self._joint = trainer.testing, None

    def _batch(self, module: LightningModule, outputs: Outputs, loader: int) -> None:
        if loader == BANK:
            self.suite.update(outputs if self.cross_fit is None else self.cross_fit.leaving_out(outputs))
            return
        if self.bank_labels is None:
            self._fit(module.device)
        table = self._tables[loader - 1]
        name, role = table.part.name, table.part.role
        if self._table_metrics is None and role not in HELD_OUT:
            self._choose(module.device)
        outputs = self.cross_fit.leaving_out(outputs) if role == TRAIN else outputs
        scores = self.suite.score(outputs, self.bank_labels if role in ("val", "id", TRAIN) else None)
        scores = self._fitted.out_of_sample(scores) if role == TRAIN else scores
        self._range.update(scores.matrix(self._range.detectors))
        if role in HELD_OUT:
            places = torch.searchsorted(table.rows, scores.indices)
            kept = self._division.choosing(places) if role == "val" else slice(None)
            self._held_out.update(scores.matrix(self._held_out.detectors)[kept], role == "val", scores.indices[kept])
        else:
            self._table_metrics.update(name, comparable := self._comparable(name, scores))
            if self._joint is not None and role == "ood":
                self._joint.update_ood(name, comparable)
        if role != "ood_val":  # no file shows this set
            if name not in self._images:
                self._images[name] = ImageScores(list(self.suite.detectors)).to(module.device)
            self._images[name].update(scores)
        if role in ("val", "id", TRAIN) and (table.labels >= 0).any() and not self._of_one_class():
            labels = labels_of(table, scores.indices, module.device)
            counted = "id" if role == self._tested else role
            self._classes.count(f"{counted}/accuracy", scores.predictions, labels)
            self._classes.count(f"{counted}/knn_accuracy", scores.votes, labels)
            if self._joint is not None and role == self._tested:
                self._joint.update_id(outputs, comparable, labels)
            if role == "val":
                self._classes.add_loss(class_logits(outputs, self.suite.reference), labels)
            if role == self._calibrating:
                for by, classes in self.suite.classes(outputs, scores).items():
                    self._classes.count(f"{PREDICTED_BY}{by}", classes, labels)

    def _fit(self, device: torch.device) -> None:
        self.suite.fit(exchange())
        if self.cross_fit is not None:
            self.suite.leave_out(
                {name: why for name, why in self.cross_fit.missing.items() if name in self.suite.detectors}
            )
        self.bank_labels = torch.full((int(self._bank.rows.max()) + 1,), -1)
        self.bank_labels[self._bank.rows] = self._bank.labels
        self._held_out = OODMetrics(list(self.suite.detectors)).to(device)
        self._range = ScoreRange(list(self.suite.detectors)).to(device)

    def _choose(self, device: torch.device) -> None:
        """Decides, by the held-out sets, which candidates are scored on the sets that are reported."""
        if any(table.part.role in HELD_OUT for table in self._tables):
            self.suite.leave_out(self._range.broken())
            self._held_out.keep(list(self.suite.detectors))
        self._kept = {name: name for name in self.suite.detectors}
        self._chosen_by: dict[str, Tensor] = {}
        if any(table.part.role == "ood_val" for table in self._tables):
            self._chosen_by = self._held_out.compute()
            self._kept = self.suite.choose({name: self._chosen_by[f"{name}/auroc"].item() for name in self._kept})
        self._fitted = None if self.cross_fit is None else self.cross_fit.renamed(self._kept)
        self._table_metrics = TableMetrics(list(self.suite.detectors), self._roles(), device)
        self._range = ScoreRange(list(self.suite.detectors)).to(device)
        if self._judges_jointly and self._tested in self._roles().values():
            labelled = int((self._tested_table.labels >= 0).sum())
            self._joint = JointTable(list(self.suite.detectors), self._roles(), labelled, self.suite.reference, device)

    @property
    def _tested_table(self) -> LabelledTable:
        return next(table for table in self._tables if table.part.role == self._tested)

    def _roles(self) -> dict[str, str]:
        return {table.part.name: table.part.role for table in self._tables if table.part.role != "ood_val"}

    def _of_one_class(self) -> bool:
        """Says whether every prediction is right because there is a single class."""
        names = self.suite.reference.class_names
        return names is not None and len(names) == 1

    def _end(self, trainer: Trainer, module: LightningModule, intervals: bool) -> None:
        roles = self._roles()
        self._leave_out_useless("ood" in roles.values())
        scored = {name: images.gathered() for name, images in self._images.items()}
        for table in self._tables:
            if table.part.name in scored:
                _assert_complete(table.part.name, scored[table.part.name].indices, table.rows)
            if table.part.role == "val":
                scored[table.part.name] = scored[table.part.name].renamed(self._kept)
            elif table.part.name in scored:
                scored[table.part.name] = scored[table.part.name].renamed({name: name for name in self.suite.detectors})
        self.scored = scored
        groups = {table.part.name: table.part.group for table in self._tables}
        sizes = {name: len(of_set.indices) for name, of_set in scored.items()}
        rows = table_rows(self._table_metrics.compute(), list(self.suite.detectors), roles, groups, sizes)
        accuracies = self._classes.compute()
        by = {key: accuracies.pop(key) for key in list(accuracies) if key.startswith(PREDICTED_BY)}
        labelled = sum(int((table.labels >= 0).sum()) for table in self._tables if table.part.role == self._calibrating)
        joint = None if self._joint is None else self._joint.compute(sizes)
        detected = self._held_out_values() | row_values(rows) | (joint.values() if joint else {})
        shown = {key: value for key, value in detected.items() if key.endswith(("/auroc", "/calibration_error"))}
        module.log_dict(accuracies | shown, sync_dist=True)  # equal in all processes
        rest = {key: value for key, value in detected.items() if key not in shown}  # in the same order in all processes
        module.log_dict(rest, logger=False, sync_dist=True)
        if not trainer.is_global_zero:
            return
        images = {name: numbers[scored[name].indices] for name, numbers in self.images.items() if name in scored}
        heads = getattr(module, "chosen_among", 1)
        compared = {name: heads if "logits" in each.requires else 1 for name, each in self.suite.detectors.items()}
        known = {key.removeprefix(PREDICTED_BY): value for key, value in by.items()}
        predictor = ClassPredictor.best(known, labelled)
        calibrating = next((scored[name] for name, role in roles.items() if role == self._calibrating), None)
        named = calibrating is not None and self.suite.reference.class_names is not None
        classes = classes_by(calibrating, predictor, self.suite.loses_head) if named else None
        if self.cross_fit is not None and self._calibrating == TRAIN:
            calibrations = self.cross_fit.calibrations(calibrating, self.suite.detectors, classes)
        else:
            found = {} if calibrating is None else calibrating.scores
            calibrations = self._division.calibrations(found, self.suite.choices, compared, classes)
        if intervals:
            others = calibrations and self._tested != self._calibrating  # those that the table does not count
            thresholds = summary(calibrations, self.accept)["thresholds"] if others else None
            comparable = {name: self._comparable(name, of_set) for name, of_set in scored.items()}
            rows = with_intervals(rows, comparable, roles, thresholds, images, _watch)
            if joint is not None:
                joint = with_auoscr_intervals(joint, comparable, roles, self._tested_table.labels, images)
        self.results = Results(
            rows=rows,
            scored=scored,
            roles=roles,
            accuracy=accuracies.get("id/accuracy"),
            knn_accuracy=accuracies.get("id/knn_accuracy"),
            omitted=self.suite.omitted,
            notes=self.suite.notes,
            images=images,
            calibrations=calibrations,
            predictor=predictor,
            joint=joint,
        )

    @property
    def by_folds(self) -> list[str]:
        """The detectors whose scores of ID images in the table come from several folds."""
        if self.cross_fit is None or self._tested != TRAIN:
            return []
        return [name for name in self.suite.detectors if name in self._fitted.scores]

    def _comparable(self, name: str, scores: Scores) -> Scores:
        """Returns the scores of a set as the table compares them."""
        return self._fitted.comparable(name, scores) if self._tested == TRAIN else scores

    def _leave_out_useless(self, with_ood: bool) -> None:
        """Leaves out the detectors whose scores on the reported sets are not finite or, if OOD images are among them, all equal."""
        self.suite.leave_out((self._range.constant() if with_ood else {}) | self._range.broken())
        self._table_metrics.keep(list(self.suite.detectors))
        if self._joint is not None:
            self._joint.keep(list(self.suite.detectors))
        self._kept = {label: column for label, column in self._kept.items() if column in self.suite.detectors}

    def _held_out_values(self) -> dict[str, float]:
        """Returns the metrics of ID val against OOD val for the detectors that were kept; there are none without OOD val."""
        kept = self._kept.items() if self._chosen_by else ()
        return {
            f"ood_val/{column}/{metric}": self._chosen_by[f"{name}/{metric}"].item()
            for name, column in kept
            for metric in OF_SCORES
        }

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start(trainer, module)

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._batch(module, outputs, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._end(trainer, module, self.intervals)

    # The sanity check sees two batches of each loader, on which detectors could not be fitted.

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._start(trainer, module)  # averaged weights, if any, are in place by now
            self._alone = len(trainer.num_val_batches) == 1  # the only loader is ID val

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if trainer.sanity_checking:
            return
        if not self._alone:
            self._batch(module, outputs, dataloader_idx)
            return
        labels = labels_of(self._val, outputs.indices, module.device)
        logits = class_logits(outputs, self.suite.reference)
        self._classes.count("val/accuracy", logits.argmax(dim=1), labels)
        self._classes.add_loss(logits, labels)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self._alone:
            module.log_dict(self._classes.compute(), sync_dist=True)
        else:
            self._end(trainer, module, intervals=False)

    @property
    def _val(self) -> LabelledTable:
        return next(table for table in self.tables if table.part.role == "val")


def _assert_complete(name: str, indices: Tensor, rows: Tensor) -> None:
    if not torch.equal(indices, rows):
        raise RuntimeError(f"Image set {name}: {len(indices)} scored rows are not its {len(rows)} rows, each once")


def _watch(steps: list) -> Any:
    return track(steps, "Metrics and intervals", console=Terminal(), transient=True)
