"""Exact 1-NN against faiss and scikit-learn: python -m bench.knn"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import faiss
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn.functional import normalize

from bench import chosen, seconds
from clip_ood.detectors.neighbours import nearest


class Sizes(NamedTuple):
    queries: int = 10_000
    bank: int = 200_000
    width: int = 512
    repeats: int = 3
    few: int = 1_000  # queries for scikit-learn, which takes long


TINY = Sizes(queries=100, bank=500, width=32, repeats=1, few=10)


def main(sizes: Sizes) -> None:
    faiss.omp_set_num_threads(torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)
    bank, queries = (
        normalize(torch.randn(n, sizes.width, generator=generator), dim=1) for n in (sizes.bank, sizes.queries)
    )
    index = faiss.IndexFlatIP(sizes.width)
    index.add(bank.numpy())
    brute = NearestNeighbors(n_neighbors=1, algorithm="brute", metric="euclidean").fit(bank.numpy())
    few = queries[: sizes.few]
    times = {"ours": [], "faiss": [], "few": [], "sklearn": []}
    for _ in range(sizes.repeats):  # in turns, since the machine's speed drifts
        times["ours"].append(seconds(lambda: nearest(queries, [bank], 1)))
        times["faiss"].append(seconds(lambda: index.search(queries.numpy(), 1)))
        times["few"].append(seconds(lambda: nearest(few, [bank], 1)))
        times["sklearn"].append(seconds(lambda: brute.kneighbors(few.numpy())))
    cosines, positions = nearest(queries, [bank], 1)
    theirs, where = map(torch.from_numpy, index.search(queries.numpy(), 1))
    same = float((positions == where).double().mean())
    ours, other, fewer, slow = (median(times[key]) for key in ("ours", "faiss", "few", "sklearn"))
    print(
        f"1-NN, {sizes.queries} x {sizes.bank} x {sizes.width}, time over faiss IndexFlatIP  {ours / other:.2f} ({ours:.1f} s / {other:.1f} s), "
        f"same neighbours {100 * same:.2f} %, largest difference {float((cosines - theirs).abs().max()):.1e}  <= 1"
    )
    print(
        f"1-NN, {sizes.few} x {sizes.bank} x {sizes.width}, time over scikit-learn's brute force  {fewer / slow:.2f} ({fewer:.2f} s / {slow:.2f} s)  <= 1"
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
