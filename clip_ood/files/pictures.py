"""Reads any image as an 8-bit RGB picture, the way a person would see it, and as the pixels that an exported graph takes.

This file needs only Pillow and NumPy, and for HEIC pillow-heif: an export copies it beside the graph, as clip_ood_pixels.py.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EINVAL
from functools import cache
from importlib.metadata import version
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageFile, features

# Pillow warns of odd notes beside pictures that it reads all the same, and names no file; a program's own filters come first.
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
        ".avif",
        ".heic",
        ".heif",
        ".tga",
    ]
)


TURNS = {  # EXIF orientation -> what puts the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


LONGEST = 200  # times the shorter side; resized to an encoder's input, a thinner picture would take gigabytes
MOST_SCANS = 500  # of a JPEG, each of which is a pass over all its pixels
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of a TIFF, whose tiles may be larger than its picture


PNG = b"\x89PNG\r\n\x1a\n"
CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")  # all chunks that make a PNG's picture
TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # texts that may say how the picture is turned
MOST_TEXT = 2**20  # bytes of a text, as in Pillow
MOST_BRANDS = 256  # bytes in which a HEIC or AVIF file says what it is


class UnreadableImage(ValueError):
    """A file is not a whole image; the message begins with the decoder's own error."""


def read_image(path: Path) -> Image.Image:
    """Reads the picture in a file; see `decode`.

    Raises: UnreadableImage for a file that is not a whole image, OSError for a file that cannot be read (missing, not permitted)
    or that is not a regular file (reading a pipe would wait forever).
    """
    return decode(io.BytesIO(read_bytes(path)))


def read_bytes(path: Path) -> bytes:
    """Reads a file. Raises: OSError for one that cannot be read or that is not a regular file."""
    if not path.is_dir() and not S_ISREG(path.stat().st_mode):
        raise OSError(EINVAL, "it is no file that can be read to its end", str(path))
    return path.read_bytes()


def decode(file: BinaryIO, page: int | None = None, most_pixels: int | None = None) -> Image.Image:
    """Decodes the picture in an open file: the first of an animation or of a file of several pages, the main one of a HEIC file; or this
    `page`, counted from 0. A picture that has more than `most_pixels` by its header is not decoded.

    EXIF rotation is applied, transparency is laid on white, and 16-bit greys are scaled to 8 bits. Other content of a PNG, such
    as texts or a colour profile of any size, never makes a whole picture unreadable.

    Raises: UnreadableImage for what is not a whole image, OSError for a file that cannot be read.
    """
    try:
        return _decoded(file, page, most_pixels)
    except UnreadableImage as error:
        file.seek(0)
        start = file.read(len(PNG))
        if way_out := _lacking(start + file.read(MOST_BRANDS)):
            raise UnreadableImage(f"{error}: {way_out}") from error
        if start != PNG:
            raise
        file.seek(len(PNG))
        try:
            return _decoded(io.BytesIO(PNG + b"".join(_chunks(file))), most_pixels=most_pixels)
        except UnreadableImage:
            raise error from None


def page_count(file: BinaryIO) -> int:
    """Returns how many pages or pictures an open file has. Raises: as `decode` does."""
    with _unreadable(file), Image.open(file, formats=_formats()) as image:
        return getattr(image, "n_frames", 1)


def as_picture(image: Image.Image) -> Image.Image:
    """Returns a PIL image as `decode` would return it from the file that it was opened from.

    Raises: as `decode`.
    """
    fresh = isinstance(image, ImageFile.ImageFile) and image.tile and image.fp and image.tell() == 0
    if fresh and image.format in _formats():  # it is not loaded yet, so its file is read
        place = image.fp.tell()
        try:
            return decode(image.fp)
        finally:
            image.fp.seek(place)
    with _unreadable(image):
        return _picture(image)


def pixels(image: str | Path | bytes | Image.Image, about: Mapping[str, Any]) -> np.ndarray:
    """Returns one image, given by its path, by the bytes of its file or as a PIL image, as an exported graph takes it.

    The result is (1, 3, H, W) float32 in [0, 1]. `about` is the graph's description of itself, the JSON under its key clip_ood.

    Raises: as `decode`, and ValueError for a graph whose encoder resizes in a way that `fit` does not.
    """
    if about["resize"] is None:
        raise ValueError(f"this graph takes pictures that were resized otherwise than here: {about['transform']}")
    if isinstance(image, Image.Image):
        picture = as_picture(image)
    else:
        picture = decode(io.BytesIO(image)) if isinstance(image, bytes) else read_image(Path(image))
    fitted = fit(picture, about["resize"], about["size"], about["interpolation"])
    return np.asarray(fitted, np.float32).transpose(2, 0, 1)[None] / 255


def fit(image: Image.Image, resize: int | list[int], crop: list[int], interpolation: str) -> Image.Image:
    """Resizes a picture and returns its middle part of size `crop` (height, width).

    `resize` is the new length of the shorter side, or a (height, width) that the picture is resized to whatever its shape.
    """
    width, height = image.size
    if isinstance(resize, int):
        longer = int(resize * max(image.size) / min(image.size))
        resize = (longer, resize) if width <= height else (resize, longer)
    image = image.resize((resize[1], resize[0]), Image.Resampling[interpolation.upper()])
    left, top = round((image.width - crop[1]) / 2), round((image.height - crop[0]) / 2)
    return image.crop((left, top, left + crop[1], top + crop[0]))


