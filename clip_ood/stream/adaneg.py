"""AdaNeg, which moves classes and negative labels towards the images of the stream that they are surest of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from clip_ood.detectors.negative_labels import CELLS, grouped, in_groups
from clip_ood.outputs import Reference
from clip_ood.stream.adaptive import AdaptiveDetector, ranks

PROXIES = ("sample", "task")
TINY = 1e-8  # keeps the authors' logarithm finite


class AdaNeg(AdaptiveDetector):
    """AdaNeg: N(h, proxies) + λ N(h, texts), with N the score of NegLabel in `groups` groups.

    h: embeddings (n, E). The texts are the ID classes and negative labels of the reference, (C + M, E) together; each has a memory of
    at most `length` − 1 images. An image with N(h, texts) > γ + g (1 − γ) is remembered under its nearest ID class, one with
    N(h, texts) < γ − g γ under its nearest negative label (γ: `threshold`, g: `gap`). A full memory keeps the images whose softmax over
    the classes (or over the negative labels) has the lowest entropy; of equally low ones, the earlier. A batch is remembered before it is
    scored. The proxy of a text t with images m_1, m_2, … is the unit-norm Σ_j a_j m_j over m_0 = t and its images, where
    a_j = e^{−β (1 − ⟨h, m_j⟩)} for proxies = "sample", and 1 for "task"; without images it is t.
    memory: embeddings (F, E) and entropies (F,) float64, labels (F,) int64, the position of the text; in order of arrival.
    Zhang & Zhang, 2024 (arXiv 2410.20149). Defaults are those with which their code (YBZh/OpenOOD-VLM) runs: it truncates β = 5.5 to 5.
    Raises UserError for parameters out of range.
    """

    name: ClassVar[str] = "adaneg"
    requires: ClassVar[tuple[str, ...]] = ("logit_scale", "neglabel")

    def __init__(
        self,
        reference: Reference,
        *,
        length: int = 10,
        threshold: float = 0.5,
        gap: float = 0.5,
        beta: float = 5.0,
        weight: float = 0.1,
        groups: int = 5,
        seed: int = 0,
        proxies: str = "sample",
    ) -> None:
        super().__init__(reference)
        self._check_counts(groups=groups)
        self._check_counts(fewest=2, length=length)
        self._check_shares(threshold=threshold, gap=gap)
        if not (beta >= 0 and weight >= 0):
            raise self._error(f"beta = {beta} and weight = {weight}, expected numbers from 0 on")
        if proxies not in PROXIES:
            raise self._error(f"proxies = {proxies!r}, expected {' or '.join(PROXIES)}")
        self.length, self.threshold, self.gap, self.proxies = length, threshold, gap, proxies
        self.beta, self.weight = beta, weight
        labels = reference.neglabel
        self.num_classes = len(labels.classes)
        self.keep_texts(labels.classes, labels.negatives)
        self.groups, order = in_groups(len(labels.negatives), groups, seed)
        both = torch.cat([torch.arange(self.num_classes), self.num_classes + order])
        self.register_buffer("compared", both, persistent=False)  # the texts that N compares, group by group
        self.rows = (0, len(self.texts) * (length - 1))

    def _empty(self) -> dict[str, Tensor]:
        return {
            "embeddings": torch.empty(0, self.width, dtype=torch.float64),
            "entropies": torch.empty(0, dtype=torch.float64),
            "labels": torch.empty(0, dtype=torch.int64),
        }

    def _unfit(self, memory: Mapping[str, Tensor]) -> str | None:
        labels = memory["labels"]
        if not ((labels >= 0) & (labels < len(self.texts))).all():
            return "labels names texts that there are not"
        return None if (ranks(labels) < self.length - 1).all() else "a text has too many images"

    def _score(self, embeddings: Tensor) -> Tensor:
        cosines = embeddings @ self.texts.T  # (n, E) @ (E, C + M)
        before = self._negative_label_score(cosines)
        self._remember(embeddings, cosines, before)
        return self._negative_label_score(self._to_proxies(embeddings, cosines)) + self.weight * before

    def _negative_label_score(self, cosines: Tensor) -> Tensor:
        logits = self.reference.logit_scale * cosines[:, self.compared]
        return grouped(logits, self.num_classes, self.groups)

    def _remember(self, embeddings: Tensor, cosines: Tensor, scores: Tensor) -> None:
        known = scores > self.threshold + self.gap * (1 - self.threshold)
        unknown = scores < self.threshold - self.gap * self.threshold
        found = [self.memory]
        for flags, first, part in (
            (known, 0, cosines[:, : self.num_classes]),
            (unknown, self.num_classes, cosines[:, self.num_classes :]),
        ):
            shares = (self.reference.logit_scale * part[flags]).softmax(dim=1)
            entropies = -(shares * (shares + TINY).log()).sum(dim=1)
            labels = first + part[flags].argmax(dim=1)
            found.append({"embeddings": embeddings[flags], "entropies": entropies, "labels": labels})
        joined = {name: torch.cat([each[name] for each in found]) for name in self.memory}
        surest = joined["entropies"].argsort(stable=True)
        kept = surest[ranks(joined["labels"][surest]) < self.length - 1].sort().values
        self.memory = {name: value[kept] for name, value in joined.items()}

    def _to_proxies(self, embeddings: Tensor, cosines: Tensor) -> Tensor:
        """Returns the cosines (n, C + M) of images to the proxies, from those to the texts."""
        images, labels = self.memory["embeddings"], self.memory["labels"]
        if not len(labels):
            return cosines
        texts, places = labels.unique(return_inverse=True)
        members = embeddings.new_zeros(len(texts), self.length, self.width)
        there = torch.zeros(members.shape[:2], dtype=torch.bool, device=members.device)
        members[:, 0], there[:, 0] = self.texts[texts], True
        slots = 1 + ranks(labels)
        members[places, slots], there[places, slots] = images, True
        products = members @ members.transpose(1, 2)  # (T, L, L)
        found = cosines.clone()
        rows = max(1, CELLS // there.numel())
        for start in range(0, len(embeddings), rows):
            near = (embeddings[start : start + rows] @ members.flatten(0, 1).T).unflatten(1, there.shape)  # (r, T, L)
            share = (-self.beta * (1 - near)).exp() if self.proxies == "sample" else torch.ones_like(near)
            share = (share * there).transpose(0, 1)  # (T, r, L)
            norms = ((share @ products) * share).sum(dim=2).sqrt()
            found[start : start + rows, texts] = ((share * near.transpose(0, 1)).sum(dim=2) / norms).T
        return found
