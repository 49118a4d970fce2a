"""Whether the encoder that a config names exists, answered without importing its library where its models are known."""

from __future__ import annotations

import difflib
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from clip_ood.backbones.checked_config import OPEN_CLIP, TEXT_TOWER, TOKENIZER_FILES, read_checked
from clip_ood.backbones.model_lists import models
from clip_ood.backbones.spec import ImageSpec
from clip_ood.errors import UserError

LIBRARIES = ("open_clip", "timm")
SCHEMES = ("hf-hub:", "local-dir:")
REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # on the Hugging Face hub


class BackboneSpec(Protocol):
    """What names an encoder; `clip_ood.config.schema.BackboneConfig` is one."""

    library: str
    model: str
    pretrained: str | None
    preprocess: str | None
    random_seed: int
    precision: str

    @property
    def text_spec(self) -> BackboneSpec | None:
        """The model whose text tower takes the place of this one's."""


def check_model(spec: BackboneSpec) -> None:
    """Raises ValueError for a model, tag, folder or file that is not there, naming the nearest valid ones."""
    if spec.library not in LIBRARIES:
        raise UserError(f"There is no encoder library {spec.library!r}: use {' or '.join(LIBRARIES)}.")
    if spec.text_spec is not None:
        _check_text(spec, spec.text_spec)
    if spec.library == "timm":
        _check_timm(spec)
    elif spec.model.startswith(SCHEMES):
        _check_own(spec)
    else:
        _check_open_clip(spec)


def _check_text(spec: BackboneSpec, text: BackboneSpec) -> None:
    if spec.library == "timm":
        raise UserError("backbone.text goes with open_clip: timm's encoders have no joint space for a text tower")
    check_model(text)
    widths = joint_width(spec.model), joint_width(text.model)
    if None not in widths and widths[0] != widths[1]:
        raise UserError(
            f"backbone.text: {text.model} embeds texts in {widths[1]} dimensions, and {spec.model} images in {widths[0]}; "
            "take a text tower that was trained with this image tower"
        )


def joint_width(model: str) -> int | None:
    """The width of an open_clip model's joint space by its configuration; None where that does not say, and for a model on the hub."""
    if model.startswith("hf-hub:"):
        return None
    if model.startswith("local-dir:"):
        described = read_checked(Path(model.removeprefix("local-dir:"), "open_clip_config.json"), OPEN_CLIP)
        return (described.get("model_cfg") or {}).get("embed_dim")
    return json.loads((_package("open_clip") / "model_configs" / f"{model}.json").read_text("utf-8"))["embed_dim"]


def _check_own(spec: BackboneSpec) -> None:
    for key in ("pretrained", "preprocess"):
        if value := getattr(spec, key):
            raise UserError(
                f"Backbone {spec.model} brings its own weights and preprocessing: leave `{key}` out (got {value!r})"
            )
    if spec.model.startswith("hf-hub:"):
        if not REPOSITORY.fullmatch(spec.model.removeprefix("hf-hub:")):
            raise UserError(f"Backbone {spec.model}: a model on the Hugging Face hub is named hf-hub:ORG/REPO")
        return
    folder = Path(spec.model.removeprefix("local-dir:"))
    if not (folder / "open_clip_config.json").is_file():
        raise UserError(f"Backbone {spec.model}: {folder} holds no open_clip_config.json.{_demo_hint(folder)}")
    described = read_checked(folder / "open_clip_config.json", OPEN_CLIP)
    if not isinstance(spec, ImageSpec):
        _check_text_files(folder, (described.get("model_cfg") or {}).get("text_cfg") or {})


def _check_text_files(folder: Path, text: dict[str, Any]) -> None:
    """Raises NotAllowed for what describes a text tower or tokenizer in a model's own folder."""
    files: dict[Path, Any] = {}
    if text.get("hf_model_name"):
        files[Path(text["hf_model_name"], "config.json")] = TEXT_TOWER
    if text.get("hf_tokenizer_name"):
        files |= {folder / name: keys for name, keys in TOKENIZER_FILES.items() if keys is not None}
    for path, keys in files.items():
        if path.is_file():
            read_checked(path, keys)


