"""The scores of every image of one set, gathered from all batches and processes by torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from clip_ood.metrics.gathered import first_of_each, joined
from clip_ood.scores import Scores


class ImageScores(Metric):
    """What K detectors say of each image of a set: each image once, in the order of its rows, on the CPU.

    Every process must call `update`, with an empty batch if it has no image.

    Args:
        detectors: their names, the same as those of the scores that come in.
        kwargs: those of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    indices: list[Tensor]
    scores: list[Tensor]
    predictions: list[Tensor]
    votes: list[Tensor]

    def __init__(self, detectors: Sequence[str], **kwargs) -> None:
        super().__init__(**kwargs)
        self.detectors = list(detectors)
        for state in ("indices", "scores", "predictions", "votes"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, batch: Scores) -> None:
        """Add the scores of a batch; classes (`predictions`, `votes`) with every batch or never."""
        self.indices.append(batch.indices.to(self.device))
        self.scores.append(batch.matrix(self.detectors).to(self.device))
        for name in ("predictions", "votes"):
            if (classes := getattr(batch, name)) is not None:
                getattr(self, name).append(classes.to(self.device))

    def compute(self) -> dict[str, Any]:
        """The fields of `Scores`; torchmetrics takes the only dimension off those of a single image (see `gathered`)."""
        rows = first_of_each(indices := dim_zero_cat(self.indices).cpu())
        scores = dim_zero_cat(self.scores).cpu()[rows]
        classes = {
            name: state.cpu()[rows]
            for name in ("predictions", "votes")
            if (state := joined(getattr(self, name))) is not None
        }
        return {"indices": indices[rows], "scores": dict(zip(self.detectors, scores.unbind(1), strict=True))} | classes

    def gathered(self) -> Scores:
        """`compute` as one value, every tensor of shape (n,)."""
        fields = self.compute()
        columns = {name: values.reshape(-1) for name, values in fields.pop("scores").items()}
        return Scores(scores=columns, **{name: values.reshape(-1) for name, values in fields.items()})
