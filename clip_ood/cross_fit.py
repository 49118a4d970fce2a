"""Scores of ID training images by detectors that have not seen them: by leave-one-out, or by folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from clip_ood.calibration import By, Calibration
from clip_ood.detectors.detector import Detector
from clip_ood.outputs import Outputs
from clip_ood.scores import Scores

FEWEST_CLASSES = 4  # of which some can be held out


@dataclass(frozen=True)
class CrossFit:
    """What is known of the N images of the training set's image set without having been fitted on them.

    Attributes:
        copy_of: (N,) int64, for each image the row of the bank's image that it is a copy of, mostly its own; -1 for none.
        scores: by detector, (N,) float32, those of the fold that an image was left out of; NaN for images of no fold. Detectors
            that leave out single neighbours, or have seen no image, are not among them.
        shares: by set and by the same detectors, (n,): the share of a fold's images that score lower, the same ones counted half;
            for images of other sets, the mean over the folds. Scores of different folds can be compared only so.
        predictions: (N,) int64, the classes that the folds predict, -1 for none; None if nothing predicts any.
        missing: by detector, why there is a fold that it could not be fitted on.
    """

    copy_of: Tensor
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    shares: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    predictions: Tensor | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, columns: Mapping[str, str]) -> CrossFit:
        """Returns what is known of the detectors that `columns` keeps, each under its new name."""

        def of(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {column: found[name] for name, column in columns.items() if name in found}

        return replace(self, scores=of(self.scores), shares={name: of(each) for name, each in self.shares.items()})

    def leaving_out(self, outputs: Outputs) -> Outputs:
        """Returns outputs of training images which say of what bank image each is a copy."""
        return replace(outputs, copy_of=self.copy_of.to(outputs.indices.device)[outputs.indices])

    def out_of_sample(self, scores: Scores) -> Scores:
        """Returns the scores of training images in which what the folds found replaces what was fitted on the images."""
        found = {
            name: self.scores[name][scores.indices] if name in self.scores else each
            for name, each in scores.scores.items()
        }
        classes = scores.predictions if self.predictions is None else self.predictions[scores.indices]
        return replace(scores, scores=found, predictions=classes)

    def calibrations(
        self, scores: Scores, detectors: Mapping[str, Detector], classes: Tensor | None = None
    ) -> dict[str, Calibration]:
        """Returns what calibrates each detector: the scores of training images, of those in the bank alone, each once.

        `classes` are those that are predicted for these images.
        """
        in_bank = self.copy_of[scores.indices] == scores.indices
        predicted = None if classes is None else classes[in_bank]
        return {
            name: Calibration(scores.scores[name][in_bank], by=_by(each), classes=predicted)
            for name, each in detectors.items()
        }

    def comparable(self, name: str, scores: Scores) -> Scores:
        """Returns the scores of the set `name` as they can be compared with those of training images."""
        shares = self.shares.get(name, {})
        found = {
            detector: shares[detector][scores.indices].to(each.dtype) if detector in shares else each
            for detector, each in scores.scores.items()
        }
        return replace(scores, scores=found)


def has_seen(detector: Detector) -> bool:
    """Says whether a detector depends on the training images, by what it learns or by the head."""
    return detector.learns or not {"logits", "weight", "bias"}.isdisjoint(detector.requires)


def _by(detector: Detector) -> By:
    if detector.leaves_one_out and detector.monotone:
        return "leave_one_out"
    return "approximate" if has_seen(detector) else "split"


def share_below(scores: Tensor, of: Tensor) -> Tensor:
    """Returns the share of the scores `of` (m,) that lie below each score (n,), equal ones counted half: (n,) float64.

    >>> share_below(torch.tensor([0.0, 2.0, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([0.0000, 0.3750, 1.0000], dtype=torch.float64)
    """
    ordered = of.sort().values
    below = torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True)
    return below.double() / (2 * len(of))


def groups_of_classes(count: int, classes: int) -> int:
    """Returns into how many groups classes are divided that are held out one group at a time: `count`, or fewer, of two or more each."""
    return min(count, classes // 2)


def folds(groups: np.ndarray, labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Deals n images into `count` folds: (n,), 0 … count − 1.

    The images of a group (n,) are in one fold, and those of a class (n,) are spread evenly over the folds.
    """
    _, first, of_group = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(first))
    by_class = shuffled[np.argsort(labels[first][shuffled], kind="stable")]
    dealt = np.empty(len(first), int)
    dealt[by_class] = np.arange(len(first)) % count
    return dealt[of_group]
