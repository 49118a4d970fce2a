"""New images judged against their features merely extracted, and memory over the number of images: python -m bench.detect"""

from __future__ import annotations

import contextlib
import io
import logging
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from bench import chosen, seconds, spread
from bench.extraction import SPEC, bare
from bench.extraction import ours as extracted
from bench.pictures import draw
from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.spec import ImageSpec
from clip_ood.calibration import Calibration
from clip_ood.config.schema import ImageSet
from clip_ood.data.listing import list_images
from clip_ood.detect.save import save_bank, save_detector
from clip_ood.detect.saved_encoder import Encoder
from clip_ood.detectors.build import build_detectors
from clip_ood.experiments.detect import Request, conduct
from clip_ood.outputs import Outputs, Reference

PROJECT = Path(__file__).parents[1]


class Sizes(NamedTuple):
    batch: int = 32
    images: int = 256
    pairs: int = 5
    bank: int = 20_000
    val: int = 1_000
    many: tuple[int, int] = (1_000, 8_000)  # images whose memory is compared


TINY = Sizes(batch=4, images=8, pairs=1, bank=50, val=30, many=(5, 10))
SMALL = ImageSpec("timm", "test_vit")  # an encoder of no cost


def save(folder: Path, backbone: Backbone, spec: ImageSpec, width: int, sizes: Sizes) -> None:
    """Saves a 1-NN detector with a bank of random features, and its encoder beside it."""
    generator = torch.Generator().manual_seed(0)
    built, _ = build_detectors(["knn"], Reference(), ["features"])
    built["knn"].update(Outputs(torch.randn(sizes.bank, width, generator=generator), indices=torch.arange(sizes.bank)))
    built["knn"].fit()
    val = {"knn": Calibration(torch.rand(sizes.val, generator=generator))}
    save_bank(folder, built)
    encoder, about = Encoder(spec, {}, "float32"), {"batch_size": sizes.batch}
    save_detector(folder, encoder, Reference(), built, [], val, about, 0.95, (backbone, spec))


def judged(run: Path, images: Path, out: Path) -> None:
    out.unlink(missing_ok=True)
    with contextlib.redirect_stderr(io.StringIO()):
        conduct(Request(run, [str(images)], out=out, trainer={"accelerator": "cpu"}))


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    backbone = create_backbone(SPEC)
    with tempfile.TemporaryDirectory() as place:
        run, folder, out = Path(place, "run"), Path(place, "images"), Path(place, "out.csv")
        draw(folder, sizes.images)
        save(run, backbone, ImageSpec(SPEC.library, SPEC.model), 1280, sizes)
        images = list_images("images", ImageSet(folder=folder), Path(), labelled=False, seed=0)
        loading = [seconds(judged, run, folder / "0000.jpg", out) for _ in range(3)]
        extracted(images.subset(range(sizes.batch)), backbone, sizes.batch)  # warm up
        ratios, to_bare = [], []
        for _ in range(sizes.pairs):
            own = seconds(judged, run, folder, out) - min(loading)
            ratios.append(own / seconds(extracted, images, backbone, sizes.batch))
            to_bare.append(own / seconds(bare, images, backbone, sizes.batch))
        for name, found in (("extraction", ratios), ("a bare loop", to_bare)):
            print(
                f"judging new images (without loading), time over {name}, {sizes.images} JPEGs, EfficientNet-Lite0, bank {sizes.bank:,}  "
                f"{spread(found)}  <= 1.10"
            )
        save(Path(place, "small"), create_backbone(SMALL), SMALL, 64, sizes)
        peaks = []
        Image.new("RGB", (16, 16)).save(Path(place, "small.png"))
        for count in sizes.many:  # the peak of children only grows
            Path(place, "list.txt").write_text(f"{place}/small.png\n" * count)
            command = [
                sys.executable,
                "detect.py",
                "--run",
                f"{place}/small",
                f"{place}/list.txt",
                "--out",
                str(out),
                "--overwrite",
            ]
            subprocess.run([*command, "--trainer.accelerator=cpu"], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
            peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10)
        print(
            f"peak memory of detect.py, {sizes.many[1]:,} images over {sizes.many[0]:,}: {peaks[1] - peaks[0]:+.0f} MiB  <= 64"
        )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
