"""Simplified Hopfield energy, the agreement of a feature with the pattern stored for its class."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from clip_ood.detectors.class_sums import ClassSums, features, predicted
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.single import single
from clip_ood.outputs import Outputs, Reference


def correct(rows: Outputs) -> Tensor:
    """Returns the label (n,) where the head predicts it, and -1 elsewhere."""
    labels = rows.labels.long()  # -1 is no uint8
    return labels.where(labels == predicted(rows).to(labels.device), -1)


class SHE(Detector):
    """Simplified Hopfield energy: ⟨f, m_y⟩, y = argmax_c z_c, m_c the mean f of correctly predicted images of class c.

    f: features (N, D); z: head logits (N, C). A class without correctly predicted ID training images has no m_c and
    is skipped: y is the class of the largest logit among the others. Raises ValueError at `fit` where no training
    image is predicted correctly. Zhang et al., 2023 (ICLR, "Out-of-Distribution Detection based on In-Distribution
    Data Patterns Memorization with Modern Hopfield Energy").

    >>> import torch
    >>> she = SHE()
    >>> she.update(Outputs(torch.tensor([[1.0, 3.0]]), logits=torch.tensor([[2.0, 0.0]]), labels=torch.tensor([0])))
    >>> she.fit()
    >>> she.score(Outputs(torch.tensor([[10.0, 1.0]]), logits=torch.tensor([[0.0, 1.0]])))
    tensor([13.])
    """

    name: ClassVar[str] = "she"
    requires: ClassVar[tuple[str, ...]] = ("features", "logits", "labels")

    def __init__(self, reference: Reference | None = None) -> None:
        super().__init__(reference)
        self.stored = ClassSums(features, correct)
        for buffer in ("patterns", "classes"):
            self.register_buffer(buffer, None)

    def _fit(self) -> None:
        self.classes = self.stored.counts.nonzero().squeeze(1)  # (S,)
        if not len(self.classes):
            raise self._error("the head predicts no ID training image as its label; expected at least one")
        self.patterns = single(self.stored.means()[self.classes])  # (S, D)

    def _score(self, rows: Outputs) -> Tensor:
        y = rows.logits[:, self.classes.to(rows.logits.device)].argmax(dim=1)
        return torch.linalg.vecdot(rows.features.to(self.patterns), self.patterns[y.to(self.patterns.device)])
