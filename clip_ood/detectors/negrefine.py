"""NegRefine, which asks of each image whether it shows an ID class and a negative label at once, in a text made of both."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.detector import Detector
from clip_ood.detectors.negative_labels import CELLS, grouped, in_groups
from clip_ood.outputs import Outputs, Reference

PROMPT = "the nice {} and {}"  # as `neglabel` prompts classes and nouns
IMAGES = 256  # whose texts are looked up together
TEXTS = 256  # that the text tower reads at once
KEPT = 2**16  # texts whose embeddings are kept at most, beyond those of the images at hand


class NegRefine(Detector):
    """NegRefine: N(h) + α max_{c, w} σ(s⟨h, t(c and w)⟩ − s⟨h, w⟩), over the k nearest classes c and the k nearest negative labels w.

    h: embeddings (N, E); N: the score of NegLabel in `groups` groups drawn with `seed`, with the classes (C, E) and negative labels (M, E) of
    the reference, of which there may be fewer than k; t(c and w): the embedding of the text "the nice <c> and <w>"; s: the model's own
    logit scale (100 for CLIP); α: `weight`, at least 0. An image that shows an ID class beside something else is nearer to such a text
    than to the label alone. Of equally near ones, the first counts. A text is encoded when an image first asks for it, and its embedding is
    kept; scores do not depend on the order of images, but for the rounding of an encoder that reads texts in other batches.
    Everything but the text tower is computed in float64. Raises ValueError for parameters out of range, and for negative labels without
    their words. Ansari et al., 2025 (arXiv 2507.09795); the defaults are those of their code (ah-ansari/NegRefine), which has α as 2.
    """

    name: ClassVar[str] = "negrefine"
    requires: ClassVar[tuple[str, ...]] = ("embeddings", "logit_scale", "class_names", "neglabel", "text_tower")

    def __init__(
        self,
        reference: Reference | None = None,
        *,
        k: int = 5,
        weight: float = 2.0,
        groups: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(reference)
        for key, value in (("k", k), ("groups", groups)):
            if type(value) is not int or value < 1:
                raise self._error(f"{key} = {value}, expected a whole number from 1 on")
        if not (weight >= 0 and isfinite(weight)):
            raise self._error(f"weight = {weight}, expected a number from 0 on")
        labels, self.weight, self.k = self.reference.neglabel, weight, k
        self.num_classes, self.num_words = len(labels.classes), len(labels.negatives)
        if len(labels.words) != self.num_words:
            raise self._error(
                f"needs the words of its {self.num_words:,} negative labels, got {len(labels.words):,}: run the experiment again"
            )
        self.groups, order = in_groups(self.num_words, groups, seed)
        both = torch.cat([labels.classes.cpu(), labels.negatives.cpu()])
        self.register_buffer("labels", normalize(both.double(), dim=1), persistent=False)  # (C + M, E)
        compared = torch.cat([torch.arange(self.num_classes), self.num_classes + order])
        self.register_buffer("compared", compared, persistent=False)  # those that N compares, group by group
        self._pairs: dict[int, int] = {}  # c · M + w -> its row among the embeddings
        self._texts = both.new_empty(0, both.shape[1])

    def traceable(self) -> Callable[[Outputs], Tensor]:
        raise self._error("it reads new texts while it scores, which no graph holds")

    def at_once(self, rows: Outputs) -> int:
        return min(IMAGES, CELLS // len(self.labels))

    def _score(self, rows: Outputs) -> Tensor:
        embeddings = normalize(rows.embeddings.double(), dim=1)
        self.labels, self.compared = (each.to(embeddings.device) for each in (self.labels, self.compared))
        logits = self.reference.logit_scale * (embeddings @ self.labels.T)  # (n, E) @ (E, C + M)
        score = grouped(logits[:, self.compared], self.num_classes, self.groups)
        classes, words = (
            part.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
            for part in (logits[:, : self.num_classes], logits[:, self.num_classes :])
        )
        pairs = classes[:, :, None] * self.num_words + words[:, None, :]  # (n, ≤ k, ≤ k)
        texts = self._encoded(pairs.flatten(1).to("cpu")).to(embeddings)  # (n, ≤ k², E)
        both = self.reference.logit_scale * (texts @ embeddings[:, :, None]).squeeze(2)
        alone = logits.gather(1, self.num_classes + words)[:, None, :].expand(pairs.shape).flatten(1)
        return score + self.weight * (both - alone).sigmoid().amax(dim=1)

    @torch.no_grad()
    def _encoded(self, pairs: Tensor) -> Tensor:
        """Returns the unit-norm embeddings (n, p, E) of the texts of pairs (n, p), of which those that are not kept yet are encoded."""
        wanted, places = pairs.unique(return_inverse=True)
        if not wanted.numel():
            return self._texts.new_empty(*pairs.shape, self._texts.shape[1])
        if len(self._pairs) > KEPT:
            self._pairs, self._texts = {}, self._texts[:0]
        new = [pair for pair in wanted.tolist() if pair not in self._pairs]
        if new:
            self._texts = torch.cat([self._texts, *self._read([self._text(pair) for pair in new])])
            self._pairs |= {pair: len(self._pairs) + number for number, pair in enumerate(new)}
        rows = torch.tensor([self._pairs[pair] for pair in wanted.tolist()])
        return normalize(self._texts[rows].double(), dim=1)[places]

    def _read(self, texts: list[str]) -> list[Tensor]:
        tower = self.reference.text_tower().to(self.labels.device)
        return [tower.encode_text(texts[at : at + TEXTS]).float().cpu() for at in range(0, len(texts), TEXTS)]

    def _text(self, pair: int) -> str:
        label, word = divmod(pair, self.num_words)
        return PROMPT.format(self.reference.class_names[label], self.reference.neglabel.words[word])
