"""What layers, patch tokens and GL-MCM add to extraction and to the forward pass: python -m bench.patches"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from bench import chosen, seconds
from bench.extraction import ours as extracted
from bench.pictures import draw
from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.create import create_backbone
from clip_ood.config.schema import BackboneConfig, ImageSet
from clip_ood.data.listing import list_images
from clip_ood.detectors.gl_mcm import GLMCM
from clip_ood.detectors.local_knn import LocalKNN
from clip_ood.model import NOTHING, encode
from clip_ood.outputs import Inside, Outputs, Reference


class Sizes(NamedTuple):
    model: str = "ViT-B-16"
    batch: int = 16
    images: int = 32
    pairs: int = 9
    classes: int = 1_000


TINY = Sizes(model="ViT-B-32", batch=2, images=4, pairs=1, classes=10)
WANTED = Inside(("6", "12"), ("value",))
PLAIN = ("features", "embeddings")


@torch.inference_mode()
def scored(backbone: Backbone, pixels: torch.Tensor, detector: GLMCM | LocalKNN | None) -> None:
    outputs = encode(backbone, pixels, NOTHING if detector is None else detector.inside)
    if detector is not None:
        detector.score(outputs)


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    backbone = create_backbone(BackboneConfig(model=sizes.model))  # random weights cost the same
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), sizes.images)
        images = list_images("images", ImageSet(folder=Path(folder)), Path(), labelled=False, seed=0)
        given = images, backbone, sizes.batch
        extracted(images.subset(range(sizes.batch)), backbone, sizes.batch, PLAIN)  # warm up
        times = [
            (seconds(extracted, *given, (*PLAIN, *WANTED.arrays)), seconds(extracted, *given, PLAIN))
            for _ in range(sizes.pairs)
        ]
    tell(
        f"extraction with two layers and value tokens, time over extraction, {sizes.images} JPEGs, {sizes.model}",
        times,
        1.1,
    )
    pixels = torch.randn(sizes.batch, 3, *backbone.preprocessing.size, generator=generator)
    outputs = encode(backbone, pixels[:2], Inside(tokens=("value",)))
    patches, width = outputs.tokens["value"].shape[1:]
    text = normalize(torch.randn(sizes.classes, width, generator=generator), dim=1)
    tokens = torch.randn(100, patches, width, generator=generator)
    local = LocalKNN(tokens="value")
    local.update(Outputs(tokens={"value": tokens}, indices=torch.arange(100)))
    local.fit()
    for name, detector in (("GL-MCM", GLMCM(Reference(text_embeddings=text))), ("local k-NN", local)):
        scored(backbone, pixels, detector)
        times = [
            (seconds(scored, backbone, pixels, detector), seconds(scored, backbone, pixels, None))
            for _ in range(sizes.pairs)
        ]
        tell(f"{name} on live images, time over the forward pass, batch {sizes.batch}, {sizes.model}", times, 1.15)


def tell(what: str, times: list[tuple[float, float]], wanted: float) -> None:
    """Prints the ratio of the shortest times, since other work only lengthens them, and the least and greatest of the pairs'."""
    shortest = min(ours for ours, _ in times) / min(other for _, other in times)
    ratios = [ours / other for ours, other in times]
    print(f"{what}  {shortest:.2f} ({min(ratios):.2f}–{max(ratios):.2f})  <= {wanted}")


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
