"""Makes encoders without contacting any host, and says otherwise what would be downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clip_ood.backbones.remote import Remote
from clip_ood.backbones.spec import BackboneSpec, ImageSpec
from clip_ood.backbones.weights import remote_config, remote_weights


class WouldDownload(ConnectionError):
    """An encoder is not on this machine, and no host may be contacted."""


def require_here(spec: BackboneSpec) -> None:
    """Raises WouldDownload for an encoder that would have to be downloaded: what, from where, how large, where to."""
    for what, remote in (("its configuration", remote_config(spec)), ("its weights", remote_weights(spec))):
        if remote is not None and not remote.cached():
            raise WouldDownload(f"{what} {would_download(spec, remote)}")


def would_download(spec: BackboneSpec, remote: Remote) -> str:
    """Says from where an encoder would come, where to, and how large it is by its architecture alone, if that is known."""
    size = "the size is not known without asking there"
    if parameters := parameters_of(spec):
        size = f"about {4e-9 * parameters:.1f} GB, which is {parameters / 1e6:,.0f} million parameters as float32"
    return f"would be downloaded from {remote.address} to {remote.cache}: {size}"


@contextmanager
def offline() -> Iterator[None]:
    """Makes the Hugging Face hub's client read only its cache meanwhile, in this whole process."""
    from huggingface_hub import constants, utils

    renew = getattr(utils, "reset_sessions", lambda: None)  # before its version 1, a session kept what was set first
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    renew()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        renew()


def parameters_of(spec: BackboneSpec) -> int | None:
    """Returns the number of an encoder's parameters with its text tower, or None if only the hub knows its architecture."""
    if remote_config(spec) is not None:
        return None
    from clip_ood.backbones.create import create_backbone

    random = ImageSpec(spec.library, spec.model.removesuffix("-quickgelu"))
    try:
        with torch.device("meta"):
            backbone = create_backbone(random, download=False)
    except ValueError:  # only the hub describes its text tower
        return None
    return sum(each.numel() for each in backbone.parameters())
