"""The closed-form bridge from an ImageNet classifier's features to sentence embeddings: no image, no training.

A row w_c of the classifier is the direction of feature space that stands for class c, a sentence embedding t_c is the
direction of text space that does. A linear map that takes one to the other carries image features g into text space:

    h(g) = A (g - mean g),    A = argmin ||X A' - Y||^2 + lambda ||A||^2    (X: classifier rows, Y: sentences, centred)

The text side is compared as it is, uncentred: h . t_c = h . (t_c - m) + h . m, and the last term is the same for every
class, so neither the predicted class nor a softmax over classes depends on the mean sentence m.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def clipped_gaussian_mean(mean: Tensor, std: Tensor, low: float, high: float) -> Tensor:
    """Returns the mean of a Gaussian clipped to [low, high], elementwise.

    E[clip(N(m, s^2), a, b)] = a P(alpha) + b (1 - P(beta)) + m (P(beta) - P(alpha)) + s (p(alpha) - p(beta))
    with alpha = (a - m) / s, beta = (b - m) / s, P and p the standard normal's distribution and density.

    >>> clipped_gaussian_mean(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]), 0.0, 6.0)
    tensor([3.0000, 0.3989])
    """
    std = std.clamp_min(torch.finfo(std.dtype).tiny)
    alpha, beta = (low - mean) / std, (high - mean) / std
    below, above = torch.special.ndtr(alpha), torch.special.ndtr(-beta)

    def density(x: Tensor) -> Tensor:
        return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    return low * below + high * above + mean * (1 - below - above) + std * (density(alpha) - density(beta))


def ridge(inputs: Tensor, targets: Tensor, strength: float = 1.0) -> Tensor:
    """Returns the ridge regression between centred rows: A = (Xc'Xc + strength I)^-1 Xc'Yc.

    Args:
        inputs: (N, D) rows, centred here.
        targets: (N, E) rows, centred here.
        strength: lambda, the weight of ||A||^2.

    Returns:
        (D, E): a centred row x maps to x @ A.
    """
    x, y = inputs - inputs.mean(0), targets - targets.mean(0)
    gram = x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ y)  # (D, D) \ (D, E) -> (D, E)


def smallest_sure_scale(cosines: Tensor, confidence: float = 0.9, share: float = 0.95) -> int:
    """Returns the smallest integer logit scale s with max_c softmax(s cos) >= `confidence` in at least `share` of the rows.

    The rows are the classifier's own, each the ideal image of its class: those an encoder should be sure of. A smaller
    scale would let the confidence filter of pseudo-labels refuse even them, a larger one would let everything pass.
    (Maximum likelihood has no answer here: it grows without bound on rows the projection was fitted to, and drops to
    about 15, where hardly any row passes, on rows held out of the fit.)

    Args:
        cosines: (N, K) between projected rows and class texts.

    Raises:
        ValueError: no scale up to 1000 is enough.
    """
    for scale in range(1, 1001):
        sure = (scale * cosines).softmax(-1).amax(-1) >= confidence
        if sure.double().mean() >= share:
            return scale
    raise ValueError(f"no logit scale up to 1000 makes {share:.0%} of {len(cosines)} rows {confidence} sure")


def unit_rows(rows: Tensor) -> Tensor:
    """Returns rows divided by their L2 norm, in float64: (N, D) -> (N, D)."""
    return F.normalize(rows.double(), dim=-1)
