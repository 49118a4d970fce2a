"""How long one waits for --help, for a mistake, for one image to be judged and for a run from stored features: python -m bench.waits

Each command runs once unmeasured: by then Python has kept the compiled modules, as it does by default.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import yaml
from PIL import Image

from bench import chosen
from bench.detect import Sizes as DetectorSizes
from bench.detect import save
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.spec import ImageSpec
from clip_ood.config.schema import BackboneConfig

HELP = (["train.py", "--help"], ["detect.py", "--help"])
WRONG = ("--method.plp.min_confidnce=0.9", "--detectors=[knnn]", "--backbone.model=ViT-bigG14")
BARE = """
import sys, open_clip, torch
from PIL import Image
model, _, transform = open_clip.create_model_and_transforms("{model}", pretrained=sys.argv[1])
with torch.inference_mode():
    model.eval().encode_image(transform(Image.open(sys.argv[2]))[None])
"""
TRAINED = """
import sys, torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

class Probe(LightningModule):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(64, 4)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.head(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)

images, epochs = int(sys.argv[1]), int(sys.argv[2])
data = TensorDataset(torch.randn(images, 64), torch.randint(4, (images,)))
off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
Trainer(accelerator="cpu", max_epochs=epochs, **off).fit(Probe(), DataLoader(data, 32, shuffle=True))
"""


class Sizes(NamedTuple):
    model: str = "ViT-B-16"
    images: int = 240  # of the ID set
    epochs: int = 50
    repeats: int = 5
    bank: int = 20_000


TINY = Sizes("ViT-B-32", 24, 2, 1, 200)


KEEPING = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(*arguments: str | Path, status: int = 0) -> float:
    start = perf_counter()
    ended = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=KEEPING)
    if ended.returncode != status:
        raise RuntimeError(f"{arguments} ended with status {ended.returncode}: {ended.stderr}")
    return perf_counter() - start


def tell(what: str, ours: list[float], bare: list[float], wanted: float) -> None:
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    print(
        f"{what}  {median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}; {median(ours):.1f} s)  <= {wanted}",
        flush=True,
    )


def judging(sizes: Sizes, folder: Path) -> None:
    backbone = create_backbone(BackboneConfig(model=sizes.model))  # random weights take as long
    torch.save(backbone.model.state_dict() | {"visual.proj": backbone.projection.matrix}, folder / "weights.pt")
    save(
        folder / "run",
        backbone,
        ImageSpec("open_clip", sizes.model),
        backbone.projection.matrix.shape[0],
        DetectorSizes(bank=sizes.bank),
    )
    Image.new("RGB", (400, 300)).save(image := folder / "one.jpg")
    judge = ("detect.py", "--run", folder / "run", image)
    seconds(*judge)
    ours, bare = [], []
    for _ in range(sizes.repeats):
        ours.append(seconds(*judge))
        bare.append(seconds("-c", BARE.format(model=sizes.model), folder / "weights.pt", image))
    tell(
        f"one image judged, bank {sizes.bank:,}, time over bare open_clip with the weights of {sizes.model}",
        ours,
        bare,
        1.5,
    )


def training(sizes: Sizes, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(sizes.images):
        pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
        place = folder / "id" / f"class {number % 4}" if number % 3 else folder / "ood"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    config = {
        "data": {"root": str(folder), "id": "id", "ood": {"ood": "ood"}},
        "backbone": {"library": "timm", "model": "test_vit"},
        "method": {"linear_probe": {"epochs": sizes.epochs, "batch_size": 32}},
        "trainer": {"accelerator": "cpu", "devices": 1},
        "runs_root": str(folder / "runs"),
        "features_root": str(folder / "features"),
    }
    (folder / "probe.yaml").write_text(yaml.safe_dump(config))
    train = ("train.py", "--config", folder / "probe.yaml")
    seconds(*train)
    ours, bare = [], []
    for _ in range(sizes.repeats):
        ours.append(seconds(*train))
        bare.append(seconds("-c", TRAINED, sizes.images // 2, sizes.epochs))
    tell("train.py from stored features, with its table, time over importing Lightning and training", ours, bare, 1.3)


def main(sizes: Sizes) -> None:
    helped = [seconds(*each) for _ in range(sizes.repeats + 1) for each in HELP][len(HELP) :]
    print(f"--help, seconds  {median(helped):.2f} (at most {max(helped):.2f})  <= 0.3")
    mistaken = ("train.py", "--config", "demo.yaml")
    wrong = [seconds(*mistaken, each, status=2) for _ in range(sizes.repeats + 1) for each in WRONG][len(WRONG) :]
    print(
        f"typo, seconds until a mistyped key or name is answered  {median(wrong):.2f} (at most {max(wrong):.2f})  <= 0.3"
    )
    for part in (judging, training):
        with tempfile.TemporaryDirectory() as folder:
            part(sizes, Path(folder))


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
