"""Which ID val images choose among candidates, and which ones calibrate the thresholds of what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clip_ood.calibration import Calibration, Choice, needed


@dataclass(frozen=True)
class ValDivision:
    """Every other ID val image chooses and the rest calibrate, or all of them do both.

    Attributes:
        halves: whether ID val is divided.
        ood_val: the number of OOD images that candidates are chosen against.
    """

    halves: bool
    ood_val: int

    @classmethod
    def of(cls, val: int, ood_val: int, several: bool, accept: float) -> ValDivision:
        """Divides `val` images if there are several candidates to choose among, and both halves are twice what a threshold for
        `accept` takes."""
        return cls(several and ood_val > 0 and val >= 4 * needed(accept), ood_val)

    def choosing(self, places: Tensor) -> Tensor:
        """Says of the ID val images at these places (n,) which ones choose, (n,) bool."""
        return places % 2 == 0 if self.halves else torch.ones_like(places, dtype=torch.bool)

    def calibrations(
        self,
        scores: Mapping[str, Tensor],
        choices: Mapping[str, Choice],
        heads: Mapping[str, int],
        classes: Tensor | None = None,
    ) -> dict[str, Calibration]:
        """Returns, by detector, its scores of ID val images that did not choose it, or of all of them with what they chose.

        `scores` (n,) are in the order of the images; `choices` are those that were settled by ID val, by detector; `heads` says
        among how many heads ID val chose the one that a detector needs, 1 if it chose none; `classes` (n,) are predicted.
        """
        found = {}
        for name, values in scores.items():
            choice, predicted = choices.get(name), classes
            if choice is not None and self.halves:
                values, choice = values[1::2], None
                predicted = None if classes is None else classes[1::2]
            elif choice is not None:
                choice = replace(choice, images=self.ood_val)
            if heads[name] > 1:
                choice = Choice(heads[name] * (1 if choice is None else choice.candidates))
            found[name] = Calibration(values, choice, classes=predicted)
        return found
