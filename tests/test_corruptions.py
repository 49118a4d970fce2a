"""Corruptions: what each of them does to pixels, how far it goes, and that it always does the same."""

from __future__ import annotations

import colorsys
import typing

import numpy as np
import pytest
from PIL import Image

from clip_ood.config.data_schema import CorruptionName
from clip_ood.data.corruptions import CORRUPTIONS, Corruption

NOISES = ("gaussian_noise", "shot_noise")
SEVERITIES = (1, 2, 3, 4, 5)
each_corruption = pytest.mark.parametrize("name", CORRUPTIONS)


def textured(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured noise on three scales of 224 pixels, whatever the size."""
    generator = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (6, 24, 96):
        noise = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 3
    return Image.fromarray(total.round().astype(np.uint8))


def plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (224, 224), colour)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


def distance(one: Image.Image, two: Image.Image) -> float:
    return float(np.sqrt(((pixels(one) - pixels(two)) ** 2).mean()))


def test_a_config_names_the_corruptions_that_there_are():
    assert typing.get_args(CorruptionName) == tuple(CORRUPTIONS)
    assert all(len(figures) == 5 for _, figures in CORRUPTIONS.values())


@each_corruption
@pytest.mark.parametrize(
    ("size", "becomes"), [((300, 260), (258, 224)), ((32, 32), (224, 224)), ((100, 400), (224, 896))]
)
def test_the_shorter_side_becomes_224_and_the_image_stays_as_it_was(name, size, becomes):
    image = textured(*size)
    before = image.tobytes()
    found = Corruption(name, 3)(image, "a.png")
    assert (found.mode, found.size, image.tobytes()) == ("RGB", becomes, before)


@each_corruption
def test_each_severity_is_further_from_the_clean_image(name):
    image = textured(224, 224)
    distances = [distance(Corruption(name, severity)(image, "a.png"), image) for severity in SEVERITIES]
    assert distances[0] > 0.01 and all(np.diff(distances) > 0), distances


@each_corruption
def test_the_same_image_gives_the_same_bytes_whatever_came_before(name):
    image, corrupt = textured(224, 224), Corruption(name, 2)
    first = corrupt(image, "a.png").tobytes()
    state = np.random.get_state()[1].tolist()
    other = corrupt(image, "b.png").tobytes()
    assert corrupt(image, "a.png").tobytes() == first
    assert (other == first) == (name not in NOISES)
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize("name", NOISES)
def test_names_and_severities_draw_unrelated_noise(name):
    image = plain((128, 128, 128))

    def noise(severity, path):
        return (pixels(Corruption(name, severity)(image, path)) - 128 / 255).ravel()

    draws = [noise(1, "cat/0.png"), noise(1, "dog/0.png"), noise(2, "cat/0.png")]
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.02


def test_noise_has_its_moments():
    grey = 128 / 255
    for severity, std in zip(SEVERITIES[:2], (0.08, 0.12), strict=True):
        found = pixels(Corruption("gaussian_noise", severity)(plain((128, 128, 128)), "a.png"))
        assert found.mean() == pytest.approx(grey, abs=0.002) and found.std() == pytest.approx(std, rel=0.01)
    for severity, photons in zip(SEVERITIES[:2], (60, 25), strict=True):
        found = pixels(Corruption("shot_noise", severity)(plain((128, 128, 128)), "a.png"))
        assert found.mean() == pytest.approx(grey, abs=0.002)
        assert found.var() == pytest.approx(grey / photons, rel=0.03)


@pytest.mark.parametrize(("severity", "std"), zip(SEVERITIES, (1, 2, 3, 4, 6), strict=True))
def test_gaussian_blur_spreads_a_line_by_its_standard_deviation(severity, std):
    image = plain((0, 0, 0))
    image.paste((255, 255, 255), (107, 0, 117, 224))  # 10 wide, so that rounding to 8 bit is small
    profile = pixels(Corruption("gaussian_blur", severity)(image, "a.png"))[112, :, 0]
    profile /= profile.sum()
    position = np.arange(224)
    variance = (profile * (position - (profile * position).sum()) ** 2).sum() - (10**2 - 1) / 12
    assert np.sqrt(variance) == pytest.approx(std, rel=0.06)


def test_zoom_blur_moves_what_is_far_from_the_middle():
    image = plain((0, 0, 0))
    for x in (112, 160):
        image.paste((255, 255, 255), (x - 2, 108, x + 2, 116))
    row = pixels(Corruption("zoom_blur", 3)(image, "a.png"))[112, :, 0]
    assert row[112] > 0.95 and row[159] < 0.5
    assert row[162:170].min() > 0.1 and row[173:].max() == 0 and row[140:156].max() == 0  # 112 + 48 · 1.2 = 169.6


@pytest.mark.parametrize("colour", [(200, 40, 90), (10, 60, 30), (120, 118, 60), (90, 90, 90)])
def test_brightness_and_saturation_are_those_of_hsv(colour):
    hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in colour))
    for severity, added in zip(SEVERITIES, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1))
        found = pixels(Corruption("brightness", severity)(plain(colour), "a.png"))[0, 0]
        np.testing.assert_allclose(found, expected, atol=0.02)
    for severity, (factor, added) in enumerate(((1.5, 0), (2, 0), (3.5, 0.05), (5, 0.1), (20, 0.2)), start=1):
        expected = colorsys.hsv_to_rgb(hue, min(factor * saturation + added, 1), value)
        found = pixels(Corruption("saturate", severity)(plain(colour), "a.png"))[0, 0]
        np.testing.assert_allclose(found, expected, atol=0.05 if severity < 5 else 0.1)  # 8-bit S, times 20


def test_contrast_keeps_the_mean_of_each_channel():
    image = textured(224, 224)
    found, clean = pixels(Corruption("contrast", 3)(image, "a.png")), pixels(image)
    np.testing.assert_allclose(found.mean(axis=(0, 1)), clean.mean(axis=(0, 1)), atol=1e-3)
    np.testing.assert_allclose(found.std(axis=(0, 1)), 0.2 * clean.std(axis=(0, 1)), rtol=0.01)


def test_pixels_of_a_pixelated_image_are_means_of_squares():
    image = textured(224, 224)
    found = pixels(Corruption("pixelate", 2)(image, "a.png")).reshape(112, 2, 112, 2, 3)
    means = pixels(image).reshape(112, 2, 112, 2, 3).mean(axis=(1, 3), keepdims=True)
    np.testing.assert_allclose(found, np.broadcast_to(means, found.shape), atol=1.01 / 255)  # rounded twice


@each_corruption
def test_a_severity_is_the_same_on_an_image_five_times_as_large(name):
    small, large = textured(224, 224), textured(1120, 1120)
    clean = large.resize((224, 224), Image.Resampling.BICUBIC)
    distances = [distance(Corruption(name, 4)(image, "a.png"), ref) for image, ref in ((small, small), (large, clean))]
    assert distances[1] == pytest.approx(distances[0], rel=0.1)
