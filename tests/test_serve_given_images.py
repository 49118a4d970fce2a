"""The images in the body of a request, and bodies that are to cost a server its time or its memory."""

from __future__ import annotations

import json
import random
import time
import tracemalloc

import pytest

from clip_ood.serve.given_images import HEAD, images_in
from clip_ood.serve.refusals import Refusal

FORM = "multipart/form-data; boundary=a"


def form(*parts: bytes) -> bytes:
    return b"".join(b"--a\r\n" + part + b"\r\n" for part in parts) + b"--a--\r\n"


def refusal(body: bytes, content_type: str, most: int = 12) -> Refusal:
    """The refusal of a body, which comes within seconds."""
    begun = time.monotonic()
    with pytest.raises(Refusal) as found:
        images_in(body, content_type, most)
    assert time.monotonic() - begun < 5
    return found.value


def named(parameter: str) -> bytes:
    return b"Content-Disposition: form-data; name=images; %s\r\n\r\nx" % parameter.encode()


@pytest.mark.parametrize(
    "part", [named("filename=" + ";" * 2_000_000), b"a:\n" * 2_000_000], ids=["parameters", "lines"]
)
def test_the_head_of_a_part_is_not_read_if_it_is_long(part):
    got = refusal(form(part), FORM)
    assert got.status_code == 400 and "part" in got.detail


def test_a_head_may_have_the_length_that_is_said():
    name = "a" * (HEAD - len(named("filename=")) + len(b"\r\n\r\nx") - len(b"\r\n"))
    assert images_in(form(named(f"filename={name}")), FORM, 12)[0].name == name
    assert f"{HEAD:,} bytes" in refusal(form(named(f"filename={name}b")), FORM).detail


def test_a_part_that_is_encoded_is_refused():
    part = b"Content-Transfer-Encoding: %s\r\n" + named("filename=a.png")
    assert "encoded as base64" in refusal(form(part % b"BASE64"), FORM).detail
    for plain in (b"binary", b""):
        assert images_in(form(part % plain), FORM, 12)[0].content == b"x"


def test_a_content_type_is_not_read_if_it_is_long():
    got = refusal(b"x", "multipart/form-data" + ";" * HEAD)
    assert got.status_code == 400 and "content type has 8,211 characters" in got.detail


@pytest.mark.parametrize(
    "odd", ["*=undefined''x", "*=a\0b''x", f"*{'9' * 5000}=x", "*=x; {}*0=y"], ids=["codec", "NUL", "number", "order"]
)
def test_a_parameter_in_no_encoding_is_refused(odd):
    got = refusal(form(named("filename" + odd.replace("{}", "filename"))), FORM)
    assert got.status_code == 400 and "name of a file" in got.detail
    got = refusal(form(b"x"), "multipart/form-data; boundary" + odd.replace("{}", "boundary"))
    assert got.status_code == 400 and "boundary" in got.detail


def test_a_name_may_be_encoded():
    assert images_in(form(named("filename*=UTF-8''caf%C3%A9.png")), FORM, 12)[0].name == "café.png"


def test_headers_of_all_kinds_are_read_or_refused():
    """Heads and content types from the pieces of which parameters are made."""
    draw = random.Random(0)
    pieces = [
        "filename",
        "name",
        "boundary",
        "*",
        "0",
        "1",
        "=",
        ";",
        "'",
        "''",
        '"',
        "\\",
        "%",
        "%ff",
        "utf-7",
        "a",
        "\0",
        "\r\n",
        " ",
        "é",
        "(",
    ]
    for _ in range(3000):
        text = "".join(draw.choices(pieces, k=draw.randrange(1, 14)))
        for body, kind in (
            (form(named("filename" + text)), FORM),
            (form(b"Content-Disposition: " + text.encode() + b"\r\n\r\nx"), FORM),
            (form(b"x"), "multipart/form-data; boundary" + text.replace("\r\n", "")),
        ):
            try:
                assert images_in(body, kind, 12)
            except Refusal as refused:
                assert refused.status_code == 400 and refused.detail.encode()


def body(size: int, begin: str, repeated: str, end: str) -> bytes:
    return (begin + repeated * ((size - len(begin + end)) // len(repeated)) + end).encode()


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        (('{"images": [', "[],", "[]]}"), 413),
        (('{"images": [', "{},", "{}]}"), 413),
        (('{"images": [', "1,", "1]}"), 413),
        (('{"images": [', '"",', '""]}'), 413),
        (("{", '"a":1,', '"images":[]}'), 413),
        (('{"images": ["\U0001f600', "a", '"]}'), 400),
    ],
    ids=["lists", "objects", "numbers", "texts", "keys", "other characters"],
)
def test_json_takes_no_many_times_its_size_in_memory(pieces, status):
    content = body(1_000_000, *pieces)
    tracemalloc.start()
    try:
        assert refusal(content, "application/json").status_code == status
        assert tracemalloc.get_traced_memory()[1] < 3 * len(content)
    finally:
        tracemalloc.stop()


def test_a_small_mistake_in_json_gets_its_own_reason():
    assert "no list of texts" in refusal(b'{"images": [[], [], {}]}', "application/json").detail
    assert "13 images, and at most 12" in refusal(json.dumps({"images": [""] * 13}).encode(), "application/json").detail
    assert "no JSON" in refusal(b"[" * 5000, "application/json", most=5000).detail
