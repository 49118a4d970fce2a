"""Addresses of images: pages of links, how names and hosts are written, and what holds a secret."""

from __future__ import annotations

import socket
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import replica
from replica import listed
from storage_servers import ANIMALS, contents

from clip_ood.config.detect_checks import check_path
from clip_ood.config.loading import dump, load_config
from clip_ood.data.inputs import sources
from clip_ood.data.readers.objects import Object
from clip_ood.data.readers.parquet_rows import place_of
from clip_ood.data.readers.reader import NoImage
from clip_ood.errors import ConfigError, UserError
from clip_ood.files.remote import fetched
from clip_ood.files.remote.address import place_at
from clip_ood.terminal.shown import without_secrets

pytest.importorskip("s3fs", reason="needs s3fs: pip install -e '.[test]'")
pytest.importorskip("moto.server", reason="needs moto: pip install -e '.[test]'")
pytestmark = [pytest.mark.extras, pytest.mark.usefixtures("here")]


def test_a_folder_of_the_web_is_its_page_of_links(animals, web):
    for name, number in ANIMALS.items():
        replica.put(web.folder / "some animals" / name, number)
    here = listed(animals, folder=".")
    there = listed(Path("data"), folder=f"{web.url}/some%20animals/")
    assert (there.names, there.labels, there.class_names) == (here.names, here.labels, here.class_names)
    assert contents(there) == contents(here) and not there.stamps().vague.any()
    found = list(sources([f"{web.url}/some%20animals/big%20fox/4.png"]))
    assert [each.inside for each in found] == ["4.png"] and found[0].place.read() == replica.picture(4)


def test_a_page_with_links_that_are_not_its_own_files_is_told(animals, web):
    (web.folder / "odd").mkdir()
    page = web.folder / "odd" / "index.html"
    replica.put(web.folder / "odd" / "a & b.png", 1)
    page.write_text('<a href="./a%20&amp;%20b.png">a</a> <a href="?C=N;O=D">sorted</a>')
    (found,) = sources([f"{web.url}/odd/"])
    assert found.inside == "a & b.png" and found.place.read() == replica.picture(1)
    for link in ("2023/a.png", "x%2Fa.png", "../a.png", "https://example.org/a.png?v=1"):
        page.write_text(f'<a href="{link}">a</a>')
        with pytest.raises(UserError, match=r"cannot be listed: its page links to .* does not lie directly in it"):
            list(sources([f"{web.url}/odd/"]))


def test_links_with_queries_and_quotes_are_files_of_the_folder(web):
    names = ["a.png", "b's.png", "c.png"]
    for number, name in enumerate(names):
        replica.put(web.folder / "linked" / name, number)
    page, sorts = (
        web.folder / "linked" / "index.html",
        '<a href="?C=N"><a href="./?C=M"><a href="all.php?x=1"><a href="/">',
    )
    page.write_text(f"""{sorts}<a class=x HREF='a.png?id=1&amp;v=2&region=eu'><!-- <a href="no.png"> --><a href="b's.png">
        <a href="{web.url}/linked/c.png"><a href="c.png?download=1"><a href="/linked/b%27s.png">""")
    found = list(sources([f"{web.url}/linked/"]))
    assert [each.inside for each in found] == names
    assert [each.place.read() for each in found] == [replica.picture(number) for number in range(3)]
    assert [each.place.address.query for each in found] == ["id=1&v=2&region=eu", "", ""]
    page.write_bytes(b'<a href="%E8.png"><a href="%E9.png">')
    assert [each.inside for each in sources([f"{web.url}/linked/"])] == ["\udce8.png", "\udce9.png"]
    page.write_text('<a href="a.png?v=1"><a href="a.png?v=2">')
    with pytest.raises(UserError, match=r"its page links to a\.png with 2 queries"):
        list(sources([f"{web.url}/linked/"]))


def test_names_with_blanks_and_letters_beyond_ascii_are_fetched(web):
    zipfile.ZipFile(web.folder / "häuser 1.zip", "w").writestr("b.png", replica.picture(1))
    for written in ("häuser 1.zip", "h%C3%A4user%201.zip"):
        (found,) = sources([f"{web.url}/{written}"])
        assert found.place.read() == replica.picture(1)


