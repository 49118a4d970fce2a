"""Feature extraction against a bare decode–transform–forward loop over the same files: python -m bench.extraction"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import NamedTuple

import torch
from PIL import Image

from bench import chosen, seconds, spread
from bench.pictures import draw
from bench.trainer import quiet_trainer
from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.create import create_backbone
from clip_ood.callbacks.feature_writer import FeatureWriter
from clip_ood.config.schema import BackboneConfig, ImageSet
from clip_ood.data.image_list import ImageList
from clip_ood.data.listing import list_images
from clip_ood.datamodules.extraction import ExtractionData
from clip_ood.features.identity import pairs
from clip_ood.features.store import PART, FeatureStore
from clip_ood.lightning_modules.feature_extractor import FeatureExtractor


class Sizes(NamedTuple):
    batch: int = 32
    images: int = 256
    pairs: int = 5


TINY = Sizes(batch=4, images=8, pairs=1)
SPEC = BackboneConfig(library="timm", model="tf_efficientnet_lite0")  # random weights cost the same


def ours(images: ImageList, backbone: Backbone, batch: int, arrays: Sequence[str] = ("features",)) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), {"precision": "fp32"})
        stored = {"images": store.image_set("images", images, arrays)}
        data = ExtractionData({"images": images}, stored, [], lambda: backbone.transform, batch, workers=0)
        extractor = FeatureExtractor(lambda: backbone, arrays={"images": arrays})
        trainer = quiet_trainer(FeatureWriter(store, stored, []))
        trainer.predict(extractor, datamodule=data, return_predictions=False)


def bare(images: ImageList, backbone: Backbone, batch: int) -> None:
    with torch.inference_mode():
        features = []
        for start in range(0, len(images), batch):
            names = images.names[start : start + batch]
            pixels = [backbone.transform(Image.open(images.root / name).convert("RGB")) for name in names]
            features.append(backbone.encode_image(torch.stack(pixels)))
        torch.cat(features)


def keeping(images: ImageList, width: int, batch: int) -> None:
    """Does what the store adds to extraction: hashes, look-ups, checksums and syncs, without decoding or encoding."""
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), {"precision": "fp32"})
        stored = store.image_set("images", images)
        stored.missing()
        for rows in torch.arange(len(images)).split(PART):
            loaded = []
            for some in rows.split(batch):
                loaded += [images.load(row) for row in some.tolist()]
                stored.entries.has(pairs(each.identity for each in loaded[-len(some) :]), ["features", "valid"])
            identities = pairs(each.identity for each in loaded)
            stored.add(identities, {"features": torch.zeros(len(rows), width)})
            store.files.remember(pairs(each.stamp for each in loaded), identities)
        store.merge()
        stored.refresh()
        stored.open()


def reading(images: ImageList) -> None:
    """Reads all bytes, which extraction needs in any case."""
    for name in images.names:
        (images.root / name).read_bytes()


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    backbone = create_backbone(SPEC)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), sizes.images)
        images = list_images("images", ImageSet(folder=Path(folder)), Path(), labelled=False, seed=0)
        given = images, backbone, sizes.batch
        ours(images.subset(range(sizes.batch)), backbone, sizes.batch)  # warm up
        ratios = [seconds(ours, *given) / seconds(bare, *given) for _ in range(sizes.pairs)]
        shares = []
        for _ in range(sizes.pairs):
            width = backbone.encode_image(torch.zeros(1, 3, *backbone.preprocessing.size)).shape[1]
            added = seconds(keeping, images, width, sizes.batch, clock=process_time)
            added -= seconds(reading, images, clock=process_time)
            shares.append(added / seconds(ours, *given, clock=process_time))
    print(f"extraction, time over a bare loop, {sizes.images} JPEGs, EfficientNet-Lite0  {spread(ratios)}  <= 1.15")
    print(
        f"extraction, CPU seconds of hashing, looking up and keeping  {100 * median(shares):.1f} % of all "
        f"({100 * min(shares):.1f}–{100 * max(shares):.1f})  <= 2 %"
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
