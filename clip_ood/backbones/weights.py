"""Where weights come from: the net (which revision, and one line before they are downloaded), the cache, or a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clip_ood.backbones.names import BackboneSpec
from clip_ood.errors import UserError
from clip_ood.files.checksum import Checksum, record, recorded
from clip_ood.files.download import download
from clip_ood.files.file_types import check_type
from clip_ood.process.locks import in_turn
from clip_ood.process.ranks import is_first
from clip_ood.terminal.shown import say

CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Remote:
    """Weights in a repository of the Hugging Face hub (the first of `files` that is there), or at a URL.

    cache is the folder that they are downloaded to.
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
        """Where it is, for people."""
        return self.url or f"https://huggingface.co/{self.repository}"

    def fetch(self, allowed: bool) -> Path:
        """The file: out of the cache, else downloaded, if that is allowed.

        Raises: ConnectionError where it does not, and where the hub does not give it.
        """
        if self.url and allowed:
            with in_turn(self.cache / self.url.rpartition("/")[2]):  # the hub's client has locks of its own
                return self._from_url()
        if cached := self.cached():
            return cached
        if not allowed:
            raise ConnectionError(f"{self.address} is not in the local cache {self.cache}")
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError

        for file in self.files:
            try:
                return Path(hf_hub_download(self.repository, file, cache_dir=self.cache))
            except EntryNotFoundError:  # no such file there, or no answer and none in the cache
                continue
        raise ConnectionError(f"{self.address} has or gives no {' or '.join(self.files)}")

    def _from_url(self) -> Path:
        """The file at `url`: what is there already is held against its checksum, as what is downloaded: that in its address, else that
        of the first download, which is kept beside it."""
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
        download(self.url, file, known)
        if known is None:
            say(f"No checksum of {file.name} was published. That of this first download is kept in {record(file)}")
        return file

    def revision(self) -> str:
        """`repository@commit`: of the copy in the cache if there is one, else of the hub's newest; a URL as it is.

        Raises: ConnectionError without a cached copy where the hub does not give one.
        """
        if self.url:
            return self.url  # OpenAI's and open_clip's addresses hold the hash
        if cached := self.cached():
            return f"{self.repository}@{cached.parent.name}"
        from huggingface_hub import HfApi

        try:
            return f"{self.repository}@{HfApi().model_info(self.repository).sha}"
        except Exception as error:  # what the client raises depends on its version
            raise ConnectionError(
                f"The weights {self.repository} are not in the local cache and the Hugging Face hub does not give them "
                f"({type(error).__name__}). With network they are downloaded to {self.cache}; without it, name a "
                "checkpoint file as backbone.pretrained, or try --backbone=backbones/demo.yaml, which needs no download."
            ) from error

    def size(self) -> str:
        """How large the download is, if the hub says so within seconds."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        for file in self.files:
            try:
                return f"{get_hf_file_metadata(hf_hub_url(self.repository, file), timeout=5).size / 1e9:.1f} GB"
            except Exception:  # no such file, or no answer: only the line to print depends on it
                continue
        return "size not known"


def remote_weights(spec: BackboneSpec) -> Remote | None:
    """Where the weights of `spec` come from; None for files, folders and random weights.

    Raises: ValueError for a timm model without published weights.
    """
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE)
    if spec.library == "timm":
        return _timm_default(spec.model, hub) if spec.pretrained == "default" else None
    if spec.model.startswith("hf-hub:"):
        return Remote(hub, spec.model.removeprefix("hf-hub:"), OPEN_CLIP_FILES)
    from open_clip.pretrained import get_pretrained_cfg

    tag = get_pretrained_cfg(spec.model, spec.pretrained or "")
    if not tag:
        return None
    if not tag.get("hf_hub"):
        return Remote(Path("~/.cache/clip").expanduser(), url=tag["url"])
    repository, _, file = tag["hf_hub"].rpartition("/")
    return Remote(hub, repository, (f"{file.rpartition('.')[0]}.safetensors", file) if file else OPEN_CLIP_FILES)


def remote_config(spec: BackboneSpec) -> Remote | None:
    """Where the configuration of a model on the hub is; None for other models."""
    from huggingface_hub import constants

    if not spec.model.startswith("hf-hub:"):
        return None
    return Remote(Path(constants.HF_HUB_CACHE), spec.model.removeprefix("hf-hub:"), (CONFIG,))


def weights_file(spec: BackboneSpec, download: bool) -> Path | None:
    """The file of the weights, downloaded where need be; None for random ones. Raises as `Remote.fetch`."""
    remote = remote_weights(spec)
    return local_weights(spec) if remote is None else remote.fetch(download)


def _in_address(url: str) -> Checksum | None:
    """The checksum in an address of weights: OpenAI's folders are called by it, open_clip's own files end with its first digits."""
    found = re.search(r"openaipublic.*/([0-9a-f]{64})/|mlfoundations.*-([0-9a-f]{8,64})\.\w+$", url)
    return None if found is None else Checksum("sha256", found[1] or found[2], "and by its address begins with")


def _timm_default(model: str, hub: Path) -> Remote:
    import torch
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model)
    if config and config.hf_hub_id:
        return Remote(
            hub, config.hf_hub_id, _alternatives(config.hf_hub_filename) if config.hf_hub_filename else TIMM_FILES
        )
    if config and config.url:
        return Remote(Path(torch.hub.get_dir(), "checkpoints"), url=config.url)
    raise UserError(f"timm has no published weights of {model}: set backbone.pretrained to a checkpoint file or null")


def _alternatives(file: str) -> tuple[str, ...]:
    """The names under which timm looks for a file on the hub."""
    known = [files for files in (OPEN_CLIP_FILES, TIMM_FILES) if file in files]
    return known[0] if known else (f"{file.rpartition('.')[0]}.safetensors", file)


def announce(spec: BackboneSpec) -> None:
    """Prints, on the first process, what is about to be downloaded (how large, from where, into which folder), or that
    weights are random.

    Raises: ConnectionError where the hub does not give it.
    """
    if not is_first():
        return
    if (remote := remote_weights(spec)) is None:
        if not local_weights(spec):
            say(f"{spec.model} comes without weights: random ones are drawn from seed {spec.random_seed}", flush=True)
    elif not remote.cached():
        remote.revision()  # raises
        weights = "" if spec.pretrained in (None, "default") else f" {spec.pretrained}"
        say(f"Downloading {spec.model}{weights} ({remote.size()}) from {remote.address} to {remote.cache}", flush=True)


def local_weights(spec: BackboneSpec) -> Path | None:
    """The checkpoint file of `spec`, by itself or in its folder; None for other weights and without any."""
    if not spec.model.startswith("local-dir:"):
        return Path(spec.pretrained) if spec.pretrained and remote_weights(spec) is None else None
    from open_clip.factory import _find_checkpoint_in_dir

    folder = Path(spec.model.removeprefix("local-dir:"))
    if file := _find_checkpoint_in_dir(folder):
        return Path(file)
    others = sorted(
        path for path in folder.iterdir() if path.suffix in (".pt", ".ckpt", ".npz")
    )  # which open_clip passes over
    if len(others) > 1:
        raise UserError(
            f"{folder} holds several checkpoints ({', '.join(path.name for path in others[:3])}): leave the one that is meant there"
        )
    return others[0] if others else None
