"""The images in the body of a request, and bodies that are to cost a server its time or its memory."""

from __future__ import annotations

import time

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


def test_a_content_type_is_not_read_if_it_is_long():
    got = refusal(b"x", "multipart/form-data" + ";" * HEAD)
    assert got.status_code == 400 and "content type has 8,211 characters" in got.detail
