"""Loads the weights of a file into a model exactly, under the prefixes that trainings and libraries add to names, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from clip_ood.errors import UserError

State = dict[str, Tensor]
PREFIXES = (
    *("module", "_orig_mod"),  # data parallelism, torch.compile
    *("model", "net", "network", "backbone", "encoder", "feature_extractor", "vit"),  # scripts that train a model
    *("teacher", "student", "base_encoder", "encoder_q"),  # self-supervision
    *("timm_model", "clip", "visual", "trunk", "vision_encoder", "image_encoder"),  # libraries around an image tower
)


@dataclass(frozen=True)
class Misfit:
    """Words the difference of a state from a model: missing weights, additional ones, and those of another shape."""

    missing: list[str]
    unknown: list[str]
    shapes: list[str]

    @property
    def size(self) -> int:
        return len(self.missing) + len(self.unknown) + len(self.shapes)

    def __str__(self) -> str:
        return (
            f"its weights are not this model's: {_listed(self.missing)} missing, {_listed(self.unknown)} unknown, "
            f"{_listed(self.shapes)} of another shape. Name the model and the library that the file was made with"
        )


def fit(model: nn.Module, state: State, prepare: Callable[[State], State], spare: Callable[[str], bool]) -> None:
    """Loads what `prepare` makes of `state`, its names and grids as this library has them, with or without a prefix of names.

    `spare` says which names the model may lack, such as a classifier's. Raises: ValueError for weights that do not fit exactly.
    """
    nearest: Misfit | None = None
    for prefix in _prefixes(state):
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        try:
            prepared = prepare(own)
        except Exception:  # names and shapes are another model's; the unprepared state shows what is wrong
            prepared = own
        misfit = _compared(model.state_dict(), prepared, spare)
        if not misfit.size:
            model.load_state_dict(prepared, strict=False)
            return
        if nearest is None or misfit.size < nearest.size:
            nearest = misfit
    raise UserError(str(nearest))


def _compared(wanted: State, given: State, spare: Callable[[str], bool]) -> Misfit:
    missing = [name for name in wanted.keys() - given.keys() if not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    return Misfit(sorted(missing), sorted(name for name in given.keys() - wanted.keys() if not spare(name)), shapes)


def _prefixes(state: State) -> Iterator[str]:
    """Yields no prefix, then each with which names begin: the shortest first, and those of one length in the order of `PREFIXES`."""
    found = {""}
    for name in state:
        prefix = ""
        for word in name.split(".")[:-1]:
            if word not in PREFIXES:
                break
            prefix += f"{word}."
            found.add(prefix)
    return iter(sorted(found, key=lambda prefix: (prefix.count("."), [*map(PREFIXES.index, prefix.split(".")[:-1])])))


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    return f"{len(names)} ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})"
