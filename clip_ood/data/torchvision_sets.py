"""The sets that torchvision unpacks to arrays: CIFAR10, CIFAR100, SVHN, MNIST."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_ood.errors import ConfigError
from clip_ood.process.locks import in_turn


class Arrays(NamedTuple):
    """pixels (N, H, W, 3) or (N, H, W) 8 bit, labels (N,), class names in label order."""

    pixels: np.ndarray
    labels: tuple[int, ...]
    class_names: tuple[str, ...]


def load(set_name: str, kind: str, split: str, root: Path, download: bool) -> Arrays:
    """One split of a set, downloaded to `root` if it is not there and `download` allows.

    Raises: ConfigError for files that are missing or damaged and cannot be downloaded.
    """
    from torchvision import datasets

    part = {"split": split} if kind == "SVHN" else {"train": split == "train"}
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
        with in_turn(root / kind) if download else nullcontext():  # processes of one run would all download
            data = getattr(datasets, kind)(root, **part, download=download)
    except Exception as error:
        tried = "download" if download else "read"
        raise ConfigError(
            f"Image set {set_name}: torchvision could not {tried} {kind} (size and source: clip-ood catalog) "
            f"in {root}: {error}"
        ) from error
    if kind == "SVHN":  # channels first, and no class names
        names = tuple(str(digit) for digit in range(10))
        return Arrays(data.data.transpose(0, 2, 3, 1), tuple(data.labels.tolist()), names)
    if kind == "MNIST":
        return Arrays(data.data.numpy(), tuple(data.targets.tolist()), tuple(name[0] for name in data.classes))
    return Arrays(data.data, tuple(data.targets), tuple(label.replace("_", " ") for label in data.classes))
