"""What is wrong where images lie in buckets and behind URLs is told: objects that change, servers that fail, credentials."""

from __future__ import annotations

import time
from base64 import b64decode
from pathlib import Path
from threading import Event

import pytest
import replica
from replica import listed
from storage_servers import BUCKET

from clip_ood.config.checks import check_folders
from clip_ood.config.detect_checks import check_path
from clip_ood.config.loading import load_config
from clip_ood.data.inputs import sources
from clip_ood.data.readers import objects
from clip_ood.data.readers.objects import Object
from clip_ood.data.readers.reader import NoImage
from clip_ood.errors import ConfigError, UserError
from clip_ood.files import pace
from clip_ood.files.remote import fetched, listing, patience
from clip_ood.files.remote.address import place_at

pytest.importorskip("s3fs", reason="needs s3fs: pip install -e '.[test]'")
pytest.importorskip("moto.server", reason="needs moto: pip install -e '.[test]'")
pytestmark = [pytest.mark.extras, pytest.mark.usefixtures("here")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s3: s3.remove("moving/a.png"), "it is gone since it was listed"),
        (lambda s3: s3.put("moving/a.png", replica.picture(1)), "it has changed since it was listed"),
        (lambda s3: s3.put("moving/a.png", replica.picture(0)[:-1] + b"?"), "it has changed since it was listed"),
    ],
)
def test_an_object_that_is_not_what_was_listed_is_unreadable(change, reason, s3):
    s3.put("moving/a.png", replica.picture(0))
    images, (new,) = listed(Path("data"), folder=f"s3://{BUCKET}/moving"), sources([f"s3://{BUCKET}/moving"])
    change(s3)
    with pytest.raises(NoImage, match=reason):
        new.place.read()
    with pytest.raises(ValueError, match=reason):
        images.load(0).picture()


def test_a_server_that_is_busy_is_asked_again(web):
    replica.put(web.folder / "a.png")
    (found,) = sources([f"{web.url}/a.png?v=2"])
    web.fails["/a.png"] = [503, 429, 500, 429]
    assert found.place.read() == replica.picture(0) and not web.fails["/a.png"]
    web.fails["/a.png"] = [503] * 99
    with pytest.raises(OSError, match="the server answers 503, after 6 tries"):
        found.place.read()
    web.fails["/a.png"] = [403] * 2
    with pytest.raises(PermissionError, match=r"refuses it \(403\): look at the address, or get a signed one"):
        found.place.read()


def test_a_pause_is_no_shorter_than_the_server_says():
    error = OSError("busy")
    assert max(patience._pause(error, 3) for _ in range(99)) <= 4 * patience.PAUSE
    assert min(patience._pause(error, 3) for _ in range(99)) >= 2 * patience.PAUSE
    error.headers = {"Retry-After": "7"}
    assert patience._pause(error, 1) >= 7
    busy = pytest.importorskip("botocore.exceptions").ClientError(
        {"ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": "8"}}}, "GetObject"
    )
    assert patience._pause(busy, 1) >= 8


def test_half_an_answer_is_not_taken_for_the_image(web):
    replica.put(web.folder / "a.png")
    web.short.add("/a.png")
    (found,) = sources([f"{web.url}/a.png"])
    with pytest.raises(OSError, match="does not answer"):
        found.place.read()
    assert web.asked["/a.png"] == patience.TRIES


@pytest.mark.parametrize("size", [None, 100])
def test_no_more_than_an_image_is_read_where_the_server_says_no_size(size, web, monkeypatch):
    monkeypatch.setattr(objects, "LARGEST", 1 << 18)
    web.endless.add("/a.png")
    with pytest.raises(NoImage, match="over 262,144 bytes"):
        Object(place_at(f"{web.url}/a.png"), size).read()


def test_a_silent_server_is_given_up(web, monkeypatch):
    from clip_ood.files.remote import file_systems

    file_systems._made.cache_clear()
    monkeypatch.setattr(file_systems, "SILENCE", 0.3)
    monkeypatch.setattr(patience, "TRIES", 2)
    web.silent.add("/a.png")
    start = time.monotonic()
    with pytest.raises(ConfigError, match="does not answer"):
        check_path(f"{web.url}/a.png")
    assert time.monotonic() - start < 20
    file_systems._made.cache_clear()