def test_a_host_beyond_ascii_and_a_lone_percent_sign_are_asked_for_alike(web, monkeypatch):
    look_up, port = socket.getaddrinfo, web.server_port

    def own(host, *args, **options):
        return look_up("127.0.0.1" if "xn--d-uga0v4h.example" in str(host) else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", own)
    zipfile.ZipFile(web.folder / "100% cats.zip", "w").writestr("b.png", replica.picture(1))
    (found,) = sources([f"http://łódź.example:{port}/100% cats.zip"])
    assert found.place.read() == replica.picture(1)
    assert web.asked == {"/100%25%20cats.zip": 1}
    for address in (f"{web.url}/a\udce9.zip", "s3://photos/a\udce9.zip"):
        with pytest.raises(UserError, match="the address is not UTF-8"):
            list(sources([address]))


def test_escaped_characters_of_the_web_are_those_of_names(web):
    zipfile.ZipFile(web.folder / "in.zip", "w").writestr("my cats/b.png", replica.picture(1))
    (web.folder / "x").mkdir()
    (web.folder / "x" / "list.txt").write_text(f"{web.url}/in.zip/my%20cats\n")
    (found,) = sources([f"{web.url}/in.zip/my%20cats"])
    assert found.place.read() == replica.picture(1)
    for name in ("x%2Flist.txt", "x%2F..%2Fx%2Flist.txt"):
        assert fetched.local(place_at(f"{web.url}/{name}")).read_bytes() == (web.folder / "x/list.txt").read_bytes()
    folder = Path("fetched")
    for name, called in {"%2E%2E": "file", "..": "file", "a%2Fb%00.zip": "a_b_.zip"}.items():
        entry = fetched._entry(folder, place_at(f"https://example.org/{name}"))
        assert entry.name == called and entry.parent.parent == folder


def test_addresses_with_different_queries_are_different_images():
    one, other = (Object(place_at(f"https://example.org/image?id={number}"), 9) for number in (1, 2))
    assert one.stamp() != other.stamp()
    signed = [Object(place_at(f"https://example.org/image?id={number}&Signature=1f"), 9) for number in (1, 2)]
    assert signed[0].stamp() != signed[1].stamp()
    again = [Object(place_at(f"https://example.org/image?X-Amz-Signature={number}"), 9, "v1") for number in (1, 2)]
    assert again[0].stamp() == again[1].stamp()
    kept = [fetched._entry(Path("kept"), place_at(f"https://example.org/get?id={k}"), "9", "v1") for k in (1, 2)]
    assert kept[0] != kept[1]
    with pytest.raises(NoImage, match="had a query"):
        place_of(*one).read()


def test_a_file_address_names_no_other_machine(tmp_path):
    assert place_at("file://localhost/x/a%20b.png") == place_at("file:///x/a%20b.png") == Path("/x/a b.png")
    assert place_at("file:///x/%E9.png") == Path("/x/\udce9.png")  # bytes that are not UTF-8, as Python keeps them
    with pytest.raises(UserError, match="write file:///photos/new"):
        place_at("file://photos/new")


@pytest.mark.parametrize("text", ["s3://", "https:///x", "memory:///a"])
def test_an_address_without_a_place_is_told(text):
    with pytest.raises(UserError, match="is an address without a place: name one, as "):
        check_path(text)


def test_a_wrong_address_in_a_parquet_file_is_told_of_its_row(animals, tmp_path):
    paths = [str(animals / "cat/0.png"), "https://me:S3CR3T@example.org/a.jpg", str(animals / "dog/2.png")]
    pq.write_table(pa.table({"file": paths}), tmp_path / "x.parquet")
    one, wrong, other = sources([str(tmp_path / "x.parquet")])
    assert (one.place.read(), other.place.read()) == (replica.picture(0), replica.picture(2))
    assert wrong.path == f"{tmp_path}/x.parquet/000001" and "no password stands" in wrong.reason
    assert "S3CR3T" not in repr(wrong)
    with pytest.raises(ConfigError, match=r"x\.parquet, row 1: https://…@example\.org/a\.jpg: no password") as error:
        listed(tmp_path, parquet="x.parquet")
    assert "S3CR3T" not in str(error.value)


@pytest.mark.parametrize("text", ["s3://AKIA:S3/CR3T+/x@photos/a", "s3://AKIA:12/34@photos", "gs://m3@photos/a@b.png"])
def test_a_password_is_refused_whatever_it_holds(text):
    with pytest.raises(UserError, match=r"//…@photos.*: no password stands in an address") as error:
        place_at(text)
    secret = text.partition("://")[2].partition("@")[0]
    assert secret not in str(error.value) and (":" not in secret or secret not in without_secrets(f"{text} is gone"))


@pytest.mark.parametrize(
    "text",
    [
        "http://example.org:9000/a:b@c.jpg",
        "s3://photos/a:b@c.jpg",
        "s3://arn:aws:s3:eu-west-1:123:accesspoint/photos/a@b.jpg",
        "abfs://photos@account.dfs.core.windows.net/a:b@c.jpg",
        "hf://datasets/user/photos@main/a.jpg",
    ],
)
def test_an_at_sign_alone_is_no_password(text):
    assert str(place_at(text)) == without_secrets(text) == text


def test_signatures_and_passwords_are_nowhere_shown(web, tmp_path):
    replica.put(web.folder / "a.png")
    zipfile.ZipFile(web.folder / "in.zip", "w").writestr("b.png", replica.picture(1))
    web.signed = {"/a.png": "Signature=S3CR3T", "/in.zip": "Signature=S3CR3T"}
    whole = [f"{web.url}/{name}?Signature=S3CR3T" for name in ("a.png", "in.zip")]
    found = list(sources(whole))
    assert [each.place.read() for each in found] == [replica.picture(0), replica.picture(1)]
    assert "S3CR3T" not in repr(found) and "S3CR3T" not in str([[*each.place] for each in found])
    for text in ("a.png?Signature=WR0NG", "in.zip?Signature=WR0NG", "gone.png?Signature=WR0NG"):
        (wrong,) = sources([f"{web.url}/{text}"])
        with pytest.raises(OSError) as error:
            raise OSError(wrong.reason) if wrong.reason else wrong.place.read()
        assert "WR0NG" not in f"{wrong} {error.value}"
    text = "data: {id: 's3://b/in.zip', ood: {a: 'https://h/x?Sig=S3CR3T'}}\nbackbone: {model: ViT-B-32}\nmethod: {zero_shot: {}}\n"
    (tmp_path / "run.yaml").write_text(text)
    config = load_config(str(tmp_path / "run.yaml"), [])
    assert config.data.ood["a"].folder.whole == "https://h/x?Sig=S3CR3T"
    assert "S3CR3T" not in dump(config) and "folder: https://h/x\n" in dump(config)
    with pytest.raises(ConfigError, match="no password stands in an address") as error:
        load_config(str(tmp_path / "run.yaml"), ["--data.id=s3://me:S3CR3T@bucket/x"])
    assert "S3CR3T" not in str(error.value)
