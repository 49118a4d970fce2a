"""What every section of a config is made of. Nothing heavy is imported: a wrong key is answered before torch is loaded."""

from __future__ import annotations

from os.path import expanduser
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Place = Annotated[Path, AfterValidator(lambda path: Path(expanduser(path)))]  # the shell leaves --key=~/… as it is


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,  # --name=2024
    )
