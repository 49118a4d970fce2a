"""InterNeg's test-time half, which inverts the images that look least like a class into texts, and takes these for negative labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.negative_labels import grouped, in_groups
from clip_ood.outputs import Reference
from clip_ood.stream.adaptive import AdaptiveDetector
from clip_ood.stream.inversion import invert

NORM = 1e-6  # by which a remembered embedding may be longer or shorter than 1


class InterNeg(AdaptiveDetector):
    """InterNeg: N(h), the score of NegLabel in `groups` groups, with inverted images of the stream among its negative labels.

    h: embeddings (n, E). The texts are the ID classes t (C, E) and negative labels (M, E) of the reference; v (C, E): the unit-norm mean images
    of the classes, of which those without training images do not count. Each image of a batch with N(h) < `threshold` is inverted
    into a text u (`invert`, in `steps` steps). If ⟨u, v_c⟩ < ⟨t_c, v_c⟩ for all classes c, u is remembered with the score
    mean_c (⟨t_c, v_c⟩ − ⟨u, v_c⟩); the `length` highest scores stay and, of equal ones, the earlier. Then the batch is scored. Groups are drawn by
    `seed` anew for each number of labels, and the inversions of every batch by `seed`, so that a memory needs no state of a generator.
    memory: embeddings (≤ length, E) and scores (≤ length,), both float64, highest score first. The text tower's own precision is that of
    the inversion. Xu et al., 2026 (arXiv 2603.02618); defaults are those with which their code (ZhikangXu0112/InterNeg) runs on ImageNet.
    Raises UserError for parameters out of range, for other classes than the mean images are of, and as `invert` does.
    """

    name: ClassVar[str] = "interneg"
    requires: ClassVar[tuple[str, ...]] = ("logit_scale", "neglabel", "class_images", "text_tower")

    def __init__(
        self,
        reference: Reference,
        *,
        length: int = 2000,
        threshold: float = 0.35,
        groups: int = 5,
        steps: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__(reference)
        self._check_counts(length=length, groups=groups, steps=steps)
        self._check_shares(threshold=threshold)
        self.length, self.threshold, self.groups, self.steps, self.seed = length, threshold, groups, steps, seed
        labels, images = reference.neglabel, reference.class_images
        seen = (images != 0).any(dim=1)
        if len(images) != len(labels.classes) or not seen.any():
            raise self._error(
                f"there are {len(labels.classes)} classes and the mean images of {int(seen.sum())}, expected those of all or most"
            )
        self.num_classes, self.rows = len(labels.classes), (0, length)
        self.register_buffer("class_images", normalize(images[seen].double(), dim=1), persistent=False)  # (≤ C, E)
        own = normalize(labels.classes.double(), dim=1)[seen.to(labels.classes.device)].to(images.device)
        self.register_buffer("own", (own * self.class_images).sum(dim=1), persistent=False)  # (≤ C,) ⟨t_c, v_c⟩
        self.keep_texts(labels.classes, labels.negatives)

    def _empty(self) -> dict[str, Tensor]:
        return {
            "embeddings": torch.empty(0, self.width, dtype=torch.float64),
            "scores": torch.empty(0, dtype=torch.float64),
        }

    def _unfit(self, memory: Mapping[str, Tensor]) -> str | None:
        if (memory["scores"].diff() > 0).any():
            return "its scores are not in order"
        return (
            None
            if ((memory["embeddings"].norm(dim=1) - 1).abs() < NORM).all()
            else "its embeddings are not of unit norm"
        )

    def _score(self, embeddings: Tensor) -> Tensor:
        scores = self._negative_label_score(embeddings)
        unknown = scores < self.threshold
        if not unknown.any():
            return scores
        self._remember(embeddings[unknown])
        return self._negative_label_score(embeddings)

    def _negative_label_score(self, embeddings: Tensor) -> Tensor:
        labels = torch.cat([self.texts, self.memory["embeddings"]])
        groups, order = in_groups(len(labels) - self.num_classes, self.groups, self.seed)
        compared = torch.cat([torch.arange(self.num_classes), self.num_classes + order]).to(labels.device)
        logits = self.reference.logit_scale * (embeddings @ labels[compared].T)  # (n, E) @ (E, C + G · size)
        return grouped(logits, self.num_classes, groups)

    def _remember(self, images: Tensor) -> None:
        tower = self.reference.text_tower()
        if images.is_cuda:
            tower = tower.to(images.device)
        found = invert(tower, images, self.steps, self.seed)
        cosines = found @ self.class_images.T  # (n, E) @ (E, ≤ C)
        farther = (cosines < self.own).all(dim=1)
        new = {"embeddings": found[farther], "scores": (self.own - cosines[farther]).mean(dim=1)}
        joined = {name: torch.cat([self.memory[name], value]) for name, value in new.items()}
        kept = joined["scores"].argsort(descending=True, stable=True)[: self.length]
        self.memory = {name: value[kept] for name, value in joined.items()}
