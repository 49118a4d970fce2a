"""A run's detector made to travel: the encoder's weights beside it."""

from __future__ import annotations

from pathlib import Path

from clip_ood.judging.save import add_encoder
from clip_ood.judging.saved import SavedDetector


def add_encoder_to(run: Path, encoder: str | None) -> None:
    """Lets the encoder's weights lie in the run's detector folder, and says so."""
    saved = SavedDetector(run)
    what = "holds its encoder now" if add_encoder(saved, encoder) else "held its encoder already"
    print(f"{saved.folder} {what}: it needs nothing else")
