"""Ranks the training images of a run, most suspect first, finds the groups among them that lie apart, and writes both into its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from clip_ood.data.benchmark import Benchmark
from clip_ood.detectors.neighbours import nearest
from clip_ood.evaluation import Results
from clip_ood.experiments.leaks import Leaks
from clip_ood.features.rows import Rows
from clip_ood.features.stored_set import Features
from clip_ood.folder.copy_groups import first_copies
from clip_ood.folder.files import write_groups, write_suspects
from clip_ood.folder.ranking import rank_images
from clip_ood.folder.suspects import Folder, group_members, suspects
from clip_ood.runs.run_folder import GROUPS, SUSPECTS
from clip_ood.scores import Scores


def answer_folder(
    folder: Path, benchmark: Benchmark, features: Mapping[str, Features], leaks: Leaks, results: Results
) -> dict[str, Any]:
    """Writes suspects.csv and groups.csv, and returns what results.json says of them: the number of images, and of those in each group."""
    scored = results.of_role("train")
    part = benchmark.parts["train"]
    rows = scored.indices.numpy()
    first = first_copies(leaks.copies, part.key, rows)
    own = _subset(features[part.images].features, scored.indices)
    ranking = rank_images(own, first)
    found = _folder(benchmark, features[part.images], scored, first, own)
    write_suspects(folder / SUSPECTS, suspects(found, ranking))
    write_groups(folder / GROUPS, group_members(found, ranking))
    return {"images": len(rows), "groups": [len(each.images) for each in ranking.groups]}


def _folder(benchmark: Benchmark, stored: Features, scored: Scores, first: np.ndarray, own: Rows) -> Folder:
    """Returns what is known of the images that were scored."""
    part = benchmark.parts["train"]
    images, rows, names = benchmark.images[part.images], scored.indices.tolist(), benchmark.class_names
    labels = [-1] * len(rows) if images.labels is None else [images.labels[row] for row in rows]
    near, cosines = _nearest(own, first)
    return Folder(
        paths=[images.names[row] for row in rows],
        identities=None if stored.identities is None else stored.identities[rows],
        labels=[None if label < 0 else names[label] if names else str(label) for label in labels],
        first=first,
        nearest=near,
        cosines=cosines,
        scores={name: values.double().numpy() for name, values in scored.scores.items()},
    )


def _nearest(own: Rows, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each image the place of the nearest one (N,) that is no copy of it, −1 for none, and the cosine to it (N,)."""
    kept = np.flatnonzero(first == np.arange(len(first)))
    near, found = np.full(len(first), -1), np.full(len(first), np.nan)
    if len(kept) < 2:
        return near, found
    bank = [normalize(each.float(), dim=1) for each in _subset(own, torch.from_numpy(kept)).blocks()]
    start = 0
    for block in own.blocks():
        rows = slice(start, start := start + len(block))
        cosines, places = nearest(normalize(block.float(), dim=1), bank, 2)
        second = torch.from_numpy(kept)[places[:, 0]] == torch.from_numpy(first[rows])
        column = second.long()[:, None]
        near[rows] = kept[places.gather(1, column).squeeze(1).numpy()]
        found[rows] = cosines.gather(1, column).squeeze(1).numpy()
    return near, found


def _subset(features: Rows, rows: torch.Tensor) -> Rows:
    return Rows(features.chunks, rows if features.places is None else features.places[rows])
