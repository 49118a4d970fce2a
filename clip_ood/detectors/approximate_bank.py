"""A bank that is searched by faiss's inverted lists: a few neighbours may be missed, and a large bank is searched many times faster."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from importlib import import_module
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import ROWS
from clip_ood.detectors.neighbours import nearest, products_with, taken
from clip_ood.errors import UserError

if TYPE_CHECKING:
    import faiss

FEWEST, MOST = 39, 64  # images a list that its centre is learnt from, as faiss wants them


def check_faiss() -> None:
    """Raises UserError if faiss is not installed."""
    try:
        import_module("faiss")
    except ModuleNotFoundError:
        raise UserError("knn: index = ivf needs faiss: pip install 'clip-ood[faiss]'") from None


class ApproximateBank(Bank):
    """A bank whose rows lie in lists, each with its centre; an image is compared with the rows of the `probes` lists nearest to it.

    faiss finds candidates among rows on the unit sphere in half precision, and their cosines are computed again in float32: a cosine
    is that of an exact search, but a neighbour in another list is missed. A search for which too few are found is made exactly. There
    are 2 √N lists of N rows, or fewer, so that each has 39 rows to learn its centre from. Besides the bank, the index takes half its
    float32 size on the CPU, where it is made when it is first searched. Each process has an index of its own part.
    Jégou et al., 2011 (inverted lists); Johnson et al., 2017 (faiss, arXiv 1702.08734).
    """

    def __init__(self, probes: int) -> None:
        super().__init__()
        self.probes = probes

    def key(self) -> Hashable:
        return type(self), self.probes

    def recall(self, count: int) -> str:
        """Says how many of the nearest others of `count` images of the bank, drawn by their indices, are found. All processes ask together."""
        if len(self) < 2 or self.exchange.sum((torch.cat(self.indices) < 0).sum()):
            return "ivf: how many of the nearest are found is not known, as images came without their indices"
        drawn = normalize(self.draw(min(count, len(self)), seed=0).float(), dim=1)  # whose nearest is the image itself
        exact, ours = (self._merged(found, drawn, 2)[0][:, 1] for found in (super()._found, self._found))
        return f"ivf: finds the nearest other of {100 * (ours >= exact - 1e-6).double().mean():.1f} % of {len(drawn):,} images of the bank"

    def _found(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns cosines (n, k), descending, and positions (n, k) of rows of this process."""
        if not k:
            return super()._found(queries, k)
        own, index = queries.detach().cpu(), self.once("index", self._index)
        positions = torch.from_numpy(index.search(own.numpy(), min(taken(k), self._own))[1]).to(queries.device)
        missed = positions < 0
        cosines = products_with(queries, self.chunks, self.scales(), positions.clamp_min(0))
        cosines, order = cosines.masked_fill(missed, -torch.inf).topk(k, dim=1)
        positions = positions.gather(1, order)
        if len(few := (cosines[:, -1] == -torch.inf).nonzero().squeeze(1)):
            exact = nearest(queries[few], self.chunks, k, self.scales())
            cosines, positions = (
                each.index_copy(0, few, new) for each, new in zip((cosines, positions), exact, strict=True)
            )
        return cosines, positions

    def _index(self) -> faiss.IndexIVF:
        import faiss

        width, count = self.chunks[0].shape[1], self._own
        lists = max(1, min(round(2 * sqrt(count)), count // FEWEST))
        index = faiss.index_factory(width, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(self.probes, lists)
        index.cp.seed = 0
        index.cp.max_points_per_centroid = MOST
        step = max(1, count // (MOST * lists))  # every so many rows are learnt from
        index.train(torch.cat([rows[::step] for rows in self._on_the_sphere(ROWS - ROWS % step or ROWS)]).numpy())
        for rows in self._on_the_sphere(ROWS):
            index.add(rows.numpy())
        return index

    def _on_the_sphere(self, size: int) -> Iterator[Tensor]:
        for chunk, scales in zip(self.chunks, self.scales(), strict=True):
            for rows, scale in zip(chunk.split(size), scales.split(size), strict=True):
                yield (rows.float() * scale[:, None]).cpu()
