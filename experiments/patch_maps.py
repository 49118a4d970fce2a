"""Maps of where the images of a run are unlike its bank, from what was stored of their patches: no encoder runs."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.library import library
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.detect.heat_map import heat_map
from clip_ood.detect.manifest import FOLDER
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError
from clip_ood.experiments.extraction import stored_patches
from clip_ood.outputs import Outputs

SAMPLE = 256  # images whose patches tell the scale
ENDS = 0.001, 0.5  # quantiles of the scores of patches of ID images: fully coloured, and not coloured at all


class PatchMaps:
    """The overlays of one detector of a finished run, with one scale: the `ENDS` of the scores of patches of ID images."""

    def __init__(self, saved: SavedDetector, column: str, config: Config, benchmark: Benchmark) -> None:
        self.detector, self._detector = column, saved.detector(column)
        self._config, self._benchmark = config, benchmark
        self._stored = stored_patches(config, benchmark)
        self.shown = 0  # overlays that were made
        tested = next(part for part in benchmark.evaluated[1:] if part.role in ("id", "train"))
        scores = self._scores(tested.images, torch.tensor(tested.rows)[:: -(-len(tested.rows) // SAMPLE)])
        self.low, self.high = scores.flatten().double().quantile(torch.tensor(ENDS, dtype=torch.float64)).tolist()

    def overlay(self, images: str, row: int, picture: Image.Image) -> Image.Image | None:
        """Returns the overlay on the picture of the image at a row of the image set of that key, or None if its patches are not stored."""
        scores = self._scores(images, torch.tensor([row]))
        if not len(scores):
            return None
        self.shown += 1
        seen = heat_map(scores[0], picture, self._encoder.transform, self._encoder.preprocessing, self.detector)
        return seen.overlay(self.low, self.high)

    @cached_property
    def _encoder(self) -> Backbone:
        """The encoder without its weights, for its transform."""
        with torch.device("meta"), torch.inference_mode():
            return library(self._config.backbone.library).image_side(self._config.backbone)

    def _scores(self, images: str, rows: Tensor) -> Tensor:
        """Returns the scores (n, P) of patches of those images of a set whose patches are stored."""
        stored = self._stored.get(images)
        if stored is None:
            return torch.empty(0, 1)
        rows = rows[stored.valid[rows] & stored.tokens[self._detector.tokens].has(rows)]
        tokens = {kind: each.take(rows) for kind, each in stored.tokens.items()}
        embeddings = None if stored.embeddings is None else stored.embeddings.take(rows)
        bank = self._benchmark.parts["bank"].images
        outputs = Outputs(
            stored.features.take(rows), embeddings, tokens=tokens, copy_of=rows if images == bank else None
        )
        return self._detector.local_scores(outputs)


def patch_maps(folder: Path, config: Config, benchmark: Benchmark) -> PatchMaps | None:
    """Returns the maps of the first detector of a run that looks at patches; None if it has none that is saved, or its features are not stored
    any more."""
    if config.method.settings.tunes_encoder or not (folder / FOLDER).is_dir():
        return None
    try:
        saved = SavedDetector(folder / FOLDER)
        return PatchMaps(saved, saved.local[0], config, benchmark) if saved.local else None
    except (UserError, FileNotFoundError):  # none of its detectors can be saved, or the store was emptied since
        return None
