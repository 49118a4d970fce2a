"""NegLabel and CSP, which ask whether an image is closer to an ID class or to one of many words that name no class."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.detector import Detector
from clip_ood.outputs import Outputs, Reference

CELLS = 2**21  # cosines computed at once: 16 MiB in float64, which a cache holds better than more


def in_groups(count: int, groups: int, seed: int) -> tuple[int, Tensor]:
    """Divides `count` labels into groups of equal size, by a permutation: G, and the labels of the groups one after the other (G · size,).

    Without `groups` labels, G is their count.
    """
    groups = min(groups, count)
    return groups, torch.randperm(count // groups * groups, generator=torch.Generator().manual_seed(seed))


def grouped(logits: Tensor, num_classes: int, groups: int) -> Tensor:
    """Returns NegLabel's score (n,) of logits (n, C + G · size): the share of the classes against a group, as a mean over the groups."""
    classes = logits[:, :num_classes].logsumexp(dim=1, keepdim=True)  # (n, 1)
    negatives = logits[:, num_classes:].unflatten(1, (groups, -1)).logsumexp(dim=2)  # (n, G)
    return (classes - negatives).double().sigmoid().mean(dim=1)


class NegLabel(Detector):
    """NegLabel: (1 / G) Σ_g Σ_c e^{s⟨h, t_c⟩} / (Σ_c e^{s⟨h, t_c⟩} + Σ_{w ∈ g} e^{s⟨h, w⟩}).

    h: embeddings (N, E); t: the classes (C, E), w: the negative labels (M, E) of the reference; s: the model's own
    logit scale (100 for CLIP). A permutation drawn with `seed` divides the labels into G = `groups` groups of equal size, so
    that the last M mod G labels are left out; M < G labels make M groups. Logits and sums of their exponentials are computed in
    float32, and a score is within 1e-5 of that in float64. Raises ValueError for groups < 1 and for a reference without negative labels.
    Jiang et al., 2024 (arXiv 2403.20078).

    >>> from clip_ood.outputs import NegativeLabels
    >>> labels = NegativeLabels(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    >>> detector = NegLabel(Reference(logit_scale=1.0, neglabel=labels))
    >>> detector.score(Outputs(embeddings=torch.tensor([[1.0, 0.0], [1.0, 1.0]])))
    tensor([0.7311, 0.5000])
    """

    name: ClassVar[str] = "neglabel"
    requires: ClassVar[tuple[str, ...]] = ("embeddings", "logit_scale", "neglabel")

    def __init__(self, reference: Reference | None = None, *, groups: int = 100, seed: int = 0) -> None:
        super().__init__(reference)
        if type(groups) is not int or groups < 1:
            raise self._error(f"groups = {groups}, expected a whole number from 1 on")
        labels = getattr(self.reference, self.name)
        self.groups, order = in_groups(len(labels.negatives), groups, seed)
        self.num_classes = len(labels.classes)
        both = torch.cat([labels.classes.cpu(), labels.negatives.cpu()[order]])
        self.register_buffer("labels", normalize(both.double(), dim=1).float(), persistent=False)  # (C + G · size, E)

    def at_once(self, rows: Outputs) -> int:
        return 2 * CELLS // len(self.labels)

    def _score(self, rows: Outputs) -> Tensor:
        embeddings = normalize(rows.embeddings.float(), dim=1)
        self.labels = self.labels.to(embeddings.device)  # moved once: they are many
        logits = self.reference.logit_scale * (embeddings @ self.labels.T)  # (n, E) @ (E, C + G · size)
        return grouped(logits, self.num_classes, self.groups)


class CSP(NegLabel):
    """Conjugated semantic pool: the score of NegLabel with other labels.

    Classes and nouns are means over eight prompts, adjectives are combined with one of 14 superclasses, and candidates with a
    cosine above 0.95 to a class are left out (`clip_ood.texts.negative_words`). Raises as NegLabel does.
    Chen et al., 2024 (arXiv 2410.08611).
    """

    name: ClassVar[str] = "csp"
    requires: ClassVar[tuple[str, ...]] = ("embeddings", "logit_scale", "csp")
