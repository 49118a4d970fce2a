"""Class predictions by a weighted vote of the nearest neighbours."""

import torch
from torch import Tensor


def weighted_vote(cosines: Tensor, neighbour_labels: Tensor, num_classes: int, temperature: float = 0.02) -> Tensor:
    """Class with the largest sum of exp(cosine / temperature) over the neighbours that have that label.

    Needs N · num_classes · 4 bytes: pass large sets in parts.

    Args:
        cosines: (N, k) floating point, cosine of each image with its k neighbours.
        neighbour_labels: (N, k) int64 in [0, num_classes); −1 is a neighbour without label, which doesn't vote.
        num_classes: number of classes.
        temperature: above 0; a lower one gives nearer neighbours more weight.

    Returns:
        (N,) int64 predicted classes; −1 where no neighbour votes.

    Raises:
        ValueError: shapes that differ, a label outside [−1, num_classes), a temperature that is not positive.

    References:
        Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018.

    Example:
        >>> weighted_vote(torch.tensor([[0.91, 0.90, 0.90]]), torch.tensor([[2, 1, 1]]), num_classes=3)
        tensor([1])
    """
    shares = vote_shares(cosines, neighbour_labels, num_classes, temperature)
    return shares.argmax(1).where((neighbour_labels >= 0).any(1), -1)


def vote_shares(cosines: Tensor, neighbour_labels: Tensor, num_classes: int, temperature: float = 0.02) -> Tensor:
    """The share of the vote of each class (N, num_classes), zeros where no neighbour votes. Arguments and errors as in
    `weighted_vote`."""
    if cosines.ndim != 2 or cosines.shape != neighbour_labels.shape:
        raise ValueError(
            f"cosines have shape {tuple(cosines.shape)} and neighbour_labels {tuple(neighbour_labels.shape)}, "
            "expected (N, k) for both"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a positive number, such as 0.02")
    outside = neighbour_labels[(neighbour_labels < -1) | (neighbour_labels >= num_classes)]
    if len(outside):
        raise ValueError(f"neighbour label {outside[0].item()} is outside [-1, {num_classes})")
    votes = neighbour_labels >= 0
    logits = (cosines.float() / temperature).masked_fill(~votes, -torch.inf)
    # Softmax subtracts the row's maximum; its normalisation changes no winner.
    weights = logits.softmax(1).masked_fill(~votes, 0)  # (N, k)
    totals = weights.new_zeros(len(cosines), num_classes)  # (N, num_classes)
    return totals.scatter_add_(1, neighbour_labels.clamp(min=0), weights)
