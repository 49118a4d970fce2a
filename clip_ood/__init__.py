"""Detects out-of-distribution images with pretrained image-text encoders; this library is free of Lightning.

Importing this package, or the list of detector names, imports nothing heavy, so that command-line errors are reported at once.

    from clip_ood import load
    predictor = load("runs/demo")
    predictor(["a.jpg", picture, tensor])     # [Prediction(path="a.jpg", is_ood=False, score=0.91, p_value=0.47, …), …]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_ood.detect.prediction import Prediction
    from clip_ood.detect.predictor import Predictor, load

__all__ = ["Prediction", "Predictor", "load"]

_CLONE = Path(__file__).parents[1]

if (_CLONE / "pyproject.toml").is_file() and (_CLONE / "lightning_modules").is_dir():
    __path__.append(str(_CLONE))  # before the folders of another clone, which may be installed


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clip_ood.detect import predictor

    return getattr(predictor, name)
