"""Exact copies among the images of an ImageNet evaluation: python -m bench.leaks"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from bench import chosen
from clip_ood.leaks.copies import ImageSet
from clip_ood.leaks.exact import exact_copies


class Sizes(NamedTuple):
    train: int = 1_281_167
    tested: int = 50_000
    sets: int = 5
    copies: int = 1_000


TINY = Sizes(train=500, tested=60, sets=2, copies=9)


def main(sizes: Sizes) -> None:
    generator = np.random.default_rng(0)
    counts = {"train": sizes.train} | {f"ood/{number}": sizes.tested for number in range(sizes.sets)}
    contents = {name: generator.integers(0, 2**63, (count, 2)).astype(np.uint64) for name, count in counts.items()}
    for number in range(sizes.sets):
        contents[f"ood/{number}"][: sizes.copies] = contents["train"][: sizes.copies]
    sets = [ImageSet(name, name[:3], np.arange(len(of)), of, None) for name, of in contents.items()]
    began = time.perf_counter()
    found = exact_copies(sets)
    seconds = time.perf_counter() - began
    assert sum(map(len, found)) == sizes.copies * sizes.sets * (sizes.sets + 1) // 2
    every = np.concatenate(list(contents.values()))
    began = time.perf_counter()
    np.lexsort((every[:, 1], every[:, 0]))
    sort = time.perf_counter() - began
    print(f"exact copies among {len(every):,} images  {seconds:.2f} s, {seconds / sort:.1f} of one sort  <= 4")


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
