"""Memory of exact 1-NN over a large bank: python -m bench.knn_memory"""

from __future__ import annotations

import resource
import sys
from typing import NamedTuple

import torch

from bench import chosen
from clip_ood.detectors.knn import KNN
from clip_ood.outputs import Outputs


class Sizes(NamedTuple):
    bank: int = 500_000
    width: int = 1024
    batch: int = 10_000
    queries: int = 2_000


TINY = Sizes(bank=200, width=32, batch=100, queries=10)


def main(sizes: Sizes) -> None:
    generator = torch.Generator().manual_seed(0)
    detector = KNN()
    for start in range(0, sizes.bank, sizes.batch):
        rows = torch.randn(sizes.batch, sizes.width, generator=generator)
        detector.update(Outputs(features=rows, indices=torch.arange(start, start + sizes.batch)))
    detector.fit()
    detector.score(Outputs(features=torch.randn(sizes.queries, sizes.width, generator=generator)))
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30  # GiB
    bank = sum(chunk.nbytes for chunk in detector.bank.chunks) / 2**30
    print(f"knn, peak memory of the process above a bank of {bank:.2f} GiB  {peak - bank:.2f} GiB  <= 1 GiB")


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
