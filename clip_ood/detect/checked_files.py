"""The files of a detector's folder, each checked against its SHA-256 before anything in it is used."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_ood.backbones.fingerprint import sha256
from clip_ood.detect.manifest import STATE, DetectorFolderError
from clip_ood.files.records import Unfit


class CheckedFiles:
    """Files of a folder, by their names in it.

    hashes: the SHA-256 of each file; doubles: the tensors of `state.safetensors` that are float64 to who asks, and stored in
    float32, which holds them as they are. Every method raises DetectorFolderError for a file that is missing or changed.
    """

    def __init__(self, folder: Path, hashes: Mapping[str, str], doubles: Collection[str] = ()) -> None:
        self.folder, self.hashes, self.doubles = folder, hashes, frozenset(doubles)
        self._checked: set[str] = set()

    def check(self, name: str) -> None:
        """Checks a file, once."""
        if name in self._checked:
            return
        path = self.folder / name
        if not path.is_file():
            raise DetectorFolderError(f"{self.folder} is not whole: {name} is missing; copy the folder again")
        if sha256(path) != self.hashes.get(name):
            raise DetectorFolderError(
                f"{path} is not the file that was saved: it is truncated or was changed; copy the folder again"
            )
        self._checked.add(name)

    def check_all(self, prefix: str = "") -> None:
        """Checks the files whose names begin with `prefix`."""
        for name in self.hashes:
            if name.startswith(prefix):
                self.check(name)

    def tensors(self, name: str, prefix: str, but: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Returns tensors as `stored` does, in the dtype in which a score is computed."""
        doubles = self.doubles if name == STATE else ()
        found = self.stored(name, prefix, but)
        return {key: value.double() if prefix + key in doubles else value for key, value in found.items()}

    def stored(self, name: str, prefix: str, but: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Reads the tensors of a file whose names begin with `prefix` and with none of `but`, by the rest of their names.

        They are copied, not mapped: whatever is written over the file later, what was checked is what is used.
        """
        self.check(name)
        try:
            with safe_open(self.folder / name, "pt") as file:
                names = [key for key in file.keys() if key.startswith(prefix) and not key.startswith(but)]  # noqa: SIM118
                return {key.removeprefix(prefix): file.get_tensor(key).clone() for key in names}
        except SafetensorError as error:
            raise DetectorFolderError(f"{self.folder / name} is damaged ({error}); copy the folder again") from error

    @contextmanager
    def fitting(self, name: str) -> Iterator[None]:
        """Wraps the check of a file's tensors. Raises: DetectorFolderError for tensors that do not fit."""
        try:
            yield
        except Unfit as error:
            raise DetectorFolderError(
                f"{self.folder / name} is none that a run writes: {error}. Do not use it"
            ) from error
