"""Loads the sets that torchvision unpacks to arrays: CIFAR10, CIFAR100, SVHN and MNIST."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from clip_ood.data.readers.arrays import Arrays
from clip_ood.errors import ConfigError
from clip_ood.process.locks import in_turn


def load(set_name: str, kind: str, split: str, root: Path, download: bool) -> Arrays:
    """Loads one split of a set, which is downloaded to `root` if it is not there and `download` allows it.

    Raises: ConfigError for files that are missing or damaged and cannot be downloaded.
    """
    from torchvision import datasets

    part = {"split": split} if kind == "SVHN" else {"train": split == "train"}
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
        with in_turn(root / kind) if download else nullcontext():  # all processes of a run would download
            data = getattr(datasets, kind)(root, **part, download=download)
    except Exception as error:
        tried = "download" if download else "read"
        raise ConfigError(
            f"Image set {set_name}: torchvision could not {tried} {kind} (size and source: clip-ood catalog) "
            f"in {root}: {error}"
        ) from error
    names = tuple(f"{kind}/{split}/{index:05d}" for index in range(len(data.data)))
    if kind == "SVHN":  # has channels first, and no class names
        digits = tuple(str(digit) for digit in range(10))
        return Arrays(data.data.transpose(0, 2, 3, 1), names, data.labels, digits)
    if kind == "MNIST":
        return Arrays(data.data.numpy(), names, data.targets, tuple(name[0] for name in data.classes))
    return Arrays(data.data, names, data.targets, tuple(label.replace("_", " ") for label in data.classes))
