"""Checks that a file gives the same results for images as the encoder and the detectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from clip_ood.class_predictions import class_logits
from clip_ood.detectors.detector import Detector, score_together
from clip_ood.errors import UserError
from clip_ood.export.formats import Run
from clip_ood.export.graph import ScoringGraph

TOLERANCE = 1e-4  # of a score's spread over the images that are tried
ROUNDING = 1e-6  # of a score's size: some units in the last place of float32
BATCHES = (1, 3)  # sizes that are tried


def compare(run: Run, live: ScoringGraph, detectors: Mapping[str, Detector]) -> dict[str, float]:
    """Returns each output's largest difference between a file, `run`, and the detectors, as a fraction of the output's spread.

    The confidence is that of the class which the file predicts, because either of two equal classes may be predicted.
    Raises: ValueError for a difference above `TOLERANCE`.
    """
    batches = images(live.preprocessing.size).split(BATCHES)
    theirs = [run(pixels) for pixels in batches]
    ours = [_live(live, pixels, detectors, said) for pixels, said in zip(batches, theirs, strict=True)]
    differences = {}
    for name in ours[0]:
        expected, got = (torch.cat([each[name] for each in side]).double() for side in (ours, theirs))
        spread = (expected.amax(dim=0) - expected.amin(dim=0)).max()
        error = (got - expected).abs()
        allowed = TOLERANCE * spread + ROUNDING * expected.abs().max()
        if not (error <= allowed).all():
            raise UserError(
                f"export: {name} of the graph differs from the detector's by {error.max():.2g}, with scores from "
                f"{expected.min():.4g} to {expected.max():.4g}: no file was written. Export without it, or as .pt2"
            )
        differences[name] = (error.max() / spread).item() if spread > 0 else 0.0
    return differences


def images(size: tuple[int, int]) -> Tensor:
    """Returns generated images (4, 3, H, W) in [0, 1], from an even colour to noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat(
        [
            interpolate(torch.rand(1, 3, cells, cells, generator=generator), size=size, mode="bilinear")
            for cells in (1, 3, 12, max(size))
        ]
    )


def _live(
    graph: ScoringGraph, pixels: Tensor, detectors: Mapping[str, Detector], said: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    rows = graph.rows(pixels)
    live = {"features": rows.features}
    if (logits := class_logits(rows, graph.reference)) is not None:
        live["confidence"] = logits.softmax(dim=1).gather(1, said["predicted"][:, None]).squeeze(1)
    scores = score_together(list(detectors.values()), rows) if detectors else []
    return live | {f"score_{name}": score for name, score in zip(detectors, scores, strict=True)}
