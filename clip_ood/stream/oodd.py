"""OODD, which compares each image with a dictionary of those of the stream that looked least like a class."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from clip_ood.outputs import Reference
from clip_ood.stream.adaptive import AdaptiveDetector


class OODD(AdaptiveDetector):
    """OODD upon MCM: max_c softmax(⟨h, t_c⟩ / τ) minus the k-th largest cosine of h to a dictionary of images.

    h: embeddings (n, E); t: text embeddings of the classes (C, E); τ: `tau`. The dictionary keeps the `size` images of the stream with
    the lowest first term; of equally low ones, the earlier stay. A batch enters it before it is scored, so that an image may be
    among its own k nearest. A dictionary of fewer than k images gives the smallest cosine to one of them.
    memory: embeddings (≤ size, E) and scores (≤ size,), both float64, in order of arrival.
    Yang et al., 2025 (arXiv 2503.10468), as in the MCM part of their code (zxk1212/OODD), which takes k = 5, size = 2048, τ = 1.
    Raises UserError for k, size or τ that are not positive.

    >>> from clip_ood.outputs import Outputs
    >>> method = OODD(Reference(text_embeddings=torch.tensor([[1.0, 0.0], [0.0, 1.0]])), k=1)
    >>> method.score(Outputs(embeddings=torch.tensor([[1.0, 0.0]])))
    tensor([-0.2689], dtype=torch.float64)
    """

    name: ClassVar[str] = "oodd"
    requires: ClassVar[tuple[str, ...]] = ("text_embeddings",)

    def __init__(self, reference: Reference, *, size: int = 2048, k: int = 5, tau: float = 1.0) -> None:
        super().__init__(reference)
        self._check_counts(size=size, k=k)
        if not tau > 0:
            raise self._error(f"tau = {tau}, expected a number above 0")
        self.size, self.k, self.tau, self.rows = size, k, tau, (0, size)
        self.keep_texts(reference.text_embeddings)

    def _empty(self) -> dict[str, Tensor]:
        return {name: torch.empty(shape, dtype=torch.float64) for name, shape in self._shapes().items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeddings": (0, self.width), "scores": (0,)}

    def _score(self, embeddings: Tensor) -> Tensor:
        likely = (embeddings @ self.texts.T / self.tau).softmax(dim=1).amax(dim=1)  # (n, E) @ (E, C) -> (n,)
        joined = {
            name: torch.cat([self.memory[name], new]) for name, new in (("embeddings", embeddings), ("scores", likely))
        }
        kept = joined["scores"].argsort(stable=True)[: self.size].sort().values
        self.memory = {name: value[kept] for name, value in joined.items()}
        cosines = embeddings @ self.memory["embeddings"].T  # (n, E) @ (E, ≤ size)
        return likely - cosines.topk(min(self.k, cosines.shape[1]), dim=1).values[:, -1] if len(embeddings) else likely