def _check_open_clip(spec: BackboneSpec) -> None:
    known = models("open_clip")
    if spec.model not in known:
        meant = _place(spec.model)
        near = f" Did you mean {meant}?" if meant else _nearest(spec.model, known)
        raise UserError(f"open_clip has no model {spec.model!r}.{near}")
    tags = known[spec.model] | known.get(spec.model.removesuffix("-quickgelu"), frozenset())
    if spec.pretrained and _clean(spec.pretrained) in tags:
        if spec.preprocess:
            raise UserError(
                f"The pretrained tag {spec.pretrained} says how its images were prepared: leave `preprocess` out "
                f"(got {spec.preprocess!r})"
            )
    elif spec.pretrained:
        _check_file(spec, tags)
    if spec.preprocess and _clean(spec.preprocess) not in tags:
        raise UserError(f"{spec.model} has no pretrained tag {spec.preprocess!r}.{_nearest(spec.preprocess, tags)}")


def _check_file(spec: BackboneSpec, tags: frozenset[str]) -> None:
    if not Path(spec.pretrained).is_file():
        near = _nearest(spec.pretrained, tags)
        known = f" Known: {', '.join(sorted(tags))}." if tags else ""
        raise UserError(f"{spec.model} has no pretrained tag or checkpoint file {spec.pretrained!r}.{near}{known}")
    if not tags:
        raise UserError(
            f"The checkpoint {spec.pretrained} does not say how its images were prepared, and {spec.model} has no "
            "pretrained tags to name: put it in a folder with an open_clip_config.json and use model local-dir:FOLDER."
        )
    if not spec.preprocess:
        raise UserError(
            f"The checkpoint {spec.pretrained} does not say how its images were prepared: set backbone.preprocess to "
            f"the pretrained tag whose mean, std and activation it was trained with, for instance {min(tags)}."
        )


def _check_timm(spec: BackboneSpec) -> None:
    architecture, _, tag = spec.model.partition(".")
    known = models("timm")
    if (name := spec.model.rpartition("/")[2]) != spec.model and name.partition(".")[0] in known:
        raise UserError(
            f"timm has no model {spec.model!r}: its models are taken by their names in timm. Did you mean {name}, with pretrained: "
            "default for the weights in that repository?"
        )
    if ":" in spec.model:
        raise UserError(
            f"timm has no model {spec.model!r}: its models are taken by their names in timm; folders and repositories are read as "
            "open_clip's (library: open_clip)"
        )
    if architecture not in known:
        raise UserError(f"timm has no model {spec.model!r}.{_nearest(architecture, known)}")
    tags = known[architecture]
    if tag and tag not in tags:
        listed = f" Known: {', '.join(sorted(tags))}." if tags else ""
        raise UserError(f"timm's {architecture} has no weights {tag!r}.{_nearest(tag, tags)}{listed}")
    if spec.preprocess:
        raise UserError(f"timm models know their preprocessing: leave `preprocess` out (got {spec.preprocess!r})")
    if spec.pretrained not in (None, "default") and not Path(spec.pretrained).is_file():
        raise UserError(
            f"timm: `pretrained` is `default`, null or a checkpoint file; there is no file {spec.pretrained!r}"
        )


def _package(name: str) -> Path:
    return Path(next(iter(find_spec(name).submodule_search_locations)))


def _clean(tag: str) -> str:
    return tag.lower().replace("-", "_")


def _nearest(name: str, valid) -> str:
    close = difflib.get_close_matches(name, list(valid), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _place(model: str) -> str | None:
    """How a repository on the hub, a folder, or a model by OpenAI's name (ViT-B/32) is named here; None for other names."""
    if (name := model.replace("/", "-")) in models("open_clip"):
        return name
    if Path(model, "open_clip_config.json").is_file():
        return f"local-dir:{model}"
    found = re.fullmatch(
        r"(?:(?:https?://)?huggingface\.co/|hf[-_]hub:/*)?([\w-][\w.-]*/[\w-][\w.-]*?)/?", model, re.IGNORECASE
    )
    return f"hf-hub:{found[1]}" if found else None


def _demo_hint(folder: Path) -> str:
    return " Build it: clip-ood demo encoder" if folder.name == "demo_encoder" else ""
