"""Finds labels of a folder's images that are probably wrong, and estimates how many are, by what the nearest images are labelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from clip_ood.folder.suspects import Folder
from clip_ood.metrics.knn_accuracy import vote_shares

CELLS = 2**24  # of the votes of a block of images for all classes
ROUNDING = 1e-6  # of a share


@dataclass(frozen=True)
class Votes:
    """The classes (N, k) int64 that N images' neighbours vote for, −1 behind the last one, and the share (N, k) of each in the vote."""

    classes: np.ndarray
    shares: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Votes]) -> Votes:
        return cls(np.concatenate([each.classes for each in parts]), np.concatenate([each.shares for each in parts]))


@dataclass(frozen=True)
class Doubts:
    """The labels that are probably wrong, the most doubtful first.

    Attributes: places (m,) of their images; suggested (m,) classes; of_label and of_suggested (m,), the shares of the votes for both;
    checked, the number of labels that could be checked; wrong, an estimate of how many of these are wrong.
    """

    places: np.ndarray
    suggested: np.ndarray
    of_label: np.ndarray
    of_suggested: np.ndarray
    checked: int
    wrong: float

    def about(self) -> dict[str, float]:
        """Returns what results.json says of them."""
        return {"checked": self.checked, "doubtful": len(self.places), "wrong": self.wrong}


@dataclass(frozen=True)
class DoubtfulLabel:
    """A line of labels.csv: an image, its label, the class that is suggested instead, and the probability of each."""

    rank: int
    path: str
    image: str | None
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float


def votes(cosines: Tensor, neighbour_labels: Tensor, num_classes: int) -> Votes:
    """Returns the non-zero ones of `vote_shares`, at most k for each image. Arguments (N, k) and errors are those of that function."""
    found = []
    size = max(1, CELLS // num_classes)
    for near, labels in zip(cosines.split(size), neighbour_labels.split(size), strict=True):
        shares, classes = vote_shares(near, labels, num_classes).topk(min(near.shape[1], num_classes), dim=1)
        found.append(Votes(classes.where(shares > 0, -1).numpy(), shares.numpy()))
    return Votes.joined(found)


def doubtful_labels(voted: Votes, labels: np.ndarray, voters: np.ndarray) -> Doubts | None:
    """Returns the labels that the confident joint speaks against, or None if fewer than two classes can be checked.

    p_j, the share of class j in the vote of an image's nearest others, is its out-of-sample probability. The threshold of a class is
    how sure the votes are of it, on average, for the n_j images that are labelled so: t_j = mean of p_j over these images. An image is
    counted, in C_ij, for its label i and the class j with the largest p_j among those with p_j ≥ t_j and p_j > 0; without such a class it
    is not counted. Doubtful are the labels off the diagonal, i ≠ j, that also have less of the vote than j; they are sorted by
    p_i − p_j. The estimate is wrong = Σ_i n_i Σ_{j≠i} C_ij / Σ_j C_ij.

    Only C's rows are summed, so that neither N · C nor C · C numbers are kept. labels: (N,) int64, −1 for none; voters: (C,), how many
    images of each class can vote. A class with fewer than two of these is neither checked nor suggested, since nothing but an image
    itself could vouch for its label.

    Northcutt, Jiang, Chuang: Confident Learning: Estimating Uncertainty in Dataset Labels, 2021 (arXiv 1911.00068).
    """
    checked = (labels >= 0) & (voters[labels] >= 2)
    own = np.where(voted.classes == labels[:, None], voted.shares, 0).sum(axis=1)  # (N, k) -> (N,)
    number = np.bincount(labels[checked], minlength=len(voters))
    if np.count_nonzero(number) < 2:
        return None
    total = np.bincount(labels[checked], weights=own[checked], minlength=len(voters))
    threshold = np.where(number > 0, total / np.maximum(number, 1), np.inf)  # (C,)
    passes = (voted.classes >= 0) & (voted.shares >= threshold[voted.classes] - ROUNDING)
    slot = np.where(passes, voted.shares, -1).argmax(axis=1)[:, None]
    confident, other = (np.take_along_axis(each, slot, axis=1)[:, 0] for each in (voted.classes, voted.shares))
    counted = checked & passes.any(axis=1)
    differs = counted & (confident != labels)
    row, off = (np.bincount(labels[rows], minlength=len(voters)) for rows in (counted, differs))
    places = np.flatnonzero(differs & (other > own))
    places = places[np.argsort((own - other)[places], kind="stable")]
    return Doubts(
        places,
        confident[places],
        own[places],
        other[places],
        int(checked.sum()),
        float((number * off / np.maximum(row, 1)).sum()),
    )


def doubtful_rows(folder: Folder, doubts: Doubts, names: Sequence[str]) -> Iterator[DoubtfulLabel]:
    """Yields the lines of labels.csv; names (C,) are those of the classes."""
    columns = (each.tolist() for each in (doubts.places, doubts.suggested, doubts.of_label, doubts.of_suggested))
    for rank, (place, suggested, own, other) in enumerate(zip(*columns, strict=True), start=1):
        path, image, label = folder.paths[place], folder.image(place), folder.labels[place]
        yield DoubtfulLabel(rank, path, image, label, names[suggested], own, other)
