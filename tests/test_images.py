"""Image files of every kind: the right pixels in RGB, and one kind of error for what is no whole image."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from odd_pictures import chunk, encoded
from PIL import Image
from tiny_clip import PROJECT

from clip_ood.files.pictures import UnreadableImage, read_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pixels(path, content):
    path.write_bytes(content)
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def row(mode, *values):
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def palette(**options):
    image = row("P", 0, 1, 2)
    image.putpalette([*RED, *GREEN, *BLUE])
    return encoded(image, "PNG", **options)


# file content -> the pixels of its one row
FILES = {
    "grey": (encoded(row("L", 0, 100, 255), "PNG"), [(0,) * 3, (100,) * 3, WHITE]),
    "grey, 16 bit": (
        encoded(Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)), "PNG"),
        [(0,) * 3, (100,) * 3, WHITE],
    ),
    "grey TIFF, 16 bit": (
        encoded(Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)), "TIFF"),
        [(0,) * 3, (100,) * 3, WHITE],
    ),
    "grey TIFF, 32 bit": (
        encoded(Image.fromarray(np.array([[0, 257 * 100, 65535]], np.int32)), "TIFF"),
        [(0,) * 3, (100,) * 3, WHITE],
    ),
    "one bit": (encoded(row("1", 0, 255), "PNG"), [(0,) * 3, WHITE]),
    "palette": (palette(), [RED, GREEN, BLUE]),
    "palette, one colour transparent": (palette(transparency=1), [RED, WHITE, BLUE]),
    "palette, opacity by colour": (palette(transparency=bytes([255, 0, 127])), [RED, WHITE, (128, 128, 255)]),
    "RGB, one colour transparent": (encoded(row("RGB", RED, GREEN), "PNG", transparency=GREEN), [RED, WHITE]),
    "grey, one value transparent": (encoded(row("L", 9, 50), "PNG", transparency=50), [(9,) * 3, WHITE]),
    "RGBA": (
        encoded(row("RGBA", (*RED, 255), (*RED, 127), (*RED, 0)), "PNG"),
        [RED, (255, 128, 128), WHITE],
    ),
    "LA": (encoded(row("LA", (0, 255), (0, 127), (0, 0)), "PNG"), [(0,) * 3, (128,) * 3, WHITE]),
    "CMYK TIFF": (encoded(row("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "TIFF"), [RED, WHITE]),
    "animation": (
        encoded(Image.new("RGB", (2, 1), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (2, 1), BLUE)]),
        [RED, RED],
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_pixels_as_a_person_sees_them(kind, tmp_path):
    content, expected = FILES[kind]
    np.testing.assert_array_equal(pixels(tmp_path / "image", content), [expected])


def test_cmyk_jpeg(tmp_path):
    red = pixels(tmp_path / "image.jpg", encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert abs(red - RED).max() < 10


CORNERS = np.array([[1, 2, 3], [4, 5, 6]], np.uint8) * 40
STORED = {  # orientation -> what is stored for the picture CORNERS
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.T,
    6: np.rot90(CORNERS),
    7: CORNERS[::-1, ::-1].T,
    8: np.rot90(CORNERS, -1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_upright(format, orientation, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(Image.fromarray(STORED[orientation]), format, exif=exif, lossless=True)
    np.testing.assert_array_equal(pixels(tmp_path / "image", content)[..., 0], CORNERS)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage!",  # no TIFF header
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09",  # nine entries, none there
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02x\0\0\0\0\0\0\0",  # the orientation is a text
    ],
)
def test_a_damaged_exif_block_hides_no_picture(exif, format, tmp_path):
    image = Image.fromarray(np.tile(CORNERS, (8, 8)))
    whole = pixels(tmp_path / "whole", encoded(image, format, lossless=True))
    np.testing.assert_array_equal(pixels(tmp_path / "odd", encoded(image, format, exif=exif, lossless=True)), whole)


@pytest.mark.parametrize(("asked", "warned"), [("", False), ("warnings.simplefilter('always'); ", True)])
def test_notes_beside_a_picture_reach_no_terminal_unless_the_program_asks(asked, warned, tmp_path):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x09"
    (tmp_path / "a.jpg").write_bytes(encoded(Image.new("RGB", (8, 8)), "JPEG", exif=exif))
    program = f"import pathlib, warnings; {asked}from clip_ood.files import pictures; pictures.read_image(pathlib.Path('a.jpg'))"
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True)
    assert ended.returncode == 0 and (b"Corrupt EXIF data" in ended.stderr) == warned
    assert warned or not ended.stderr


@pytest.mark.parametrize("tag", [282, 296])  # resolution and its unit, here as text: Pillow cannot write them back
def test_an_odd_exif_entry_beside_a_rotation_hides_no_picture(tag, tmp_path):
    entries = struct.pack(">HHIHH", 274, 3, 1, 6, 0) + struct.pack(">HHI4s", tag, 2, 4, b"abc\0")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + entries + bytes(4)
    turned = pixels(tmp_path / "image", encoded(Image.fromarray(np.rot90(CORNERS)), "PNG", exif=exif))
    np.testing.assert_array_equal(turned[..., 0], CORNERS)


NOISE = Image.fromarray(np.random.default_rng(0).integers(256, size=(24, 20, 3), dtype=np.uint8))


def png(width, height, data):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


BROKEN = {
    "empty.png": b"",
    "text.jpg": b"this is a list of photographs\n" * 9,
    "cut.jpg": encoded(NOISE, "JPEG")[:-200],
    "cut.png": encoded(NOISE, "PNG")[:-200],
    "chunk.png": flipped(encoded(NOISE, "PNG"), 60),
    "header.png": flipped(encoded(NOISE, "PNG"), 25),
    "short.png": png(20, 24, b"\0" * 50),
    "bomb.png": png(50_000, 50_000, b"\0"),
    "garbage.tif": b"II*\0\x08\0\0\0" + bytes(range(256)),
    "float.tif": encoded(Image.new("F", (4, 4), 0.5), "TIFF"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_whole_image_is_unreadable_and_the_reason_is_told(name, tmp_path):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(UnreadableImage, match=r"\w{5}"):
        read_image(tmp_path / name)


def test_a_file_that_cannot_be_had_is_an_error_of_the_file_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "gone.png")
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)


TURNED = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}
FORMATS = [
    *(("PNG", {}), ("PNG", TURNED), ("JPEG", TURNED), ("JPEG", {"progressive": True}), ("GIF", {}), ("BMP", {})),
    *(("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", TURNED), ("JPEG2000", {}), ("AVIF", {})),
    *(("TGA", {}), ("PPM", {})),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format, options", FORMATS)
def test_damaged_files_raise_one_kind_of_error(format, options, tmp_path):
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {format}")
    whole = encoded(NOISE, format, **options)
    generator, path, read = np.random.default_rng(0), tmp_path / "image", 0
    for _ in range(60):
        path.write_bytes(damaged(whole, generator))
        with suppress(UnreadableImage):
            read += read_image(path).mode == "RGB"
    assert read < 60  # the damage reaches the decoder


def damaged(content, generator):
    """The content cut short, with bytes overwritten (most of them in the header), left out or put in."""
    content, kind = bytearray(content), generator.integers(4)
    place = int(generator.integers(len(content)))
    if kind == 0:
        return bytes(content[:place])
    if kind == 1:
        for _ in range(generator.integers(1, 5)):
            end = min(len(content), int(generator.choice([40, 120, len(content)])))
            content[generator.integers(end)] = generator.choice([0, 1, 128, 255, generator.integers(256)])
    elif kind == 2:
        del content[place : place + int(generator.integers(1, 9))]
    else:
        content[place:place] = generator.bytes(4)
    return bytes(content)


@pytest.mark.parametrize("suffix", [".JPG", ".PnG"])
def test_the_suffix_decides_nothing_about_how_a_file_is_read(suffix, tmp_path):
    path = Path(tmp_path, f"image{suffix}")
    np.testing.assert_array_equal(pixels(path, encoded(Image.new("RGB", (1, 1), GREEN), "BMP")), [[GREEN]])
