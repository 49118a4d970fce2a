"""Weights and configurations on the net: their revision, their size, and the copy in the cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clip_ood.errors import UserError
from clip_ood.files.checksum import Checksum, record, recorded
from clip_ood.files.file_types import check_type
from clip_ood.process.locks import in_turn
from clip_ood.terminal.shown import say


class Refused(ConnectionError):
    """The hub answers, and does not give a repository: it is gated, private, or not there."""


@dataclass(frozen=True)
class Remote:
    """Weights in a repository of the Hugging Face hub (the first of `files` that is there), or at a URL.

    cache is the folder to which they are downloaded.
    """

    cache: Path
    repository: str = ""
    files: tuple[str, ...] = ()
    url: str = ""

    def cached(self) -> Path | None:
        """The downloaded file; None if it is not there yet."""
        if self.url:
            file = self.cache / self.url.rpartition("/")[2]
            return file if file.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        found = (try_to_load_from_cache(self.repository, file, cache_dir=self.cache) for file in self.files)
        return next((Path(path) for path in found if isinstance(path, str)), None)

    @property
    def address(self) -> str:
        """The address, as a text for people."""
        return self.url or f"https://huggingface.co/{self.repository}"

    def fetch(self, allowed: bool) -> Path:
        """Returns the file from the cache, or downloads it if that is allowed.

        Raises: ConnectionError if it is not allowed, and if the hub does not provide it.
        """
        if self.url and allowed:
            with in_turn(self.cache / self.url.rpartition("/")[2]):  # the hub's client has locks of its own
                return self._from_url()
        if cached := self.cached():
            return cached
        if not allowed:
            raise ConnectionError(f"{self.address} is not in the local cache {self.cache}")
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError

        for file in self.files:
            try:
                return Path(hf_hub_download(self.repository, file, cache_dir=self.cache))
            except EntryNotFoundError:  # there is no such file, or no answer and no copy in the cache
                continue
            except RepositoryNotFoundError as error:
                raise Refused(self._refused(error)) from error
        raise ConnectionError(f"{self.address} has or gives no {' or '.join(self.files)}")

    def _from_url(self) -> Path:
        """Returns the file at `url`, whose checksum is compared whether it was there already or is downloaded.

        The checksum is the one in the address, or otherwise that of the first download, which is kept beside the file.
        """
        file = self.cache / self.url.rpartition("/")[2]
        known = _in_address(self.url) or recorded(file)
        if file.is_file():
            try:
                check_type(file)
                if known is not None:
                    known.check(file)
                return file
            except UserError as error:
                say(f"{file}: {error}: it is downloaded again", flush=True)
        from clip_ood.files.download import download  # with http and ssl

        download(self.url, file, known)
        if known is None:
            say(f"No checksum of {file.name} was published. That of this first download is kept in {record(file)}")
        return file

    def revision(self) -> str:
        """Returns `repository@commit`, for the copy in the cache if there is one, otherwise for the hub's newest; a URL as it is.

        Raises: ConnectionError without a cached copy if the hub does not provide one.
        """
        if self.url:
            return self.url  # OpenAI's and open_clip's addresses hold the hash
        if cached := self.cached():
            return f"{self.repository}@{cached.parent.name}"
        from huggingface_hub import HfApi
        from huggingface_hub.utils import RepositoryNotFoundError

        try:
            return f"{self.repository}@{HfApi().model_info(self.repository).sha}"
        except RepositoryNotFoundError as error:
            raise Refused(self._refused(error)) from error
        except Exception as error:  # the client's errors depend on its version
            raise ConnectionError(
                f"The weights {self.repository} are not in the local cache and the Hugging Face hub does not give them "
                f"({type(error).__name__}). With network they are downloaded to {self.cache}; without it, name a "
                "checkpoint file as backbone.pretrained, or try --backbone=backbones/demo.yaml, which needs no download."
            ) from error

    def _refused(self, error: Exception) -> str:
        """Says what to do about a repository that the hub does not give: it is gated, private, or not there."""
        from huggingface_hub.utils import GatedRepoError

        if isinstance(error, GatedRepoError):
            return f"{self.address} is gated: accept its licence there, then sign in with `hf auth login` or set HF_TOKEN to a token of yours"
        return (
            f"The Hugging Face hub has no repository {self.repository}, or it is private: check the name or, if it is yours, sign in with "
            "`hf auth login` or set HF_TOKEN"
        )

    def size(self) -> str:
        """Returns how large the download is, if the hub answers within seconds."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        for file in self.files:
            if file.endswith(".index.json"):  # names the files of weights, whose sizes it does not say
                continue
            try:
                return f"{get_hf_file_metadata(hf_hub_url(self.repository, file), timeout=5).size / 1e9:.1f} GB"
            except Exception:  # there is no such file, or no answer; only the printed line depends on it
                continue
        return "size not known"


def hub_cache() -> Path:
    """Returns the folder to which the Hugging Face hub's client downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _in_address(url: str) -> Checksum | None:
    """Returns the checksum in an address of weights.

    OpenAI's folders have it as their name, and open_clip's own files end with its first digits.
    """
    found = re.search(r"openaipublic.*/([0-9a-f]{64})/|mlfoundations.*-([0-9a-f]{8,64})\.\w+$", url)
    return None if found is None else Checksum("sha256", found[1] or found[2], "and by its address begins with")
