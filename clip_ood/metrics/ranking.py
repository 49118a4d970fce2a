"""Scores of ID and OOD images put in one order: the single sort from which every threshold metric follows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from clip_ood.threads import one_thread


@dataclass(frozen=True)
class Ranking:
    """M ID and N OOD scores in descending order, ties collapsed to G distinct thresholds.

    An image is called ID when its score is at least the threshold, so ID images called ID are true positives and OOD
    images called ID are false positives. Curves have G + 1 points: first "nothing is called ID", then each threshold.

    Attributes:
        thresholds: (G,) float64, distinct scores, descending.
        id_order, ood_order: (M,) and (N,) int64, rows of each class by descending score.
        id_above, ood_above: (G + 1,) int64, how many rows of each class are called ID at each point of the curve.
    """

    thresholds: Tensor
    id_order: Tensor
    ood_order: Tensor
    id_above: Tensor
    ood_above: Tensor

    def id_rows(self, values: Tensor) -> Tensor:
        """Values (G,) of thresholds as those (M,) of the ID images, in the order of the rows."""
        return _rows(values, self.id_above, self.id_order)

    def ood_rows(self, values: Tensor) -> Tensor:
        """Values (G,) of thresholds as those (N,) of the OOD images, in the order of the rows."""
        return _rows(values, self.ood_above, self.ood_order)

    def reversed(self) -> Ranking:
        """The ranking of the negated scores with OOD as the positive class."""
        of_ood, of_id = (each[-1] - each.flip(0) for each in (self.ood_above, self.id_above))
        return Ranking(-self.thresholds.flip(0), self.ood_order.flip(0), self.id_order.flip(0), of_ood, of_id)


@one_thread()
def rank_scores(id_scores: Tensor, ood_scores: Tensor) -> Ranking:
    """Sort ID scores (M,) and OOD scores (N,) together; O((M + N) log(M + N)), any finite values.

    Raises:
        ValueError: scores that are empty, not one-dimensional, NaN or infinite.
    """
    if not (id_scores.numel() and ood_scores.numel()):
        raise ValueError(
            f"AUROC needs both ID and OOD images: got {id_scores.numel()} ID and {ood_scores.numel()} OOD scores"
        )
    _check("ID", id_scores)
    _check("OOD", ood_scores)
    num_id = len(id_scores)
    scores, order = torch.cat([id_scores.double(), ood_scores.double()]).sort(descending=True)
    is_last_of_tie = pad(scores[1:] != scores[:-1], (0, 1), value=True)
    last = is_last_of_tie.nonzero().squeeze(1)  # (G,)
    is_id = order < num_id
    id_above = pad(is_id.cumsum(0)[last], (1, 0))
    return Ranking(
        thresholds=scores[last],
        id_order=order[is_id],
        ood_order=order[~is_id] - num_id,
        id_above=id_above,
        ood_above=pad(last + 1, (1, 0)) - id_above,
    )


def _rows(values: Tensor, above: Tensor, order: Tensor) -> Tensor:
    rows = torch.empty(len(order), dtype=values.dtype)
    rows[order] = values.repeat_interleave(above.diff())
    return rows


def _check(kind: str, scores: Tensor) -> None:
    if scores.ndim != 1:
        raise ValueError(f"{kind} scores have shape {tuple(scores.shape)}, expected one score an image: (images,)")
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise ValueError(f"{bad} of {len(scores)} {kind} scores are NaN or infinite; every score must be finite")
