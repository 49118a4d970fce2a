"""Measures how long a mistyped key takes to be answered: python -m bench.typo"""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from time import perf_counter


def main() -> None:
    times = []
    for wrong in ("--method.plp.min_confidnce=0.9", "--detectors=[knnn]", "--backbone.model=ViT-bigG14"):
        start = perf_counter()
        told = subprocess.run(
            [sys.executable, "train.py", "--config", "demo.yaml", wrong], capture_output=True, text=True
        )
        times.append(perf_counter() - start)
        if told.returncode != 2:
            raise RuntimeError(f"{wrong} is not answered as a mistake: {told.stderr}")
    print(
        f"typo, seconds until a mistyped key or name is answered  {median(times):.2f} (at most {max(times):.2f})  <= 2"
    )


if __name__ == "__main__":
    main()