def test_a_silent_library_without_limits_of_its_own_is_given_up(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    released = Event()
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *_, **__: released.wait(60))
    monkeypatch.setattr(patience, "SILENCE", 0.1)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"does not answer \(it takes too long, after 2 tries\)"):
        listing.find(place_at("memory://photos"), tries=2)
    assert time.monotonic() - start < 30
    released.set()


def test_a_server_that_trickles_is_given_up(web, monkeypatch):
    monkeypatch.setattr(pace, "SPAN", 0.5)
    (web.folder / "in.zip").write_bytes(bytes(10_000))
    web.trickling.add("/in.zip")
    with pytest.raises(
        UserError, match=r"/in\.zip: the server sends less than 32,768 bytes a second\. 0 bytes are kept"
    ):
        fetched.local(place_at(f"{web.url}/in.zip?Signature=S3CR3T"))
    assert web.asked["/in.zip"] == 1


def test_wrong_credentials_and_missing_places_are_told_before_any_work(s3, monkeypatch, tmp_path):
    import requests

    with pytest.raises(ConfigError, match=r"Nothing is at s3://photos/gone"):
        check_path(f"s3://{BUCKET}/gone")
    with pytest.raises(ConfigError, match=r"Nothing is at s3://no-such-bucket/x"):
        check_path("s3://no-such-bucket/x")
    text = f"data: {{id: 's3://{BUCKET}/animals', ood: {{a: 's3://{BUCKET}/gone'}}}}\nbackbone: {{model: ViT-B-32}}\nmethod: {{zero_shot: {{}}}}\n"
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"there is no folder s3://{BUCKET}/gone"):
        check_folders(load_config(str(tmp_path / "run.yaml"), []))
    with pytest.raises(ConfigError, match=r"data\.ood\.a \(s3://photos/animals/cat\) lies in data\.id"):
        check_folders(load_config(str(tmp_path / "run.yaml"), [f"--data.ood.a=s3://{BUCKET}/animals/cat"]))
    listing.kind.cache_clear()
    requests.post(f"{s3.url}/moto-api/reset-auth", data="0")  # credentials are looked at from now on
    try:
        with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"):
            check_path(f"s3://{BUCKET}/animals")
    finally:
        requests.post(f"{s3.url}/moto-api/reset-auth", data="inf")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    listing.kind.cache_clear()
    from clip_ood.files.remote import file_systems

    file_systems._made.cache_clear()
    with pytest.raises(ConfigError, match=r"the server does not answer \(.*, after 3 tries\)"):
        check_path(f"s3://{BUCKET}/animals")
    file_systems._made.cache_clear()


def test_a_package_that_is_lacking_is_named(monkeypatch):
    import fsspec

    def lacking(protocol):
        raise ImportError("no gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lacking)
    with pytest.raises(UserError, match=r"gs:// cannot be read: pip install 'clip-ood\[gcs\]'"):
        check_path("gs://bucket/a.png")


@pytest.mark.parametrize(
    "error", [ValueError("no AccountKey=S3CR3T"), KeyError("refresh_token"), FileNotFoundError("/none")]
)
def test_credentials_that_a_library_looks_for_at_once_are_asked_for(error, monkeypatch):
    """As adlfs does without any, and gcsfs with a file of them that is not there or another one."""
    import fsspec

    from clip_ood.files.remote import file_systems

    class Strict(fsspec.AbstractFileSystem):
        def __init__(self, **options):
            raise error

    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda protocol: Strict)
    file_systems._made.cache_clear()
    with pytest.raises(
        UserError, match=r"az:// cannot be read without credentials.*AZURE_STORAGE_ACCOUNT_NAME"
    ) as found:
        check_path("az://container/a.png")
    assert "S3CR3T" not in str(found.value)


def test_a_key_that_is_none_is_told_at_once():
    asked = []

    def ask():
        asked.append(1)
        try:
            b64decode("x", validate=True)
        except ValueError as error:
            raise OSError("no signature") from error

    with pytest.raises(PermissionError, match="no credentials were found that can be used: set AZURE"):
        patience.patiently(ask, place_at("az://container/a.png"))
    assert len(asked) == 1
