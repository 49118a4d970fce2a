"""EOE's score, in which classes that are expected to come up, but are none of the ID classes, take part in the softmax."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.detector import Detector
from clip_ood.detectors.negative_labels import CELLS
from clip_ood.outputs import NegativeLabels, Outputs, Reference


class EOE(Detector):
    """Envisioned outlier classes: max_c p_c − β max_w p_w, p = softmax over ID classes c and outlier classes w of cos(h, t) / τ.

    h: embeddings (N, E); t: the ID classes (C, E) and the outlier classes (M, E) of the reference, both as "a photo of a …"; β: `beta`,
    at least 0; τ: `tau` > 0. The authors let a language model name the outlier classes; here they are the words of
    data.negative_words, for which data.negative_choice is meant to be `given`. At τ = 1 scores differ little, so the softmax is taken
    in float64. Raises ValueError for another beta or tau and for a reference without outlier classes.
    Cao et al., 2024 (arXiv 2406.00806); β = 0.25 and τ = 1 are those of their code (Aboriginer/EOE).

    >>> from clip_ood.outputs import NegativeLabels
    >>> classes = NegativeLabels(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    >>> EOE(Reference(eoe=classes), beta=1.0).score(Outputs(embeddings=torch.tensor([[1.0, 0.0], [1.0, 1.0]])))
    tensor([0.4621, 0.0000])
    """

    name: ClassVar[str] = "eoe"
    requires: ClassVar[tuple[str, ...]] = ("embeddings", "eoe")

    def __init__(self, reference: Reference | None = None, *, beta: float = 0.25, tau: float = 1.0) -> None:
        super().__init__(reference)
        if not (beta >= 0 and isfinite(beta)):
            raise self._error(f"beta = {beta}, expected a number from 0 on")
        if not tau > 0:
            raise self._error(f"tau = {tau}, expected a number above 0")
        self.beta, self.tau = beta, tau
        both = self.outliers.classes, self.outliers.negatives
        self.num_classes = len(both[0])
        self.register_buffer("labels", normalize(torch.cat(both).double(), dim=1), persistent=False)  # (C + M, E)

    @property
    def outliers(self) -> NegativeLabels:
        """The embeddings of the ID classes and of the outlier classes."""
        return self.reference.eoe

    def traceable(self) -> Callable[[Outputs], Tensor]:
        return lambda rows: self._block(normalize(rows.embeddings.double(), dim=1))

    def _score(self, rows: Outputs) -> Tensor:
        embeddings = normalize(rows.embeddings.double(), dim=1)
        self.labels = self.labels.to(embeddings.device)
        return torch.cat([self._block(block) for block in embeddings.split(max(1, CELLS // len(self.labels)))])

    def _block(self, embeddings: Tensor) -> Tensor:
        logits = embeddings @ self.labels.T / self.tau  # (n, E) @ (E, C + M)
        total = logits.logsumexp(dim=1)
        largest = [part.amax(dim=1) for part in (logits[:, : self.num_classes], logits[:, self.num_classes :])]
        return (largest[0] - total).exp() - self.beta * (largest[1] - total).exp()
