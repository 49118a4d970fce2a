"""The base class of detectors: parameters and a Reference, a state learnt from ID training images, and a score for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clip_ood.detectors.statistic import statistics_of
from clip_ood.errors import UserError
from clip_ood.outputs import Inside, Outputs, Reference

ONE_EACH = "a tensor with one score an image, higher = more in-distribution"
SHAPES = {
    1: "(N,), a class an image",
    2: "(N, D) of floats, a row an image",
    3: "(N, P, D) of floats, P patches an image",
}
ROWS = 8192  # rows worked on at once: bounds memory, leaves matrix products large


class WrongScores(UserError):
    """A `_score` has returned something other than one score for each image."""


class Detector(nn.Module):
    """A score of images; a higher score means more in-distribution.

    A subclass names in `requires` the fields that it needs of Outputs and Reference ("labels" are needed of ID training images
    only), and defines `_score`: at most `ROWS` rows -> (n,). A detector that learns from ID training images also has
    statistics as attributes (see `Statistic`), and its `_fit` turns them into what scoring needs. Both methods are called
    without autograd and without autocast.
    Raises ValueError if the reference lacks a required field.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ()
    least_classes: ClassVar[int] = 1  # with fewer its score would be the same for every image
    portable: ClassVar[bool] = True  # `state` is all that scoring needs beside parameters, reference and bank
    may_lack: ClassVar[frozenset[str]] = frozenset()  # the buffers that not every fit fills
    searches: ClassVar[bool] = True  # scoring looks into its Bank, if it has one; False where only the fit does
    leaves_one_out: ClassVar[bool] = False  # an image of the bank gets, given `copy_of`, the score of a bank without it
    monotone: ClassVar[bool] = False  # more images in the bank never lower a score
    tokens: ClassVar[str] = "value"  # the kind of patch tokens that it uses, if it requires tokens
    learns_tokens: ClassVar[bool] = (
        False  # its statistics take in patch tokens of ID training images, of those in `patched`
    )
    local: ClassVar[bool] = False  # it scores single patches, too (`local_scores`)
    needs_layer: ClassVar[bool] = False  # a config must name the layers that it works on
    layer: str | None = None  # whose features are its features; None stands for g
    spec: Mapping[str, Any] | None = None  # how a config asks for it, where one did

    def __init__(self, reference: Reference | None = None) -> None:
        super().__init__()
        self.reference = reference or Reference()
        self.notes: list[str] = []  # what the results table must say
        self._fitted = False
        self._row_widths: dict[str, int] = {}  # of those that it has taken in, by the name of their tensor
        for field in self.requires:
            if hasattr(self.reference, field) and getattr(self.reference, field) is None:
                raise self._error(f"needs {field} in the reference, got none")

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of Outputs and Reference that it needs, with its layer's features in the place of g."""
        if self.layer is None:
            return self.requires
        return tuple("layers" if field == "features" else field for field in self.requires)

    @property
    def inside(self) -> Inside:
        """The layers and patch tokens of an encoder that it looks at."""
        tokens = (self.tokens,) if "tokens" in self.requires else ()
        return Inside(() if self.layer is None else tuple(self.layer.split("+")), tokens)

    def on(self, layer: str) -> Detector:
        """Makes the detector take the features of a layer for g, as `Outputs.at` names it; it has taken in no images yet."""
        for part in (self, *statistics_of(self).values()):
            part.layer = layer
        return self

    @classmethod
    def patched(cls, rows: Tensor, **parameters: Any) -> Tensor:
        """Returns of which ID training images, by their indices (n,), it learns patch tokens, if it has these parameters: here, all."""
        return rows

    @property
    def learns(self) -> bool:
        """Says whether the detector learns from ID training images."""
        return bool(statistics_of(self))

    @property
    def fitted(self) -> bool:
        """Says whether the detector can score."""
        return self._fitted or not self.learns

    def update(self, outputs: Outputs) -> None:
        """Takes in ID training images, in any number of batches and in any order.

        Raises ValueError for a required field that is absent, of another shape or length, or not finite, and for a label
        beyond the reference's class names.
        """
        take_in([self], outputs)

    def fit(self) -> None:
        """Computes what scoring needs from the images that were taken in.

        It is called once, after the last `update`. Raises ValueError.
        """
        if not self.learns:
            return
        self.notes.clear()
        with torch.inference_mode(False), torch.no_grad():
            self._fit()
        self._fitted = True

    def score(self, outputs: Outputs) -> Tensor:
        """Returns scores (N,) float32 of N images; a higher score means more in-distribution.

        Raises ValueError before `fit`, and for a required field that is absent, of another shape or length, or not finite.
        """
        return score_together([self], outputs)[0]

    def score_with_grad(self, outputs: Outputs) -> Tensor:
        """Returns differentiable scores (N,), in the detector's own dtype, of at most `ROWS` images. Raises as `score` does."""
        self._check_ready(outputs)
        return self._scores(outputs.at(self.layer))

    def local_scores(self, outputs: Outputs) -> Tensor:
        """Returns scores (N, P) float32 of the patches of N images; a higher score means more in-distribution.

        Raises ValueError for a detector that is not `local`, and as `score` does.
        """
        if not self.local:
            raise self._error("it scores no single patches")
        self._check_ready(outputs)
        parts = []
        for rows in chunks(outputs, at_least=1):
            with exact(rows):
                parts += [self._local_scores(part).float() for part in self._pieces(rows.at(self.layer))]
        return torch.cat(parts)

    def at_once(self, rows: Outputs) -> int:
        """Returns how many of these images `_score` takes at once: few, if it makes so much of each that no cache holds it for many."""
        return ROWS

    def state(self) -> dict[str, Tensor]:
        """Returns the tensors that `fit` made, by name; with parameters, reference and bank, they are all that scoring needs.

        Raises ValueError before `fit`.
        """
        self.check_fitted()
        return {name: value for name in self._learned() if (value := self._buffers[name]) is not None}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes a state that `state` returned, instead of a fit. Raises ValueError if its names are not this detector's.

        A buffer that some fits leave empty may be absent; one that a score does not need any more is passed over.
        """
        learned = set(self._learned())
        if differ := (set(state) - set(self._buffers)) | (learned - set(state) - self.may_lack):
            raise self._error(f"its state does not fit this version, which differs in {', '.join(sorted(differ))}")
        for name in learned & set(state):
            setattr(self, name, state[name])
        self._fitted = True

    def _learned(self) -> list[str]:
        return [name for name in self._buffers if name not in self._non_persistent_buffers_set]

    def traceable(self) -> Callable[[Outputs], Tensor]:
        """Returns the score as a function of tensor operations alone: Outputs of N images -> (N,), as `_score` returns it.

        An exported graph is traced from it, and takes all images at once. Whatever the function needs is made here, not while it is
        traced. A detector whose `_score` loops over images, reads tensors into Python numbers or changes itself must return another
        function. Raises
        ValueError before `fit`, and if the detector has no such function.
        """
        self.check_fitted()
        return self._score

    def _fit(self) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} has no _fit(self): one that has statistics makes of them there what scoring needs"
        )

    def _score(self, rows: Outputs) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no _score(self, rows): {ONE_EACH}")

    def _local_scores(self, rows: Outputs) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} is local and has no _local_scores(self, rows) -> (n, P)")

    def _scores(self, rows: Outputs) -> Tensor:
        """Returns what `_score` returns, of as many rows at once as it takes. Raises WrongScores for any shape but (n,)."""
        return torch.cat([self._checked(self._score(part), part) for part in self._pieces(rows)])

    def _pieces(self, rows: Outputs) -> Iterable[Outputs]:
        """Splits rows into as many as are taken at once; rows that are few enough stay the same object, by which banks know them."""
        size = max(1, self.at_once(rows))
        return [rows] if len(rows) <= size else chunks(rows, size=size)

    def _checked(self, scores: Any, rows: Outputs) -> Tensor:
        if isinstance(scores, Tensor) and scores.shape == (len(rows),):
            return scores
        count = "1 image" if len(rows) == 1 else f"{len(rows)} images"
        raise WrongScores(
            f"{type(self).__name__}._score returned {_told(scores)} for {count}, expected ({len(rows)},): {ONE_EACH}"
        )

    def _check_ready(self, outputs: Outputs) -> None:
        self.check_fitted()
        self._check(outputs, [field for field in self.needs if field != "labels"])

    def _check(self, outputs: Outputs, needed: Iterable[str]) -> None:
        for field in needed:
            if hasattr(self.reference, field):
                continue
            values = {name: value for name, value in outputs.tensors() if name.partition(".")[0] == field}
            if not values:
                raise self._error(f"needs {field}, and these outputs have none")
            wanted = {"layers": (self.layer or "").split("+") if self.layer else [], "tokens": [self.tokens]}.get(
                field, []
            )
            if missing := [name for name in wanted if f"{field}.{name}" not in values]:
                raise self._error(f"needs {field}.{missing[0]}, and these outputs have {', '.join(values)}")
            for name, value in values.items():
                dimensions = {"labels": 1, "tokens": 3}.get(field, 2)
                if value.ndim != dimensions or (field != "labels" and not value.is_floating_point()):
                    raise self._error(
                        f"{name} is {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}, expected {SHAPES[dimensions]}"
                    )
                width = self._row_widths.get(name, value.shape[-1])
                if value.ndim > 1 and value.shape[-1] != width:
                    raise self._error(
                        f"{name} has rows of {value.shape[-1]} numbers, and it has taken in rows of {width}"
                    )
                if len(value) != len(outputs):
                    raise self._error(f"{name} has {len(value)} rows, expected {len(outputs)}")
                if not all(map(_finite, value.split(ROWS))):
                    raise self._error(f"{name} has values that are not finite")
            names = self.reference.class_names
            if field == "labels" and names is not None and (outputs.labels >= len(names)).any():
                raise self._error(
                    f"label {int(outputs.labels.max())}, expected less than {len(names)}, the class names"
                )

    def check_fitted(self) -> None:
        """Raises ValueError before `fit`."""
        if not self.fitted:
            raise self._error("score was asked for before fit; call update with ID training images, then fit")

    def _error(self, message: str) -> UserError:
        return UserError(f"{self.name or type(self).__name__}: {message}")


def take_in(detectors: Iterable[Detector], outputs: Outputs) -> None:
    """Updates detectors with the same ID training images; a statistic that several share takes them in once."""
    statistics = {}
    for detector in detectors:
        own = statistics_of(detector).values()
        if own:
            optional = {"tokens", *({"labels"} - set(detector.needs))}  # patches are stored of few ID training images
            fields = dict.fromkeys((*detector.needs, "labels"))
            detector._check(
                outputs, [each for each in fields if each not in optional or getattr(outputs, each) is not None]
            )
            detector._row_widths |= {name: value.shape[-1] for name, value in outputs.tensors() if value.ndim > 1}
            detector._fitted = False
        statistics |= {id(statistic): statistic for statistic in own}
    for rows in chunks(outputs, at_least=1):  # of no images, too: they tell widths to a process without a share
        with exact(rows):
            at = cache(rows.at)
            for statistic in statistics.values():
                statistic.update(at(statistic.layer))


def score_together(
    detectors: Sequence[Detector], outputs: Outputs, further: Sequence[Callable[[Outputs], Tensor]] = ()
) -> list[Tensor]:
    """Returns scores (N,) float32 of each detector, then the values (N,) of each function in `further`.

    The functions take at most `ROWS` rows and are called first. What several detectors ask about the same rows, such as their
    neighbours, is computed once. Raises as `Detector.score` does.
    """
    for detector in detectors:
        detector._check_ready(outputs)
    device = _device(outputs)
    parts = []
    for rows in chunks(outputs, at_least=1):
        with exact(rows):
            values = [function(rows) for function in further]
            at = cache(rows.at)  # detectors of one layer see the same rows, and search for their neighbours once
            parts.append([detector._scores(at(detector.layer)).float() for detector in detectors] + values)
    return [torch.cat(values).to(device) for values in zip(*parts, strict=True)]


def chunks(outputs: Outputs, at_least: int = 0, size: int | None = None) -> Iterator[Outputs]:
    """Splits outputs into pieces of at most `size` images, `ROWS` if it is not given; if `at_least` is 1, it yields an empty piece of no images."""
    size = ROWS if size is None else size
    for start in range(0, max(len(outputs), at_least), size):
        yield outputs.map(lambda value, start=start: value[start : start + size])


def _finite(values: Tensor) -> bool:
    """Says whether all values are finite. Their sum tells it at a glance: only where that is not finite must each be looked at."""
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(values.isfinite().all())


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _device(outputs: Outputs) -> torch.device:
    return next(value.device for _, value in outputs.tensors())


@contextmanager
def exact(rows: Outputs) -> Iterator[None]:
    """Disables autograd and autocast, and computes float32 products in full, on tensors that may be changed in place."""
    device, precision = _device(rows).type, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
