"""The interface of a package that encoders come from: names, weights, fingerprint, and the encoder itself.

A package of encoders is one file with a `Library`, and a line of `LIBRARIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from clip_ood.backbones.spec import BackboneSpec, ImageSpec
from clip_ood.errors import UserError

if TYPE_CHECKING:
    from clip_ood.backbones.backbone import Backbone
    from clip_ood.backbones.remote import Remote

LIBRARIES = {  # as configs name them -> module:class
    "open_clip": "clip_ood.backbones.open_clip_library:OpenClip",
    "timm": "clip_ood.backbones.timm_library:Timm",
    "transformers": "clip_ood.backbones.transformers_library:Transformers",
    "own": "clip_ood.backbones.own_library:Own",
    "given": "clip_ood.backbones.given_library:Given",
}


class Library(ABC):
    """A package that encoders come from. It imports the package only where it must, and answers `check` without it.

    Attributes: package: the name that it is installed under; reads_text: whether its encoders have a joint space of images and
    texts (see `reads_texts`); takes_tokens: whether its text towers take embeddings of tokens, so that texts can be learnt; runs_own_code: whether its encoders are code that the user names; described_in: the file that
    `described` is written to.
    """

    package: ClassVar[str]
    reads_text: ClassVar[bool]
    takes_tokens: ClassVar[bool] = False
    runs_own_code: ClassVar[bool] = False
    described_in: ClassVar[str] = "open_clip_config.json"

    @abstractmethod
    def list_models(self) -> dict[str, list[str]]:
        """Imports the package, and returns its architectures, each with the tags of its weights."""

    @abstractmethod
    def check(self, spec: BackboneSpec) -> None:
        """Raises: UserError for a model, tag, folder or file that does not exist, and names the nearest valid ones."""

    def reads_texts(self, spec: BackboneSpec) -> bool:
        """Says whether this encoder has a joint space of images and texts. Raises: ConnectionError if only the hub knows it."""
        return self.reads_text

    def check_text(self, spec: BackboneSpec, text: BackboneSpec) -> None:
        """Raises: UserError if the texts of another model cannot be combined with the images of this one."""
        raise UserError(
            f"backbone.text goes with open_clip: {spec.library}'s encoders have no joint space for another text tower"
        )

    def check_encodes(self) -> None:  # noqa: B027
        """Raises UserError if nothing makes features of images."""

    def remote_config(self, spec: BackboneSpec) -> Remote | None:
        """Returns where a model's configuration lies on the net, or None for models that are not described there."""
        return None

    def remote_weights(self, spec: BackboneSpec) -> Remote | None:
        """Returns where its weights come from, or None for files, folders and random weights.

        Raises: UserError if there are none.
        """
        return None

    def local_weights(self, spec: BackboneSpec) -> Path | None:
        """Returns the checkpoint file of a model, or None for other weights and without any."""
        return Path(spec.pretrained) if spec.pretrained and self.remote_weights(spec) is None else None

    @abstractmethod
    def fingerprint(self, spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
        """Returns what distinguishes its features from others besides library, model and precision.

        See `clip_ood.backbones.fingerprint`.
        """

    @abstractmethod
    def create(self, spec: BackboneSpec, download: bool) -> Backbone:
        """Makes the encoder, frozen, on the CPU. Raises what loading raises."""

    def image_side(self, spec: BackboneSpec) -> Backbone:
        """Makes the image tower and projection with random weights, on the current default device.

        Raises: ConnectionError if the configuration is not on this machine.
        """
        own = {"precision": spec.precision, "pooling": spec.pooling, "image_size": spec.image_size}
        return self.create(ImageSpec(spec.library, spec.model, **own), download=False)

    def described(self, backbone: Backbone) -> Mapping[str, Any] | None:
        """Returns the configuration from which `restored` makes the encoder again, or None if the model's name is enough."""
        return None

    def restored(self, spec: BackboneSpec, described: Path) -> Backbone:
        """Makes the encoder without its weights, from the configuration in the file `described`, if any; no host is contacted.

        Raises: UserError for a configuration that is not allowed, and for a model that does not exist.
        """
        self.check(ImageSpec(spec.library, spec.model))
        return self.image_side(spec)


@cache
def library(name: str) -> Library:
    """Returns the library of that name. Raises: UserError for another name."""
    if name not in LIBRARIES:
        raise UserError(f"There is no encoder library {name!r}: use {' or '.join(LIBRARIES)}.")
    module, _, cls = LIBRARIES[name].partition(":")
    return getattr(import_module(module), cls)()
