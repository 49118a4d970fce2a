"""The space in which the images of a folder are compared: its principal directions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from clip_ood.detectors.gaussian import eigh
from clip_ood.errors import UserError
from clip_ood.features.rows import Rows

MOST = 128  # directions
VARIES = 1e-8  # of the largest variance: what varies less is rounding


@dataclass(frozen=True)
class Principal:
    """N images by their q principal components, each row of unit norm (or zero).

    plain: (N, q) Qᵀ (ĝ − μ), normalised, where ĝ = g / ‖g‖ has mean μ, and Q (D, q) are the eigenvectors of the largest eigenvalues of
    its covariance; white: (N, q) the same divided by the square roots of these eigenvalues before it is normalised.
    """

    plain: Tensor
    white: Tensor


def principal(features: Rows) -> Principal:
    """Returns the images (N, D) by their q = min(2 √N, MOST) first principal components, rounded, float32.

    Fewer directions are taken if fewer vary. The mean, which features of most encoders share, says nothing about any image, and
    the many directions in which a folder hardly varies would drown the few that tell its images apart. The features are read
    twice, block by block. Raises: UserError for features that are NaN or infinite.
    """
    components, spread, _ = _components(features, min(round(2 * sqrt(len(features))), MOST))
    return Principal(normalize(components, dim=1), normalize(components / spread, dim=1))


@dataclass(frozen=True)
class Plane:
    """The first two principal components (N, 2) of N images' directions, zeros where fewer vary, and the share of the variance in them."""

    points: Tensor
    variance: float


def plane(features: Rows) -> Plane:
    """Returns a map of images (N, D). Images are never farther from each other on it than they are in truth."""
    components, _, share = _components(features, 2)
    return Plane(pad(components, (0, 2 - components.shape[1])), share)


def _components(features: Rows, count: int) -> tuple[Tensor, Tensor, float]:
    """Returns up to `count` components (N, q), those with the largest variance first, the square roots of their variances (q,), and
    their share of the whole variance."""
    total, products = 0.0, 0.0
    for block in _directions(features):
        total = total + block.sum(dim=0)
        products = products + block.T @ block  # (D, n) @ (n, D) -> (D, D)
    mean = total / len(features)
    variances, axes = eigh(products / len(features) - torch.outer(mean, mean))
    varying = int((variances > VARIES * variances[-1].clamp_min(VARIES)).sum())
    count = min(count, varying, len(features) - 1)
    if count < 1:
        return torch.zeros(len(features), 1), torch.ones(1), 0.0
    axes, spread = axes.flip(1)[:, :count], variances.flip(0)[:count].sqrt()
    share = min(1.0, float(spread.square().sum() / variances.clamp_min(0).sum()))  # rounded
    return torch.cat([((block - mean) @ axes).float() for block in _directions(features)]), spread.float(), share


def _directions(features: Rows) -> Iterator[Tensor]:
    """Yields blocks (n, D) of features on the unit sphere, in float64."""
    for block in features.blocks():
        wide = block.double()
        if broken := int((~wide.isfinite().all(dim=1)).sum()):
            raise UserError(
                f"{broken} of {len(block)} images have NaN or infinite features, so that they cannot be compared with the others: "
                "encode them again, with backbone.precision=fp32, and check the weights"
            )
        yield normalize(wide, dim=1)
