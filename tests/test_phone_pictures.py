"""HEIC and AVIF, animations and files of several pages: what a phone, a camera or a scanner gives."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features

from clip_ood.config.schema import ImageSet
from clip_ood.data.inputs import sources
from clip_ood.data.listing import list_images
from clip_ood.files import pictures
from clip_ood.files.pictures import UnreadableImage, as_picture, decode

WIDTH, HEIGHT = 64, 48
PIXELS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PIXELS[:24, :32], PIXELS[:24, 32:], PIXELS[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PICTURE = Image.fromarray(PIXELS)  # red, green; blue, black


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    file = io.BytesIO()
    options |= {
        "append_images": [each.copy() for each in options.get("append_images", ())]
    }  # Pillow notes options in images
    image.copy().save(file, kind, **options)
    return file.getvalue()


def corners(picture: Image.Image) -> list[str]:
    """The colours of the corners, upper ones first; a codec that loses something keeps these."""
    assert picture.mode == "RGB"
    names = {
        (255, 0, 0): "red",
        (0, 255, 0): "green",
        (0, 0, 255): "blue",
        (0, 0, 0): "black",
        (255, 255, 255): "white",
    }
    width, height = picture.size
    places = [(4, 4), (width - 5, 4), (4, height - 5), (width - 5, height - 5)]
    return [names[tuple(255 * (value > 127) for value in picture.getpixel(place))] for place in places]


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_pictures_of_phones_are_read_upright(kind):
    assert corners(decode(io.BytesIO(encoded(PICTURE, kind)))) == ["red", "green", "blue", "black"]
    exif = Image.Exif()
    exif[274] = 6
    turned = decode(io.BytesIO(encoded(PICTURE, kind, exif=exif.tobytes())))
    assert turned.size == (HEIGHT, WIDTH) and corners(turned) == ["blue", "red", "black", "green"]
    opened = Image.open(io.BytesIO(encoded(PICTURE, kind, exif=exif.tobytes())))
    np.testing.assert_array_equal(np.asarray(as_picture(opened)), np.asarray(turned))


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_what_is_clear_in_them_lies_on_white(kind):
    clear = PICTURE.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.arange(WIDTH) < 32, 255, 0).astype(np.uint8)[None].repeat(HEIGHT, 0)))
    assert corners(decode(io.BytesIO(encoded(clear, kind)))) == ["red", "white", "blue", "white"]


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_damaged_ones_are_unreadable(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    content = encoded(noise, kind)
    for harmed in (content[: len(content) // 2], content[:40], content[:12]):
        with pytest.raises(UnreadableImage):
            decode(io.BytesIO(harmed))


@pytest.mark.parametrize(
    "kind, name, told",
    [("HEIF", "a.heic", r"pip install 'clip-ood\[heif\]'"), ("AVIF", "a.avif", "Pillow 11.3 and later")],
)
def test_without_its_decoder_the_way_out_is_told(kind, name, told, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(encoded(PICTURE, kind))
    (source,) = sources([str(tmp_path)])
    assert source.reason is None
    without = [each for each in pictures._formats() if each != kind]
    monkeypatch.setattr(pictures, "_formats", lambda: without)
    with pytest.raises(UnreadableImage, match=rf"cannot identify image file.*{told}"):
        source.read()
    with pytest.raises(UnreadableImage) as other:
        decode(io.BytesIO(b"\0\0\0\x1cftypisom" + bytes(99)))
    assert "pip" not in str(other.value)


def test_heic_files_are_images_by_their_names(tmp_path):
    for name in ("a.HEIC", "b.heif", "c.avif", "d.heics"):
        (tmp_path / name).touch()
    assert list_images("x", ImageSet(folder="."), tmp_path, False, 0).names == ("a.HEIC", "b.heif", "c.avif")


FRAMES = [PICTURE, Image.new("RGB", PICTURE.size, "white"), Image.new("RGB", PICTURE.size, "red")]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO", "HEIF"])
def test_the_first_picture_of_several_is_taken(kind):
    content = encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert corners(decode(io.BytesIO(content))) == ["red", "green", "blue", "black"]
    later = Image.open(io.BytesIO(content))
    later.seek(1)
    assert corners(as_picture(later)) == ["white"] * 4  # a program may choose another one


def test_the_main_picture_of_a_heic_file_is_taken():
    content = encoded(FRAMES[1], "HEIF", save_all=True, append_images=[PICTURE, FRAMES[2]], primary_index=1)
    assert corners(decode(io.BytesIO(content))) == ["red", "green", "blue", "black"]


def scans(folder):
    for name, count in {"cat/one.tif": 1, "cat/two.TIFF": 2, "dog/three.tif": 3, "dog/animation.gif": 3}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "GIF" if name.endswith("gif") else "TIFF"
        (folder / name).write_bytes(encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:count]))
    (folder / "dog" / "cut.tif").write_bytes((folder / "dog" / "three.tif").read_bytes()[:50])
    return folder


def test_every_page_of_a_scan_is_an_image_if_asked_for(tmp_path):
    scans(tmp_path / "in")
    first = list_images("x", ImageSet(folder="in"), tmp_path, True, 0)
    pages = list_images("x", ImageSet(folder="in", pages="all"), tmp_path, True, 0)
    assert first.names == ("cat/one.tif", "cat/two.TIFF", "dog/animation.gif", "dog/cut.tif", "dog/three.tif")
    assert pages.names == (
        *("cat/one.tif", "cat/two.TIFF#1", "cat/two.TIFF#2", "dog/animation.gif", "dog/cut.tif"),
        *("dog/three.tif#1", "dog/three.tif#2", "dog/three.tif#3"),
    )
    assert pages.labels == (0, 0, 0, 1, 1, 1, 1, 1) and pages.class_names == ("cat", "dog")
    expected = ["red", "green", "blue", "black"]
    for row, colours in {
        0: expected,
        1: expected,
        2: ["white"] * 4,
        5: expected,
        6: ["white"] * 4,
        7: ["red"] * 4,
    }.items():
        assert corners(pages.read(row)) == corners(pages.load(row).picture()) == colours
    with pytest.raises((OSError, UnreadableImage)):
        pages.read(4)
    assert len(np.unique(pages.stamps().values, axis=0)) == 8
    np.testing.assert_array_equal(pages.stamps().values[[0, 3]], first.stamps().values[[0, 2]])
    assert list_images("x", ImageSet(folder="in", pages="all", count=8), tmp_path, True, 0).names == pages.names


def test_pages_go_with_files():
    with pytest.raises(ValueError, match="pages goes with folder, list or shards, not with parquet"):
        ImageSet(parquet="x.parquet", pages="all")
