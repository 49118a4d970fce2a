"""Perturbs the pixels of images in a predict loop, so that devices and nodes come from the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.functional import cosine_similarity

from clip_ood.adversarial import Attack, perturb, total_variation
from clip_ood.adversarial.images import Moved, PairBatch, cut_out
from clip_ood.adversarial.perturb import quantised
from clip_ood.backbones.backbone import Backbone
from clip_ood.detectors.detector import Detector
from clip_ood.model import classify_by, encode
from clip_ood.outputs import Outputs


class PixelAttack(LightningModule):
    """Lowers −cos(g(y + p), target) of each image y, or raises a detector's score, by the attack of its variant.

    `create` loads the encoder, whose weights take no gradient, if it is `needed`. Targets (n, D) or, `of_text`, (n, E) are given
    by position. `score` is a fitted detector, with the head W (C, D), b (C,) for its logits. `steps`: those to look at, for the
    first `looked_at` pairs in the variant `main`.
    """

    def __init__(
        self,
        create: Callable[[], Backbone],
        attacks: Mapping[str, Attack],
        seeds: list[int],
        targets: Tensor | None = None,
        of_text: bool = False,
        score: Detector | None = None,
        steps: frozenset[int] = frozenset(),
        looked_at: int = 0,
        main: str = "after",
        needed: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__()
        self.create, self.attacks, self.seeds, self.of_text, self.score = create, attacks, seeds, of_text, score
        self.steps, self.looked_at, self.main = steps, looked_at, main
        self.needed = needed
        self.register_buffer("targets", targets)
        self.backbone: Backbone | None = None

    def setup(self, stage: str) -> None:
        if self.needed():
            self.backbone = self.create().to(memory_format=torch.channels_last)  # faster for convolutions

    def outputs(self, pixels: Tensor) -> Outputs:
        """Returns the outputs of encoder and head for pixels (B, 3, H, W) in [0, 1]."""
        outputs = encode(self.backbone, cut_out(pixels, self.backbone))
        return outputs if self.score is None else classify_by(self.score.reference, outputs)

    def gain(self, outputs: Outputs, positions: range) -> Tensor:
        """Returns what the attack raises, (B,): the score, or the cosine to the target."""
        if self.score is not None:
            return self.score.score_with_grad(outputs)
        of = outputs.embeddings if self.of_text else outputs.features
        return cosine_similarity(of, self.targets[positions.start : positions.stop])

    def predict_step(self, batch: PairBatch, batch_idx: int) -> Moved:
        pixels, positions = batch.pixels.contiguous(memory_format=torch.channels_last), batch.positions
        looked_at, seen = max(0, min(self.looked_at, positions.stop) - positions.start), {}

        def watch(step: int, moved: Tensor) -> None:
            if step in self.steps and looked_at and batch.variant == self.main:
                seen[step] = to_bytes(moved[:looked_at])

        with torch.autocast(self.device.type, enabled=False):
            attack, seeds = self.attacks[batch.variant], self.seeds[positions.start : positions.stop]
            moved = perturb(lambda each: -self.gain(self.outputs(each), positions), pixels, attack, seeds, watch)
            saved = quantised(moved)
            with torch.no_grad():
                exact = self.outputs(moved)
                gains = {
                    "before": self.gain(self.outputs(pixels), positions),
                    "after": self.gain(self.outputs(saved), positions),
                    "float": self.gain(exact, positions),
                }
        p = saved - quantised(pixels)
        sizes = {"l2": p.flatten(1).norm(dim=1), "linf": p.flatten(1).abs().amax(dim=1), "tv": total_variation(p)}
        return Moved(to_bytes(pixels), to_bytes(saved), seen, gains | sizes, exact)


def to_bytes(pixels: Tensor) -> Tensor:
    """Returns pixels in [0, 1] as 0 … 255, rounded."""
    return (255 * pixels).round().to(torch.uint8).cpu()
