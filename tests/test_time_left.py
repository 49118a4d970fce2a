"""A long extraction says once how long it takes, and without a GPU what would take less."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clip_ood.callbacks.time_left import AFTER, TimeLeft
from clip_ood.experiments.extraction import SMALL, SMALL_BLOCK, _tell_left
from clip_ood.features.batches import ImageBatch


def batch(images: int) -> ImageBatch:
    return ImageBatch(None, None, list(range(images)), np.zeros((images, 2), np.uint64), None, None, {}, False)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.seconds)
    return now


def told(total: int, batches: int, clock, pace: float = 2.0) -> list[tuple[int, float]]:
    """What is told of batches of 10 images, the first of which takes a minute and the others as long as `pace` says."""
    found = []
    callback = TimeLeft(lambda: total, lambda *each: found.append(each))
    for number in range(batches):
        clock.seconds += pace if number else 60
        callback.on_predict_batch_end(None, None, {"features": torch.zeros(10, 2)}, batch(10), number)
        callback.on_predict_batch_end(None, None, {}, batch(10), number)  # was encoded before
    return found


def test_it_is_told_once_and_without_the_wait_for_the_encoder(clock):
    assert told(1210, AFTER, clock) == []
    assert told(1210, AFTER + 50, clock) == [(1000, pytest.approx(200))]


def test_a_short_wait_is_not_told(clock):
    assert told(400, AFTER + 5, clock) == []


@pytest.mark.parametrize(
    "device, seconds, model, named",
    [
        ("cpu", 4000, "ViT-B-16", True),
        ("cpu", 800, "ViT-B-16", False),
        ("cuda", 4000, "ViT-B-16", False),
        ("cpu", 4000, SMALL, False),
    ],
)
def test_a_smaller_encoder_is_named_where_the_wait_is_long(device, seconds, model, named, capsys):
    config = SimpleNamespace(backbone=SimpleNamespace(model=model))
    trainer = SimpleNamespace(world_size=1, strategy=SimpleNamespace(root_device=torch.device(device)))
    _tell_left(config, trainer, 12_000, seconds)
    out = capsys.readouterr().out
    assert f"12,000 images are left to encode, which takes about {round(seconds / 60)} minutes" in out
    assert (SMALL_BLOCK in out) == named
