"""Predicts the class of an image and how sure that is: by a head, by the text embeddings, or by the nearest ID training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_ood.detectors.bank import Bank
from clip_ood.metrics.knn_accuracy import vote_shares
from clip_ood.outputs import Outputs, Reference
from clip_ood.scores import Scores

HEAD, TEXT, KNN = "head", "text", "knn"
CALLED = {HEAD: "the head", TEXT: "the texts", KNN: "k-NN"}
NEIGHBOURS = 20  # vote


@dataclass(frozen=True)
class ClassPredictor:
    """The predictor of classes that is best on ID images that it was not made from, as ID val: `by` is head, text or knn.

    `accuracy` is the share of its `images` labelled images that each available predictor predicts right.
    """

    by: str
    accuracy: Mapping[str, float]
    images: int

    @classmethod
    def best(cls, accuracy: Mapping[str, float], images: int) -> ClassPredictor | None:
        """Returns the most accurate one (ties: head, then text), or None if nothing predicts or no image has a label.

        >>> ClassPredictor.best({"text": 0.21, "knn": 0.55}, 31).by
        'knn'
        """
        if not accuracy or not images:
            return None
        known = {by: accuracy[by] for by in CALLED if by in accuracy}
        return cls(max(known, key=known.get), known, images)

    def told(self) -> str:
        """Says in words what predicts classes, and how often each predictor is right.

        >>> ClassPredictor.best({"text": 0.21, "knn": 0.55}, 31).told()
        'k-NN (right on 31 held-out ID images: the texts 21.0 %, k-NN 55.0 %)'
        """
        listed = ", ".join(f"{CALLED[by]} {100 * value:.1f} %" for by, value in self.accuracy.items())
        return f"{CALLED[self.by]} (right on {self.images:,} held-out ID images: {listed})"


def predict(
    outputs: Outputs, text_embeddings: Tensor | None, logit_scale: float | None = None, by: str = HEAD
) -> tuple[Tensor, Tensor] | None:
    """Returns the class of each row (N,) and its probability (N,) float64, or None without a head and text embeddings.

    The probability is max softmax(z) of the head's logits (N, C) or, without a head or `by` text, max_c softmax(s ⟨h, t_c⟩) over
    text embeddings t (C, E), s = `logit_scale`.
    """
    if outputs.logits is not None and by == HEAD:
        logits = outputs.logits.double()
    elif outputs.embeddings is None or text_embeddings is None:
        return None
    else:
        cosines = outputs.embeddings.float() @ text_embeddings.float().T  # (N, E) @ (E, C) -> (N, C)
        logits = (1.0 if logit_scale is None else logit_scale) * cosines.double()
    confidence, classes = logits.softmax(dim=1).max(dim=1)
    return classes, confidence


def class_logits(outputs: Outputs, reference: Reference) -> Tensor | None:
    """Returns the logits (N, C) by which classes are predicted: those of the head or, without one, s ⟨h, t_c⟩; None without either."""
    if outputs.logits is not None:
        return outputs.logits
    if outputs.embeddings is None or reference.text_embeddings is None:
        return None
    scale = 1.0 if reference.logit_scale is None else reference.logit_scale
    return scale * (outputs.embeddings.float() @ reference.text_embeddings.float().T)


def classes_by(scores: Scores, predictor: ClassPredictor | None, loses_head: bool = False) -> Tensor | None:
    """Returns the classes (n,) of scored images by what predicts those of new images; None where they were not kept.

    `loses_head`: the classes are those of a head that new images are not judged by.
    """
    if predictor is not None and predictor.by == KNN:
        return scores.votes
    if loses_head:
        return None
    if predictor is None:
        return scores.predictions
    return None if predictor.by == TEXT and HEAD in predictor.accuracy else scores.predictions


def voted(rows: Outputs, bank: Bank, labels: Tensor) -> Tensor:
    """Returns the class that the 20 nearest of the bank's images vote for, and its share of the vote: (N, 2) float64.

    The class is -1 if none of them has a label. `labels` are those of the bank's images by their index, -1 for one without.
    """
    left_out = int(rows.copy_of is not None)  # the image itself
    cosines, neighbours = bank.nearest(rows, min(NEIGHBOURS, len(bank) - left_out))
    of_neighbours = labels.to(neighbours.device)[neighbours].where(neighbours >= 0, -1)
    share, classes = vote_shares(cosines, of_neighbours, int(labels.max()) + 1).max(dim=1)
    return torch.stack([classes.where((of_neighbours >= 0).any(dim=1), -1).double(), share.double()], dim=1)
