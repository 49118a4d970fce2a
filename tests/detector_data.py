"""ID training images and test images of five classes, for the tests of detectors."""

from __future__ import annotations

from zlib import crc32

import torch
from torch import Tensor

from clip_ood.detectors import Detector
from clip_ood.outputs import NegativeLabels, Outputs, Reference

CLASSES, WIDTH, JOINT = 5, 12, 8
ALL = {
    "features",
    "embeddings",
    "tokens",
    "logits",
    "labels",
    "text_embeddings",
    "logit_scale",
    "logit_bias",
    "weight",
    "bias",
    "neglabel",
    "csp",
    "eoe",
    "negprompt",
    "class_names",
    "text_tower",
    "layers",
    "projection",
}


def sample(rows: int, seed: int, width: int = WIDTH) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    places = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(99))
    features = 3 * places[labels] + torch.randn(rows, width, generator=generator) + 7
    embeddings = torch.nn.functional.normalize(torch.randn(rows, JOINT, generator=generator), dim=1)
    logits = 4 * torch.randn(rows, CLASSES, generator=generator) + features[:, :CLASSES]
    tokens = torch.nn.functional.normalize(torch.randn(rows, 6, JOINT, generator=generator), dim=2)
    patches = {"value": tokens, "output": tokens.flip(1)}
    layers = {"1": torch.randn(rows, 7, generator=generator), "2": torch.randn(rows, width, generator=generator)}
    return Outputs(features, embeddings, logits, labels, torch.arange(rows) + 1000, layers, patches)


def part(outputs: Outputs, rows: slice | Tensor) -> Outputs:
    return outputs.map(lambda value: value[rows])


TRAIN, TEST = sample(120, 0), sample(30, 1)
TEXT = torch.nn.functional.normalize(torch.randn(CLASSES, JOINT, generator=torch.Generator().manual_seed(5)), dim=1)
WORDS = torch.nn.functional.normalize(torch.randn(230, JOINT, generator=torch.Generator().manual_seed(6)), dim=1)
WEIGHT, BIAS = (
    torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(7)) / 4,
    torch.linspace(-1, 1, CLASSES),
)
NEGATIVES = NegativeLabels(TEXT, WORDS, tuple(f"word {number}" for number in range(230)))
NAMES = tuple(f"class {number}" for number in range(CLASSES))


class Tower:
    """Embeds each text as a direction that its characters draw, and remembers which texts it was asked for."""

    def __init__(self, width: int = JOINT) -> None:
        self.width, self.asked = width, []

    def to(self, device: torch.device) -> Tower:
        return self

    def encode_text(self, texts: list[str]) -> Tensor:
        self.asked += texts
        drawn = [
            torch.randn(self.width, generator=torch.Generator().manual_seed(crc32(text.encode()))) for text in texts
        ]
        return torch.nn.functional.normalize(torch.stack(drawn), dim=1)


TOWER = Tower()
PROJECTION = torch.randn(WIDTH + 1, JOINT, generator=torch.Generator().manual_seed(8))
REFERENCE = Reference(
    *(NAMES, TEXT, 10.0, WEIGHT, BIAS, NEGATIVES, NEGATIVES, -3.0, NEGATIVES, NEGATIVES),
    text_tower=lambda: TOWER,
    projection=PROJECTION,
)


def asked(name: str) -> str | dict[str, str]:
    """How a config asks for a detector, with layers if it must name some."""
    return {"name": name, "layer": "1+2", "as": name} if name == "layered_mcm" else name


def fitted(detector: Detector, *batches: Outputs) -> Detector:
    for batch in batches or (TRAIN,):
        detector.update(batch)
    detector.fit()
    return detector


def close(got: Tensor, expected: Tensor | list[float], tolerance: float = 1e-5) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
