"""The lines of a trial: what was tried, and whether it went well, is above its limit, or ended in an error."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.machine import nameless

OK, ABOVE, ERROR = "ok", "above its limit", "error"
KEPT_ALONE = ("what", "outcome", "value", "limit", "unit", "auroc")  # in the file, and not printed as `key value`


class Failed(Exception):
    """What was tried did not go well; the message says all that is known."""


@dataclass
class Lines:
    """Lines that are printed as they come about, and kept for a file."""

    kept: list[dict[str, Any]] = field(default_factory=list)

    def attempt(self, what: str, work: Callable[[], dict[str, Any]]) -> None:
        """Adds the line that `work` returns, or that of the error it ends with, whose last line is told.

        A line with a `value` has a `limit` and a `unit`.
        """
        start = time.perf_counter()
        try:
            told = {"outcome": OK} | work()
            if "value" in told and told["value"] > told["limit"]:
                told["outcome"] = ABOVE
        except Exception as error:
            last = (str(error).strip().splitlines() or [""])[-1]
            kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
            told = {"outcome": ERROR, "error": nameless(kind + last)}
        self.kept.append({"what": what, **told, "seconds": round(time.perf_counter() - start, 1)})
        print(shown(self.kept[-1]), flush=True)

    @property
    def failed(self) -> int:
        return sum(line["outcome"] != OK for line in self.kept)


def shown(line: dict[str, Any]) -> str:
    """Returns a line as it is printed.

    >>> shown({"what": "AUROC", "outcome": "ok", "value": 0.0123, "limit": 0.1, "unit": "points", "seconds": 2.0})
    'AUROC  0.0123 points  <= 0.1  ok  seconds 2'
    """
    compared = f"{line['value']:.3g} {line['unit']}  <= {line['limit']:.3g}  " if "value" in line else ""
    rest = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in line.items()
        if key not in KEPT_ALONE
    )
    return f"{line['what']}  {compared}{line['outcome']}  {rest}"
