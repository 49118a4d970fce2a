"""Exact 1-NN against faiss and scikit-learn: python -m bench.knn"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import faiss
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn.functional import normalize

from clip_ood.detectors.neighbours import low_precision, nearest

QUERIES, BANK, D, REPEATS = 10_000, 200_000, 512, 3
FEW = 1_000  # queries for scikit-learn, which takes long


def seconds(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def main() -> None:
    faiss.omp_set_num_threads(torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)
    bank, queries = (normalize(torch.randn(n, D, generator=generator), dim=1) for n in (BANK, QUERIES))
    index = faiss.IndexFlatIP(D)
    index.add(bank.numpy())
    brute = NearestNeighbors(n_neighbors=1, algorithm="brute", metric="euclidean").fit(bank.numpy())
    few = queries[:FEW]
    low_precision("cpu")  # tries itself out once
    times = {"ours": [], "faiss": [], "few": [], "sklearn": []}
    for _ in range(REPEATS):  # in turns, since the machine's speed drifts
        times["ours"].append(seconds(lambda: nearest(queries, [bank], 1)))
        times["faiss"].append(seconds(lambda: index.search(queries.numpy(), 1)))
        times["few"].append(seconds(lambda: nearest(few, [bank], 1)))
        times["sklearn"].append(seconds(lambda: brute.kneighbors(few.numpy())))
    cosines, positions = nearest(queries, [bank], 1)
    theirs, where = map(torch.from_numpy, index.search(queries.numpy(), 1))
    same = float((positions == where).double().mean())
    ours, other, fewer, slow = (median(times[key]) for key in ("ours", "faiss", "few", "sklearn"))
    print(
        f"1-NN, {QUERIES} x {BANK} x {D}, time over faiss IndexFlatIP  {ours / other:.2f} ({ours:.1f} s / {other:.1f} s), "
        f"same neighbours {100 * same:.2f} %, largest difference {float((cosines - theirs).abs().max()):.1e}  <= 1"
    )
    print(
        f"1-NN, {FEW} x {BANK} x {D}, time over scikit-learn's brute force  {fewer / slow:.2f} ({fewer:.2f} s / {slow:.2f} s)  <= 1"
    )


if __name__ == "__main__":
    main()