def _decoded(file: BinaryIO, page: int | None = None, most_pixels: int | None = None) -> Image.Image:
    with _unreadable(file), Image.open(file, formats=_formats()) as image:
        if page is not None:
            image.seek(page)
        if most_pixels is not None:
            _check_effort(image, file, most_pixels)
        return _picture(image)


def _check_effort(image: Image.Image, file: BinaryIO, most_pixels: int) -> None:
    """Raises UnreadableImage for a picture that would take too much memory or time, as its file says."""
    tags = getattr(image, "tag_v2", {})
    if max(image.width * image.height, tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0)) > most_pixels:
        raise UnreadableImage(f"{image.width} × {image.height} pixels, and at most {most_pixels:,} are taken")
    if image.format in ("JPEG", "MPO"):
        place = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")
        file.seek(place)
        if scans > MOST_SCANS:
            raise UnreadableImage(f"a JPEG of {scans:,} scans, and at most {MOST_SCANS} are taken")


@contextmanager
def _unreadable(source: BinaryIO | Image.Image) -> Iterator[None]:
    """Turns what a decoder raises into an UnreadableImage."""
    try:
        yield
    except Exception as error:  # damaged files raise anything, without errno unless decoders seek beyond the end
        if isinstance(error, UnreadableImage | MemoryError) or getattr(error, "errno", None) not in (None, EINVAL):
            raise
        told = str(error).replace(f" {source!r}", "")  # without the address of its bytes in memory
        raise UnreadableImage(f"{type(error).__name__}: {told}") from error


def _picture(image: Image.Image) -> Image.Image:
    if max(image.size) > LONGEST * min(image.size):
        raise UnreadableImage(f"{image.width} × {image.height} pixels: one side is over {LONGEST} times the other")
    image.load()  # from an open file: by its name, Pillow would map a TIFF into memory, and scramble a rotated one
    return to_rgb(_upright(image))


@cache
def _formats() -> list[str]:
    """Returns Pillow's decoders for `SUFFIXES`; others start programs, as Ghostscript for an EPS called x.jpg."""
    Image.init()
    with suppress(ImportError):  # is an extra
        from pillow_heif import register_heif_opener

        register_heif_opener()
    known = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA")
    return [name for name in known if name in Image.OPEN]


def _lacking(start: bytes) -> str | None:
    """Returns what to install for a file that begins so, if its format is AVIF or HEIC and no decoder is there."""
    if start[4:8] != b"ftyp":
        return None
    brands = {start[at : at + 4] for at in (8, *range(16, min(int.from_bytes(start[:4], "big"), len(start)), 4))}
    if brands & {b"avif", b"avis"}:
        return None if "AVIF" in _formats() else "AVIF is read by Pillow 11.3 and later: pip install --upgrade pillow"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"} and "HEIF" not in _formats():
        return "HEIC is read with an extra: pip install 'clip-ood[heif]'"
    return None


READER = 2  # is raised when more images can be read than before, so that unreadable ones are tried again


@cache
def decoders() -> str:
    """Returns what decides which images can be read here: Pillow's version, its decoders and the libraries behind them."""
    with_heif = [f"pillow-heif {version('pillow-heif')}"] if "HEIF" in _formats() else []
    decoders = [*_formats(), *features.get_supported_codecs(), *with_heif]
    return f"reader {READER}, Pillow {PIL.__version__} with {', '.join(decoders)}"


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yields those chunks of a PNG, read after its signature, that make its picture; a picture can do without the others."""
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        body = file.read(length + 4)
        if kind in CHUNKS or (body.startswith(TEXTS) and _small(body)):
            yield head + body


def _small(text: bytes) -> bool:
    """Says whether a text is at most `MOST_TEXT` bytes long, compressed or not."""
    compressed = text[text.index(b"\0") :].lstrip(b"\0\1")  # comes after the flags of its kind of chunk
    try:
        return len(zlib.decompressobj().decompress(compressed, MOST_TEXT)) < MOST_TEXT
    except zlib.error:
        return len(text) < MOST_TEXT


def _upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF block says; if that block is damaged, it returns the image as it is, as viewers do."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a damaged block may raise anything, while the pixels are whole
        turn = None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as 8-bit RGB.

    Raises: UnreadableImage for floating-point pixels and those of over 16 bits, which have no stated range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no stated range")
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip to 8 bit
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage("pixels of more than 16 bits have no stated range")
        clear = values == image.info.get("transparency", -1)
        return Image.fromarray(np.where(clear, 255, values // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = _with_alpha(image)
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    """Returns an image with transparency of any kind as 8-bit RGBA."""
    if image.mode == "La":
        image = image.convert("LA")
    clear = image.info.get("transparency")
    if image.mode == "RGB" and max(clear) > 255:  # the colour has 16 bits, but Pillow has reduced the pixels to 8
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image.convert("RGBA")
