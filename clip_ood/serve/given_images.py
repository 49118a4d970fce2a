"""Finds the images in the body of a request: a form of files, JSON with base64, or the bytes of one file."""

from __future__ import annotations

import binascii
import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser

from clip_ood.serve.refusals import Refusal

TAKEN = "multipart/form-data, application/json, image/* and application/octet-stream are taken"
PLAIN = ("7bit", "8bit", "binary")  # HTTP knows no other encoding of a form's parts
HEAD = 8192  # bytes of a content type, or of the head of a form's part; reading one takes time with the square of its length
SPARE = 100  # lists, objects and values of a JSON body that are read beside its images, so that a small mistake gets its own reason


@dataclass(frozen=True)
class Given:
    """An image of a request: the name of its file, if it was told, and the file's content; or the `reason` why there is none."""

    name: str | None
    content: bytes
    reason: str | None = None


def images_in(body: bytes, content_type: str, most: int) -> list[Given]:
    """Returns the images of a request in their order.

    Raises: Refusal of another type (415), of what is not of its type (400), and of more than `most` images (413).
    """
    if len(content_type) > HEAD:
        raise Refusal(400, f"the content type has {len(content_type):,} characters, and at most {HEAD:,} are taken")
    header = Message()
    header["content-type"] = content_type
    kind = header.get_content_type() if content_type else ""
    if kind == "multipart/form-data":
        return _files(body, _read(header.get_boundary, "the content type's boundary"), most)
    if kind == "application/json":
        return _decoded(body, most)
    if kind == "application/octet-stream" or kind.startswith("image/"):
        return [Given(None, body)]
    called = f"the type {kind[:100]}" if kind else "no content type"
    raise Refusal(415, f"the request has {called}: {TAKEN}")


def _files(body: bytes, boundary: str | None, most: int) -> list[Given]:
    if not boundary:
        raise Refusal(400, "the content type of the form names no boundary")
    body = b"\r\n" + body
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    _check_count(body.count(delimiter) - 1, most)
    sections = body.split(delimiter)[1:]
    if not sections or not sections[-1].startswith(b"--"):
        raise Refusal(400, "the form is cut off, or its parts do not stand between its boundaries")
    return [_file(section) for section in sections[:-1]]


def _file(section: bytes) -> Given:
    head, gap, content = section.partition(b"\r\n\r\n")
    if not gap or len(head) > HEAD:
        raise Refusal(400, f"a part of the form has no head that ends within {HEAD:,} bytes: send each image as a file")
    headers = HeaderParser().parsestr(head.strip().decode("utf-8", "replace"))
    encoding = headers.get("content-transfer-encoding", "").strip().lower() or "binary"
    if encoding not in PLAIN:
        raise Refusal(400, f"a part of the form is encoded as {encoding[:100]}: send the bytes of its file as they are")
    name = _read(headers.get_filename, "the name of a file in the form")
    if name is None:
        field = headers.get_param("name", header="content-disposition")
        raise Refusal(400, f"the form's part {str(field)[:100]!r} is no file: send each image as a file")
    return Given(name, content)


def _read(parameter: Callable[[], str | None], what: str) -> str | None:
    """Returns a parameter of a header, which may be encoded as RFC 2231 has it. Raises: Refusal of one that is not (400)."""
    try:
        return parameter()
    except (ValueError, TypeError):  # an encoding that cannot be used; parts with numbers and without
        raise Refusal(400, f"{what} is not encoded as RFC 2231 has it") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _decoded(body: bytes, most: int) -> list[Given]:
    expected = 'expected {"images": ["…", …]} with the base64 of a file each'
    values = sum(body.count(each) for each in (b"[", b"{", b","))  # of which base64 has none
    if values > most + SPARE:  # each takes many times its size in memory
        raise Refusal(
            413, f"the JSON has {values:,} lists, objects and commas, too many for {most:,} images: {expected}"
        )
    try:
        text = body.decode("ascii")  # other characters take several bytes each in memory
        asked = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON in ASCII ({type(error).__name__}): {expected}") from None
    if not isinstance(asked, dict) or set(asked) != {"images"}:
        raise Refusal(400, f"the JSON is no object with the key images alone: {expected}")
    texts = asked["images"]
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise Refusal(400, f"images is no list of texts: {expected}")
    _check_count(len(texts), most)
    return [_of_text(each) for each in texts]


def _of_text(text: str) -> Given:
    try:
        return Given(None, b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        return Given(None, b"", f"it is not base64 ({error})")


def _check_count(count: int, most: int) -> None:
    if count < 1:
        raise Refusal(400, "the request has no images")
    if count > most:
        raise Refusal(413, f"the request has {count:,} images, and at most {most:,} are taken: send several requests")
