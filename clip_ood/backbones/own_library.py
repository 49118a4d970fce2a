"""Encoders of the user's own: a function or class by its dotted path, which gives an nn.Module and its transform."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_ood.backbones.fingerprint import file_hash, sha256
from clip_ood.backbones.library import Library
from clip_ood.backbones.spec import BackboneSpec, ImageSpec
from clip_ood.dotted_paths import module_of
from clip_ood.errors import UserError
from clip_ood.files.records import read_json

if TYPE_CHECKING:
    from clip_ood.backbones.backbone import Backbone


class Own(Library):
    package, reads_text, runs_own_code, described_in = "clip-ood", True, True, "own.json"

    def list_models(self) -> dict[str, list[str]]:
        return {}

    def check(self, spec: BackboneSpec) -> None:
        found(spec.model)
        for key, usual in (("preprocess", None), ("pooling", "default"), ("image_size", None)):
            if (value := getattr(spec, key)) != usual:
                raise UserError(
                    f"backbone.{key}: an encoder of your own prepares and pools images itself: leave it out (got {value!r})"
                )
        if spec.pretrained is not None and not Path(spec.pretrained).is_file():
            raise UserError(
                "own: `pretrained` is a file with the state dict of your module, or null if the module brings its weights; there is no "
                f"file {spec.pretrained!r}"
            )

    def reads_texts(self, spec: BackboneSpec) -> bool:
        return _has_text(spec.model)

    def fingerprint(self, spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
        """Returns the SHA-256 of the file that the code lies in and that of the weights: of their file, or of what the code made."""
        weights = (
            file_hash(Path(spec.pretrained), hashes) if spec.pretrained else _made_weights(spec.model, spec.random_seed)
        )
        return {"code": code_of(spec.model), "weights": weights}

    def create(self, spec: BackboneSpec, download: bool) -> Backbone:
        from clip_ood.backbones.own_backbone import OwnBackbone

        return OwnBackbone(spec)

    def described(self, backbone: Backbone) -> Mapping[str, Any]:
        """Returns by which code the weights are read."""
        return {"code": code_of(backbone.path)}

    def restored(self, spec: BackboneSpec, described: Path) -> Backbone:
        """Makes the encoder by its code. Raises: UserError if that is not there, or is not the code that was saved with."""
        self.check(ImageSpec(spec.library, spec.model))
        content = read_json(described)
        if not isinstance(content, dict) or content.get("code") != code_of(spec.model):
            raise UserError(
                f"{described}: the code of {spec.model} is not the one that the encoder was saved with, and its features may be others. "
                "Bring the file back as it was, or run the experiment again"
            )
        return self.image_side(spec)


def found(path: str) -> Callable[[], Any]:
    """Returns the function or class at `my_package.my_module:make`. Raises: UserError if there is none."""
    named = path.replace(":", ".")
    if "." not in named.strip("."):
        raise UserError(
            f"backbone.model: {path!r} names no code: an encoder of your own is the dotted path of a function or class, as my_module:make"
        )
    module, name = module_of(named, f"backbone.model: {path}")
    if (target := getattr(module, name, None)) is None:
        near = difflib.get_close_matches(name, [each for each in vars(module) if not each.startswith("_")], n=1)
        meant = f" Did you mean {module.__name__}:{near[0]}?" if near else ""
        raise UserError(f"backbone.model: {module.__file__} has no {name!r}.{meant}")
    if not callable(target):
        raise UserError(
            f"backbone.model: {path} is a {type(target).__name__}, and must be a function or class that gives the module"
        )
    return target


def code_of(path: str) -> str:
    """Returns the SHA-256 of the file in which the code at a dotted path lies."""
    module, _ = module_of(path.replace(":", "."), f"backbone.model: {path}")
    return f"sha256:{sha256(Path(module.__file__))}"


@cache
def _has_text(path: str) -> bool:
    target = found(path)
    if isinstance(target, type):
        return callable(getattr(target, "encode_text", None))
    from clip_ood.backbones.own_backbone import made

    return callable(getattr(made(path, 0)[0], "encode_text", None))


@cache
def _made_weights(path: str, seed: int) -> str:
    """Returns the SHA-256 of the weights that the code makes or loads by itself, whose file nobody knows."""
    from clip_ood.backbones.own_backbone import made

    content = hashlib.sha256()
    for name, value in sorted(made(path, seed)[0].state_dict().items()):
        content.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(-1).numpy(force=True).tobytes())
    return f"made:{content.hexdigest()}"
