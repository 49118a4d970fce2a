"""EOE's score, in which classes that are expected to come up, but are none of the ID classes, take part in the softmax."""

from __future__ import annotations

from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.detector import Detector
from clip_ood.detectors.mcm import CELLS, largest_softmax
from clip_ood.outputs import NegativeLabels, Outputs, Reference


class EOE(Detector):
    """Envisioned outlier classes: max_c p_c − β max_w p_w, p = softmax over ID classes c and outlier classes w of cos(h, t) / τ.

    h: embeddings (N, E); t: the ID classes (C, E) and the outlier classes (M, E) of the reference, both as "a photo of a …"; β: `beta`,
    at least 0; τ: `tau` > 0. The authors let a language model name the outlier classes; here they are the words of
    data.negative_words, for which data.negative_choice is meant to be `given`. p is computed in float32, as MCM's is. Raises
    ValueError for another beta or tau and for a reference without outlier classes.
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
        labels = normalize(torch.cat(both).double(), dim=1).float()  # (C + M, E)
        self.register_buffer("labels", labels, persistent=False)

    @property
    def outliers(self) -> NegativeLabels:
        """The embeddings of the ID classes and of the outlier classes."""
        return self.reference.eoe

    def at_once(self, rows: Outputs) -> int:
        return CELLS // len(self.labels)

    def _score(self, rows: Outputs) -> Tensor:
        embeddings = normalize(rows.embeddings.float(), dim=1)
        cosines = embeddings @ self.labels.to(embeddings.device).T  # (n, E) @ (E, C + M) -> (n, C + M)
        parts = cosines[:, : self.num_classes], cosines[:, self.num_classes :]
        of_class, of_outlier = (part.amax(dim=1).double() for part in parts)
        share = largest_softmax(cosines, self.tau)  # of the nearest of all, an ID class or not
        nearest = torch.maximum(of_class, of_outlier)
        return share * sum(
            sign * ((part - nearest) / self.tau).exp() for part, sign in ((of_class, 1), (of_outlier, -self.beta))
        )
