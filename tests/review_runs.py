"""A run's folder with suspects.csv and groups.csv of small pictures, and its review."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clip_ood.config.data_schema import ImageSet
from clip_ood.data.listing import list_images
from clip_ood.features.identity import identity_of
from clip_ood.files.written_names import path_cell, text_cell
from clip_ood.folder.files import write_labels as write_doubtful
from clip_ood.folder.labels import DoubtfulLabel
from clip_ood.serve.access import Access
from clip_ood.serve.application import create_app
from clip_ood.serve.listening import access_at
from clip_ood.serve.review_pages import review_routes
from clip_ood.serve.run_images import RunImages
from clip_ood.serve.run_suspects import suspects_of
from clip_ood.serve.session import Review

NAMES = (
    "cat/0.png",
    "dog/0.png",
    "cat/=1+1.png",
    "dog/caf\udce9 <b>&.png",
    "cat/copy.png",
    "dog/1.png",
    "cat/2.png",
    "dog/2.png",
)
GROUPS = {"1": (1, 5, 7), "2": (2, 6)}
COPIES = (4, 6)  # of image 0
DOUBTS = {5: "cat", 2: "dog"}  # the classes that are suggested, by row, the most doubtful first


def make(root: Path, names: Sequence[str] = NAMES, copies: Sequence[int] = COPIES) -> Path:
    """Fills `root`/photos with a picture for each name, and `root`/run with what a run says of them."""
    for number, name in enumerate(names):
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0 if number in copies else number).integers(0, 256, (24, 36, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "run").mkdir(exist_ok=True)
    write_lists(root, names, copies)
    return root / "run"


def write_lists(root: Path, names: Sequence[str], copies: Sequence[int], contents: Sequence[str] = ()) -> None:
    contents = contents or [identity_of((root / "photos" / name).read_bytes()).hex() for name in names]
    group = {row: number for number, rows in GROUPS.items() for row in rows}
    with (root / "run" / "suspects.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(
            [
                "rank",
                "path",
                "image",
                "label",
                "score",
                "group",
                "copies",
                "copy_of",
                "nearest",
                "cosine",
                "words",
                "x",
                "y",
                "knn",
                "lof",
            ]
        )
        for row, name in enumerate(names):
            copy_of = path_cell(names[0]) if row in copies else ""
            nearest = names[(row + 1) % len(names)]
            lines.writerow([
                row + 1, path_cell(name), contents[row], text_cell(name.split("/")[0]), row / len(names), group.get(row, ""),
                len(copies) if row == 0 or row in copies else 0, copy_of, path_cell(nearest), 0.5, f"word {row}, <b>", 0.1, 0.2, -0.9, -1.5,
            ])  # fmt: skip
    with (root / "run" / "groups.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["group", "images", "apart", "path", "image"])
        for number, rows in GROUPS.items():
            lines.writerows([number, len(rows), 0.5, path_cell(names[row]), contents[row]] for row in rows)


def write_labels(root: Path, names: Sequence[str] = NAMES) -> None:
    """Writes labels.csv of the run under `root`, as of a run with classes."""
    contents = [identity_of((root / "photos" / name).read_bytes()).hex() for name in names]
    doubtful = [
        DoubtfulLabel(rank, names[row], contents[row], names[row].split("/")[0], suggested, 0.125, 0.75)
        for rank, (row, suggested) in enumerate(DOUBTS.items(), start=1)
    ]
    write_doubtful(root / "run" / "labels.csv", doubtful)


def reviewed(root: Path) -> tuple[Review, RunImages]:
    """The review of the run under `root`."""
    suspects = suspects_of(root / "run")
    images = RunImages(suspects, [list_images("photos", ImageSet(folder="photos"), root, False, 0)])
    return Review(suspects, root / "run" / "decisions.csv", images.load), images


def application(root: Path, port: int = 80):
    """The application of this review, and who may use it."""
    access: Access = access_at("127.0.0.1", port)
    review, images = reviewed(root)
    return create_app(access, [review_routes(review, images, "run", access)]), access
