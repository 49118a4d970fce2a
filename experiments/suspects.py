"""Ranks the training images of a run, most suspect first, finds groups that lie apart and labels in doubt, and writes all into its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from clip_ood.class_predictions import NEIGHBOURS
from clip_ood.data.benchmark import Benchmark
from clip_ood.evaluation import Results
from clip_ood.experiments.leaks import Leaks
from clip_ood.features.rows import Rows
from clip_ood.features.stored_set import Features
from clip_ood.folder.copy_groups import first_copies
from clip_ood.folder.files import write_groups, write_labels, write_suspects
from clip_ood.folder.labels import Doubts, Votes, doubtful_labels, doubtful_rows, votes
from clip_ood.folder.neighbours import neighbours
from clip_ood.folder.principal import plane
from clip_ood.folder.ranking import rank_images
from clip_ood.folder.suspects import Folder, group_members, suspects
from clip_ood.runs.run_folder import GROUPS, LABELS, SUSPECTS
from clip_ood.texts.vocabulary import Vocabulary

WORDS = 3  # that are said of an image


def answer_folder(
    folder: Path,
    benchmark: Benchmark,
    features: Mapping[str, Features],
    leaks: Leaks,
    results: Results,
    vocabulary: Vocabulary | None = None,
) -> dict[str, Any]:
    """Writes suspects.csv, groups.csv and, with classes, labels.csv, and returns what results.json says of them: the numbers of images, of
    those in each group and in the vocabulary, the share of the variance on the map, and the numbers of labels that were checked, are
    doubtful, and are estimated to be wrong."""
    scored = results.of_role("train")
    part = benchmark.parts["train"]
    rows, stored, images = scored.indices.numpy(), features[part.images], benchmark.images[part.images]
    first = first_copies(leaks.copies, part.key, rows)
    own = stored.features.subset(scored.indices)
    names = benchmark.class_names or tuple(map(str, range(max(images.labels or [-1]) + 1)))
    labels = np.full(len(rows), -1) if images.labels is None else np.asarray(images.labels)[rows]
    ranking, near, flat = rank_images(own, first), _near(own, first, labels, len(names)), plane(own)
    found = Folder(
        paths=[images.names[row] for row in rows],
        identities=None if stored.identities is None else stored.identities[rows],
        labels=[None if label < 0 else names[label] for label in labels],
        first=first,
        nearest=near.nearest,
        cosines=near.cosines,
        points=flat.points.numpy(),
        scores={name: values.double().numpy() for name, values in scored.scores.items()},
        words=None if vocabulary is None else _words(stored.embeddings.subset(scored.indices), vocabulary),
    )
    write_suspects(folder / SUSPECTS, suspects(found, ranking))
    write_groups(folder / GROUPS, group_members(found, ranking))
    if near.doubts is not None:
        write_labels(folder / LABELS, doubtful_rows(found, near.doubts, names))
    about = {"images": len(rows), "groups": [len(each.images) for each in ranking.groups]}
    about["vocabulary"] = None if vocabulary is None else len(vocabulary)
    return about | {"variance": flat.variance, "labels": near.doubts and near.doubts.about()}


def _words(embeddings: Rows, vocabulary: Vocabulary) -> list[tuple[str, ...]]:
    k = min(WORDS, len(vocabulary))
    return [
        words
        for block in embeddings.blocks()
        for words in vocabulary.named(vocabulary.nearest(normalize(block.float(), dim=1), k)[1])
    ]


@dataclass(frozen=True)
class _Near:
    """Of N images: the place of the nearest one (N,) that is no copy, −1 for none; the cosine to it (N,); and the labels in doubt."""

    nearest: np.ndarray
    cosines: np.ndarray
    doubts: Doubts | None


def _near(own: Rows, first: np.ndarray, labels: np.ndarray, classes: int) -> _Near:
    near, cosines, voted, start = np.full(len(first), -1), np.full(len(first), np.nan), [], 0
    for found in neighbours(own, first, NEIGHBOURS if classes > 1 else 1):
        if found.places.shape[1]:
            rows = slice(start, start := start + len(found.places))
            near[rows], cosines[rows] = found.places[:, 0].numpy(), found.cosines[:, 0].numpy()
            if classes > 1:
                voted.append(votes(found.cosines, torch.from_numpy(labels)[found.places], classes))
    voters = np.bincount(labels[(first == np.arange(len(first))) & (labels >= 0)], minlength=classes)
    return _Near(near, cosines, doubtful_labels(Votes.joined(voted), labels, voters) if voted else None)
