"""The base of every section of a config. Nothing heavy is imported, so that a wrong key is reported before torch is loaded."""

from __future__ import annotations

from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

from clip_ood.config.values import settled
from clip_ood.config.yaml_text import as_yaml
from clip_ood.errors import UserError
from clip_ood.files.remote.address import Address, is_address, place_at
from clip_ood.files.text_files import OTHER_BYTES, not_utf8
from clip_ood.naming import text_fault

Fraction = Annotated[float, Field(ge=0, le=1)]
MOST = 2**31 - 1  # the largest integer that every library takes
MOST_FLOAT = 3.4e38  # of the 32-bit floats that tensors hold
Positive = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=-(2**31), lt=2**32)]
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]


def _named(place: Any) -> Any:
    if place == "":
        raise UserError("is empty; the folder itself is .")
    return place


Place = Annotated[
    Path,
    BeforeValidator(_named),
    AfterValidator(lambda path: Path(expanduser(path))),  # the shell leaves --key=~/… as it is
]


def _anywhere(place: Any) -> Path | Address:
    if not isinstance(place, str | Path | Address):
        raise UserError(f"takes a path or an address, not {place!r}")
    if isinstance(place, str) and (reason := text_fault(place)) and is_address(place):
        raise UserError(reason)
    found = place_at(_named(place))
    return Path(expanduser(found)) if isinstance(found, Path) else found


Anywhere = Annotated[  # a file or folder of this machine, in a bucket or behind a URL
    Path | Address, PlainValidator(_anywhere), PlainSerializer(str, when_used="json")
]


def _in_utf8(place: Path) -> Path:
    if not_utf8(str(place)):
        raise UserError(OTHER_BYTES.format("the name of this folder"))
    return place


Root = Annotated[Place, AfterValidator(_in_utf8)]  # libraries write there that take only names in UTF-8
Untyped = Annotated[dict[str, Any], BeforeValidator(as_yaml)]  # keys that no schema of ours knows: values are YAML


class Section(BaseModel):
    """Keys of a config. A value stays text until its type says more: a number, a truth value, or none."""

    bare: ClassVar[str | None] = None
    """The key that a text in place of keys stands for."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,  # to the first config, whose sections are then built in one go
    )

    @model_validator(mode="before")
    @classmethod
    def _settled(cls, given: Any) -> Any:
        if cls.bare is not None and isinstance(given, str | Path):
            given = {cls.bare: given if isinstance(given, Path) else str(given)}
        if not isinstance(given, dict):
            return given
        fields = cls.model_fields
        found = {
            key: settled(value, fields[key].annotation) if key in fields else value for key, value in given.items()
        }
        off = {key for key, value in found.items() if value is None and key in fields and fields[key].default is False}
        return {key: value for key, value in found.items() if key not in off}  # none is no where no is the default

    @field_validator("*")
    @classmethod
    def _legible(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses texts that no file can hold, empty ones unless the default is empty, and numbers that no tensor can hold."""
        for name in value if isinstance(value, dict) else ():
            if reason := text_fault(name):
                raise UserError(f"the name {name!r} {reason}: call it otherwise")
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, float) and abs(each) > MOST_FLOAT:
                raise UserError("is a larger number than any key takes")
            if isinstance(each, str | Path) and (reason := text_fault(each)):
                raise UserError(reason)
            if isinstance(each, str) and not each.strip() and cls.model_fields[info.field_name].default != "":
                raise UserError("is empty; leave the key out, or give a text")
        return value
