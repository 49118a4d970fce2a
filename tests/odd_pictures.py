"""Picture files of every kind that a decoder may take otherwise than a person does, by name."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

_generator = np.random.default_rng(5)
PIXELS = np.clip(_generator.normal(110, 70, (6, 9, 3)), 0, 255).astype(np.uint8)
RGB = Image.fromarray(PIXELS).resize((45, 30))
GREY = RGB.convert("L")
ALPHA = Image.fromarray(_generator.integers(256, size=(5, 7), dtype=np.uint8)).resize(RGB.size)
DEEP = (np.asarray(GREY).astype(np.uint16) << 8) + 77
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, format: str, **options) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    """An EXIF block that says how the picture is to be turned."""
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(png: bytes, *chunks: bytes, last: bool = False) -> bytes:
    """A PNG with further chunks, behind its header or before its end."""
    place = len(png) - 12 if last else len(SIGNATURE) + 25
    return png[:place] + b"".join(chunks) + png[place:]


def deep_png(colour: int, values: np.ndarray, clear: tuple[int, ...] | None = None) -> bytes:
    """A PNG of 16 bit a channel, `values` (H, W) or (H, W, channels); `clear`: the value that is transparent."""
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), 16, colour, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    trns = b"" if clear is None else chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    return SIGNATURE + chunk(b"IHDR", header) + trns + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def _palette(**options) -> bytes:
    return encoded(RGB.quantize(16), "PNG", **options)


def _alpha(mode: str) -> Image.Image:
    image = (GREY if mode == "LA" else RGB).convert(mode)
    image.putalpha(ALPHA)
    return image


PLAIN = encoded(RGB, "PNG")
TURNED = encoded(RGB, "PNG", exif=turned(6))
BIG = bytes(3 * 2**20)
NOISE = _generator.bytes(2 * 2**20)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
RAW_EXIF = f"\nexif\n{len(turned(6).tobytes()):8}\n{turned(6).tobytes().hex()}\n".encode()
_deep_rgb = (np.asarray(RGB).astype(np.uint16) << 8) + 77
_deep_rgb[:12] = (0x8000, 0x1234, 0x00FF)

PICTURES = {
    "plain.png": PLAIN,
    **{f"turned{n}.jpg": encoded(RGB, "JPEG", quality=95, exif=turned(n)) for n in range(2, 9)},
    "turned.png": TURNED,
    "turned.webp": encoded(RGB, "WEBP", lossless=True, exif=turned(6)),
    "turned.tif": encoded(RGB, "TIFF", exif=turned(6)),
    "turned_grey.tif": encoded(GREY, "TIFF", exif=turned(8)),
    "turned_lzw.tif": encoded(RGB, "TIFF", compression="tiff_lzw", exif=turned(5)),
    "turned_alpha.png": encoded(_alpha("RGBA"), "PNG", exif=turned(3)),
    "odd_orientation.jpg": encoded(RGB, "JPEG", quality=95, exif=turned(99)),
    "grey.png": encoded(GREY, "PNG"),
    "one_bit.png": encoded(GREY.convert("1"), "PNG"),
    "one_bit_turned.tif": encoded(GREY.convert("1"), "TIFF", exif=turned(6)),
    "alpha.png": encoded(_alpha("RGBA"), "PNG"),
    "alpha.tif": encoded(_alpha("RGBA"), "TIFF"),
    "alpha.webp": encoded(_alpha("RGBA"), "WEBP", lossless=True),
    "grey_alpha.png": encoded(_alpha("LA"), "PNG"),
    "palette.png": _palette(),
    "palette_clear.png": _palette(transparency=1),
    "palette_alpha.png": _palette(transparency=bytes(range(0, 256, 16))),
    "palette.gif": encoded(RGB.quantize(16), "GIF", transparency=2),
    "animation.gif": encoded(RGB, "GIF", save_all=True, append_images=[Image.new("RGB", RGB.size)]),
    "clear_colour.png": encoded(RGB, "PNG", transparency=RGB.getpixel((3, 3))),
    "deep_grey.png": deep_png(0, DEEP),
    "deep_grey.tif": encoded(Image.fromarray(DEEP), "TIFF"),
    "deep_grey_turned.png": encoded(Image.fromarray(DEEP), "PNG", exif=turned(6)),
    "deep_grey_clear.png": deep_png(0, np.where(DEEP > 2**15, 40_000, DEEP), (40_000,)),
    "deep_colour.png": deep_png(2, _deep_rgb),
    "deep_colour_clear.png": deep_png(2, _deep_rgb, (0x8000, 0x1234, 0x00FF)),
    "deep_alpha.png": deep_png(6, np.dstack([_deep_rgb, DEEP])),
    "deep_grey_alpha.png": deep_png(4, np.dstack([DEEP, DEEP[:, ::-1]])),
    "integers.tif": encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    "cmyk.tif": encoded(RGB.convert("CMYK"), "TIFF"),
    "cmyk.jpg": encoded(RGB.convert("CMYK"), "JPEG", quality=95, exif=turned(6)),
    "text_last.png": with_chunks(TURNED, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(BIG)), last=True),
}
TOO_LARGE = {  # for Pillow, where it opens them: texts and profiles beside a whole picture -> the picture
    "profile.png": with_chunks(TURNED, chunk(b"iCCP", b"icc\0\0" + zlib.compress(BIG))),
    "profile_noise.png": with_chunks(TURNED, chunk(b"iCCP", b"icc\0\0" + zlib.compress(NOISE))),
    "text.png": with_chunks(TURNED, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(BIG))),
    "international.png": with_chunks(TURNED, chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(BIG))),
    "texts.png": with_chunks(TURNED, *[chunk(b"tEXt", b"Comment\0" + b"x" * 2**20)] * 70),
    "profile_xmp.png": with_chunks(
        PLAIN,
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(BIG)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    ),
    "profile_raw_exif.png": with_chunks(
        PLAIN,
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(BIG)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_EXIF)),
    ),
    "text_damaged.png": with_chunks(TURNED, chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?"),
    "resolution_short.png": with_chunks(TURNED, chunk(b"pHYs", b"\0\0")),
    "profile_alpha.png": with_chunks(encoded(_alpha("RGBA"), "PNG"), chunk(b"iCCP", b"icc\0\0" + zlib.compress(BIG))),
}
SAME = dict.fromkeys(TOO_LARGE, TURNED) | {"profile_alpha.png": PICTURES["alpha.png"]}  # the picture that each holds
FLOATS = encoded(Image.fromarray(np.asarray(GREY).astype(np.float32)), "TIFF")
