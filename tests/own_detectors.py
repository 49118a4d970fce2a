"""Detectors as somebody may write them: one that is right, at one width alone, and what goes wrong."""

from __future__ import annotations

import torch

from clip_ood.detectors import Detector
from clip_ood.detectors.class_sums import ClassSums, features, one_class


class Own(Detector):
    requires = ("features",)


class Right(Own):
    def _score(self, rows):
        return rows.features.norm(dim=1)


class Counting(Own):
    def _score(self, rows):
        return (rows.features > 0).sum(dim=1)


class Logarithm(Own):
    """Has no value for features below zero."""

    def _score(self, rows):
        return rows.features.log().sum(dim=1)


class OfWidth32(Own):
    def _score(self, rows):
        return rows.features @ torch.ones(32)


class OfWidth77(Own):
    def _score(self, rows):
        return rows.features @ torch.ones(77)


class Missing(Own):
    pass


class MissingFit(Own):
    def __init__(self, reference=None):
        super().__init__(reference)
        self.sums = ClassSums(features, one_class)

    def _score(self, rows):
        return rows.features.norm(dim=1)


class Forgetful(Own):
    def _score(self, rows):
        rows.features.norm(dim=1)


class Column(Own):
    def _score(self, rows):
        return rows.features[:, :1]


class Scalar(Own):
    def _score(self, rows):
        return rows.features.norm()


class Squeezed(Own):
    def _score(self, rows):
        return rows.features[:, :1].squeeze()


class Array(Own):
    def _score(self, rows):
        return rows.features.norm(dim=1).numpy()


class NotANumber(Own):
    def _score(self, rows):
        return torch.full((len(rows),), torch.nan)


class Infinite(Own):
    def _score(self, rows):
        return rows.features.norm(dim=1) * -torch.inf


class Misspelt(Own):
    def _score(self, rows):
        return rows.feature.norm(dim=1)


class Troubled(Own):
    def _score(self, rows):
        raise RuntimeError("no licence")


class OverTheBatch(Own):
    def _score(self, rows):
        return rows.features.softmax(dim=0)[:, 0]


class NoReference(Own):
    def __init__(self):
        super().__init__()

    def _score(self, rows):
        return rows.features.norm(dim=1)


class NoSuper(Own):
    def __init__(self, reference=None):
        self.reference = reference

    def _score(self, rows):
        return rows.features.norm(dim=1)


class OneText(Detector):
    requires = "features"

    def _score(self, rows):
        return rows.features.norm(dim=1)


class Unknown(Detector):
    requires = ("feature",)

    def _score(self, rows):
        return rows.features.norm(dim=1)
