"""Finds the weights of an encoder: on the net (a line says so before they are downloaded), in the cache, or in a file."""

from __future__ import annotations

from pathlib import Path

from clip_ood.backbones.library import library
from clip_ood.backbones.remote import Remote
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.process.ranks import is_first
from clip_ood.terminal.shown import say


def remote_weights(spec: BackboneSpec) -> Remote | None:
    """Returns where the weights of `spec` come from, or None for files, folders and random weights.

    Raises: UserError for a model of timm without published weights.
    """
    return library(spec.library).remote_weights(spec)


def remote_config(spec: BackboneSpec) -> Remote | None:
    """Returns where the configuration of a model on the hub is, or None for other models."""
    return library(spec.library).remote_config(spec)


def local_weights(spec: BackboneSpec) -> Path | None:
    """Returns the checkpoint file of `spec`, by itself or in its folder; None for other weights and without any."""
    return library(spec.library).local_weights(spec)


def weights_file(spec: BackboneSpec, download: bool) -> Path | None:
    """Returns the file of the weights, downloaded if need be, or None for random ones. Raises as `Remote.fetch` does."""
    remote = remote_weights(spec)
    return local_weights(spec) if remote is None else remote.fetch(download)


def announce(spec: BackboneSpec) -> None:
    """Prints, on the first process, what is about to be downloaded (how large, from where, into which folder), or that
    weights are random.

    Raises: ConnectionError if the hub does not provide it.
    """
    if not is_first():
        return
    if (remote := remote_weights(spec)) is None:
        if not local_weights(spec) and not library(spec.library).runs_own_code:  # which may load weights by itself
            say(f"{spec.model} comes without weights: random ones are drawn from seed {spec.random_seed}", flush=True)
    elif not remote.cached():
        remote.revision()  # raises
        weights = "" if spec.pretrained in (None, "default") else f" {spec.pretrained}"
        say(f"Downloading {spec.model}{weights} ({remote.size()}) from {remote.address} to {remote.cache}", flush=True)
