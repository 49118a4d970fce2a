"""Finds copies that were resized, saved anew or mirrored: neighbours by their features whose thumbnails are the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.neighbours import nearest
from clip_ood.errors import UserError
from clip_ood.files.pictures import UnreadableImage
from clip_ood.leaks.copies import Copies, ImageSet
from clip_ood.leaks.thumbnails import SAME, similarity, thumbnail

CLOSE = 0.6
"""The cosine from which on two images are compared. Of 200 images of the demo, each was found again among the 4 nearest with such a
cosine when it was mirrored, made half as wide, made 64 pixels wide, or saved as JPEG at quality 75, 99 % of them at quality 30, and 94 %
when made half as wide and saved at quality 50. Different images reach it, too: their thumbnails tell."""
CANDIDATES = 4  # that each image is compared with in another set
BLOCK = 16384  # features of either side in memory
TOGETHER = 256  # images whose candidates are decoded together, each once


def near_copies(
    sets: Sequence[ImageSet],
    exact: Sequence[Copies],
    device: torch.device,
    exchange: Exchange,
    within_train: bool = False,
) -> list[Copies]:
    """Returns the near copies in each pair of sets and within each set, in the order of the sets; those within the training set, which is
    mostly the largest, only with `within_train`.

    An image of the later set is listed at most once for each earlier set, beside what looks most like it in the earlier set: of its CANDIDATES nearest
    neighbours there, those of a cosine of CLOSE or more are decoded and compared. An image that has an `exact` copy there is not
    sought again. Corrupted sets are left out. All processes call this together, and each looks for its share of the images.
    Raises: UserError for an image that can be read no longer.
    """
    known = {(each.earlier, each.later): each.rows for each in exact if each.kind == "exact"}
    plain = [each for each in sets if not each.corrupted]
    processes, found = len(exchange.gather(torch.zeros(1, device=device))), []
    for number, earlier in enumerate(plain):
        for later in plain[number:]:
            if later.role == "train" and not within_train:
                continue
            wanted = np.flatnonzero(~np.isin(later.rows, known.get((earlier.name, later.name), ())))
            mine = np.array_split(wanted, processes)[exchange.rank]
            shares = (exchange.gather(part.to(device)) for part in _alike(earlier, later, mine, device))
            pairs, likeness = (torch.cat(share).cpu().numpy() for share in shares)
            if len(pairs):
                rows = earlier.rows[pairs[:, 0]], later.rows[pairs[:, 1]]
                found.append(Copies(earlier.name, later.name, "near", len(later), *rows, likeness))
    return found


def _alike(earlier: ImageSet, later: ImageSet, mine: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the places in both sets (m, 2) of near copies among the images at the places `mine` of `later`, and their
    similarity (m,)."""
    pairs, likeness = [], []
    for places, candidates in _candidates(earlier, later, mine, device):
        for start in range(0, len(places), TOGETHER):
            some = slice(start, start + TOGETHER)
            wanted = np.unique(candidates[some][candidates[some] >= 0])
            compared = (candidates[some] >= 0).any(axis=1)
            theirs = {place: _thumbnail(earlier, place) for place in wanted.tolist()}
            for place, others in zip(places[some][compared].tolist(), candidates[some][compared].tolist(), strict=True):
                own = _thumbnail(later, place)
                alike, best = max((similarity(own, theirs[other]), other) for other in others if other >= 0)
                if alike >= SAME:
                    pairs.append((best, place))
                    likeness.append(alike)
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2), torch.tensor(likeness, dtype=torch.float32)


def _candidates(
    earlier: ImageSet, later: ImageSet, mine: np.ndarray, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, block by block, places (n,) in `later` and the places of their candidates in `earlier` (n, k), -1 for none."""
    within = earlier is later
    for start in range(0, len(mine), BLOCK):
        places = mine[start : start + BLOCK]
        queries = _directions(later, places, device)
        cosines = queries.new_empty(len(places), 0)
        where = torch.empty(len(places), 0, dtype=torch.long, device=device)
        for first in range(0, len(earlier), BLOCK):
            block = _directions(earlier, np.arange(first, min(first + BLOCK, len(earlier))), device)
            near, at = nearest(queries, [block], min(CANDIDATES + within, len(block)))  # itself is one within a set
            cosines, where = torch.cat([cosines, near], dim=1), torch.cat([where, at + first], dim=1)
            cosines, order = cosines.topk(min(CANDIDATES + within, cosines.shape[1]), dim=1)
            where = where.gather(1, order)
        close, found = (cosines >= CLOSE).cpu().numpy(), where.cpu().numpy()
        if within:
            close &= found < places[:, None]  # of two copies the later one is found
        yield places, np.where(close, found, -1)


def _directions(images: ImageSet, places: np.ndarray, device: torch.device) -> Tensor:
    """Returns the features (n, D) of the images at these places of a set, L2-normalised, in float32."""
    return normalize(images.features.take(torch.from_numpy(images.rows[places])).to(device, torch.float32), dim=1)


def _thumbnail(images: ImageSet, place: int) -> np.ndarray:
    row = int(images.rows[place])
    try:
        return thumbnail(images.images.read(row))
    except (OSError, UnreadableImage) as error:
        raise UserError(
            f"Image set {images.name}: {images.images.names[row]} can be read no longer ({error}), so that it cannot be compared "
            "with near copies: run again"
        ) from error
