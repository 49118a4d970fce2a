"""Memory of exact 1-NN over a large bank: python bench/knn_memory.py"""

from __future__ import annotations

import resource
import sys

import torch

from clip_ood.detectors.knn import KNN
from clip_ood.outputs import Outputs

N, D, BATCH, QUERIES = 500_000, 1024, 10_000, 2_000


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    detector = KNN()
    for start in range(0, N, BATCH):
        rows = torch.randn(BATCH, D, generator=generator)
        detector.update(Outputs(features=rows, indices=torch.arange(start, start + BATCH)))
    detector.fit()
    detector.score(Outputs(features=torch.randn(QUERIES, D, generator=generator)))
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30  # GiB
    bank = sum(chunk.nbytes for chunk in detector.bank.chunks) / 2**30
    print(f"knn, peak memory of the process above a bank of {bank:.2f} GiB  {peak - bank:.2f} GiB  <= 1 GiB")


if __name__ == "__main__":
    main()
