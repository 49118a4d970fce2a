"""Encoders as somebody may write them: with and without texts, and what goes wrong."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

TRANSFORM = Compose([Resize((16, 16)), ToTensor(), Normalize([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])])
FIGURE = 3


class Images(nn.Module):
    """g of 12 numbers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.transform = TRANSFORM

    def forward(self, images):
        return self.layers(images)


class Joint(Images):
    """Images and texts in a space of 8 numbers; a text is its letters, counted."""

    logit_scale = 20.0

    def __init__(self):
        super().__init__()
        self.to_joint, self.letters = nn.Linear(12, 8), nn.Linear(26, 8)

    def project(self, features):
        return self.to_joint(features)

    def encode_text(self, texts):
        counted = [[text.lower().count(chr(97 + letter)) for letter in range(26)] for text in texts]
        return self.letters(torch.tensor(counted, dtype=self.letters.weight.dtype))


def pair():
    module = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten())
    return module, TRANSFORM


def no_module():
    return "resnet"


def no_transform():
    return nn.Flatten()


class Maps(Images):
    def forward(self, images):
        return self.layers[0](images)


class Endless(Images):
    def forward(self, images):
        return self.layers(images) / 0


class NoProjection(Images):
    def encode_text(self, texts):
        return torch.ones(len(texts), 8)


class OtherWidth(Joint):
    def encode_text(self, texts):
        return torch.ones(len(texts), 9)


class Pictures(Images):
    def __init__(self):
        super().__init__()
        self.transform = Resize((16, 16))


class Turned(Images):
    """Blue first."""

    def __init__(self):
        super().__init__()
        self.transform = Compose([*TRANSFORM.transforms, lambda pixels: pixels.flip(0)])


class Random(Images):
    def __init__(self):
        super().__init__()
        self.transform = Compose([*TRANSFORM.transforms, lambda pixels: pixels + torch.rand(())])


class Complex(Images):
    def forward(self, images):
        return self.layers(images).to(torch.complex64)


class Noisy(Images):
    def forward(self, images):
        return self.layers(images) + torch.rand(len(images), 12)


class Narrowing(Images):
    """Of five images or more, fewer numbers."""

    def forward(self, images):
        return self.layers(images)[:, : 12 if len(images) < 5 else 7]


class Dropping(Images):
    def forward(self, images):
        return self.layers(images)[:4]


class Failing(Images):
    def forward(self, images):
        raise KeyError("gone")


class Sized(Images):
    def __init__(self, width):
        super().__init__()


class Unscaled(Joint):
    logit_scale = float("nan")


class Opposite(Joint):
    logit_scale = -1.0


class Worded(Joint):
    def logit_scale(self):
        return 20.0
