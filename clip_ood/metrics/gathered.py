"""What metrics of detectors have in common: scores of all batches and processes, gathered by torchmetrics, each image once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from clip_ood.threads import one_thread


class GatheredMetric(Metric):
    """Metrics of K detectors over the images of all processes. A subclass says in `of_image` what it keeps of an image besides its
    scores, in `_metrics` what it computes of one detector, and in `_keys` which rows are one image.

    Every process must call `update`, with an empty batch if it has no image.

    Args:
        detectors: names of K detectors whose scores are the columns of each batch; None for scores of one detector.
        kwargs: those of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = None  # depends on the metric
    full_state_update = False
    of_image: ClassVar[tuple[str, ...]] = ()  # states of 0 or 1 an image

    scores: list[Tensor]
    indices: list[Tensor]

    def __init__(self, detectors: Sequence[str] | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        if isinstance(detectors, str) or (detectors is not None and len(set(detectors)) < len(detectors)):
            raise ValueError(
                f"detectors are {detectors!r}, expected a list of names, each once, or None for scores (B,) of one detector"
            )
        self.detectors = None if detectors is None else list(detectors)
        for state in ("scores", *self.of_image, "indices"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def keep(self, detectors: Sequence[str]) -> None:
        """Go on with some of the detectors alone; the same ones in every process."""
        columns = [self.detectors.index(name) for name in detectors]
        self.detectors, self.scores = list(detectors), [scores[:, columns] for scores in self.scores]

    @one_thread()
    def compute(self) -> dict[str, Tensor]:
        """A float64 scalar (float32 on MPS, which has no other) for each metric; of several detectors under "<detector>/<metric>".

        Raises:
            ValueError: what the metrics refuse, as NaN; a named detector's message begins with it.
        """
        scores = dim_zero_cat(self.scores).cpu()
        of_image = [dim_zero_cat(getattr(self, name)).cpu().bool() for name in self.of_image]
        if (indices := joined(self.indices)) is not None:
            rows = first_of_each(self._keys(indices.cpu(), *of_image))
            scores, of_image = scores[rows], [values[rows] for values in of_image]
        if self.detectors is None:
            return self._metrics(scores, *of_image)
        values = {}
        for name, column in zip(self.detectors, scores.unbind(dim=1), strict=True):
            try:
                of_detector = self._metrics(column, *of_image)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            values |= {f"{name}/{metric}": value for metric, value in of_detector.items()}
        return values

    def _add(self, scores: Tensor, indices: Tensor | None, **of_image: Tensor | bool) -> None:
        """Adds a batch: scores (B,) or (B, K), and each state of `of_image` as (B,) 0 or 1, or as one truth value for all.

        Raises: ValueError for other shapes or values.
        """
        row = () if self.detectors is None else (len(self.detectors),)
        given = {}
        for name, values in of_image.items():
            values = torch.as_tensor(values, device=self.device)
            values = values.expand(len(scores)) if values.ndim == 0 else values
            if scores.ndim != 1 + len(row) or scores.shape[1:] != row or scores.shape[:1] != values.shape:
                expected = "(B,) for both" if self.detectors is None else f"(B, {row[0]}) and (B,)"
                raise ValueError(
                    f"scores have shape {tuple(scores.shape)} and {name} {tuple(values.shape)}, expected {expected}"
                )
            if ((values != 0) & (values != 1)).any():
                raise ValueError(
                    f"{name} has values {values.unique().tolist()[:5]}, expected {self._meaning(name)} only"
                )
            given[name] = values.to(torch.uint8)  # bytes: not every backend gathers bool
        if indices is not None and indices.shape != scores.shape[:1]:
            raise ValueError(
                f"indices have shape {tuple(indices.shape)}, expected {tuple(scores.shape[:1])}, one an image"
            )
        self.scores.append(scores.detach().to(self.device))
        for name, values in given.items():
            getattr(self, name).append(values)
        if indices is not None:
            self.indices.append(indices.to(self.device))

    def _meaning(self, name: str) -> str:
        return {"is_id": "0 (OOD) and 1 (ID)", "correct": "0 (wrong class) and 1 (right class)"}[name]

    def _keys(self, indices: Tensor, *of_image: Tensor) -> Tensor:
        return indices

    def _metrics(self, scores: Tensor, *of_image: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def _tensors(self, values: Mapping[str, float]) -> dict[str, Tensor]:
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return {name: torch.tensor(value, device=self.device, dtype=dtype) for name, value in values.items()}


def joined(state: list[Tensor] | Tensor) -> Tensor | None:
    """A `cat` state as one tensor, gathered or not yet; None where no process has added a row to it."""
    return dim_zero_cat(state) if len(state) and len(dim_zero_cat(state)) else None


def first_of_each(keys: Tensor) -> Tensor:
    """Rows of the first of each distinct key among keys (n,), in ascending order of the keys.

    >>> first_of_each(torch.tensor([7, 3, 7, 1]))
    tensor([3, 1, 0])
    """
    ordered, rows = keys.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return rows[is_first]
