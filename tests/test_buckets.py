"""Images in buckets and behind URLs: what lies there is what a folder of it would be, and what is wrong there is told."""

from __future__ import annotations

import socket
import time
import zipfile
from multiprocessing import get_context
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import replica
from storage_servers import BUCKET, asked_of, fetched_in_a_worker, read_in_a_worker, s3_server, web_server

from clip_ood.config.checks import check_folders
from clip_ood.config.detect_checks import check_path
from clip_ood.config.loading import dump, load_config
from clip_ood.config.schema import ImageSet
from clip_ood.data import bucket_tree
from clip_ood.data.fetched_ahead import fetched_ahead, with_versions
from clip_ood.data.inputs import sources
from clip_ood.data.listing import list_images
from clip_ood.data.readers import objects
from clip_ood.data.readers.objects import Object
from clip_ood.data.readers.parquet_rows import place_of
from clip_ood.data.readers.reader import NoImage
from clip_ood.errors import ConfigError, UserError
from clip_ood.files import pace
from clip_ood.files.remote import fetched, listing, patience
from clip_ood.files.remote.address import Address, place_at
from clip_ood.files.remote.content import content_at
from clip_ood.files.remote.file_systems import file_system
from clip_ood.terminal.shown import without_secrets

pytest.importorskip("s3fs", reason="needs s3fs: pip install -e '.[test]'")
pytest.importorskip("moto.server", reason="needs moto: pip install -e '.[test]'")
pytestmark = pytest.mark.extras

FILES = {f"{label}/{k}.png": k for k, label in enumerate(["cat", "cat", "dog", "dog", "big fox"])}


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("animals")
    for name, number in FILES.items():
        replica.put(folder / name, number)
    (folder / "cat" / "notes.txt").write_text("of cats")
    replica.put(folder / "cat" / ".thumbnails" / "0.png", 0)
    return folder


@pytest.fixture(scope="module")
def s3(animals):
    with s3_server() as server:
        server.put_folder(animals, "animals")
        yield server


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    with web_server(folder) as server:
        server.folder = folder
        yield server


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, s3):
    asked_of(s3, tmp_path / "cache", monkeypatch)


def listed(root, labelled: bool = True, **spec):
    return list_images("x", ImageSet(**spec), root, labelled, 0)


def contents(images) -> list[bytes]:
    return [images.content(row) for row in range(len(images))]


def test_a_prefix_is_the_folder_of_it(animals, capsys):
    there, here = listed(Path("data"), folder=f"s3://{BUCKET}/animals"), listed(animals, folder=".")
    assert (there.names, there.labels, there.class_names) == (here.names, here.labels, here.class_names)
    assert contents(there) == contents(here)
    assert "1 file is passed over" in capsys.readouterr().out
    below = listed(place_at(f"s3://{BUCKET}/animals"), folder="cat")
    assert below.names == ("0.png", "1.png") and below.content(1) == here.content(here.names.index("cat/1.png"))
    assert listed(place_at("s3://nowhere"), folder=animals).names == here.names  # an absolute path stays one


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_lists_and_parquet_are_fetched_once(kind, animals, s3, tmp_path, capsys):
    from test_archives import packed

    s3.put(f"sets/animals.{kind}", packed(animals, tmp_path / f"animals.{kind}").read_bytes())
    here = listed(animals, folder=".")
    there = listed(Path("data"), folder=f"s3://{BUCKET}/sets/animals.{kind}")
    assert (there.names, there.labels, contents(there)) == (here.names, here.labels, contents(here))
    assert f"Fetching s3://{BUCKET}/sets/animals.{kind}" in capsys.readouterr().err
    fetched._fetched.cache_clear()
    again = listed(Path("data"), folder=f"s3://{BUCKET}/sets/animals.{kind}/cat")
    assert again.names == ("0.png", "1.png") and "Fetching" not in capsys.readouterr().err
    np.testing.assert_array_equal(again.stamps().values, there.stamps().values[[1, 2]])


def test_a_list_names_images_at_an_address(animals, s3):
    s3.put("sets/list.txt", b"dog/2.png 1\ncat/0.png 0\n")
    images = listed(place_at(f"s3://{BUCKET}"), list="sets/list.txt", images_root="animals")
    assert images.names == ("dog/2.png", "cat/0.png") and images.labels == (1, 0)
    assert images.reader.open(0) == replica.picture(2)
    s3.put("sets/list2.txt", b"dog/9.png 1\n")
    with pytest.raises(ConfigError, match=r"lists dog/9\.png, which is not under s3://photos/animals"):
        listed(place_at(f"s3://{BUCKET}"), list="sets/list2.txt", images_root="animals")


def test_parquet_files_at_an_address_hold_images_or_name_them(s3, tmp_path):
    cells = [replica.picture(0), replica.picture(1)]
    pq.write_table(pa.table({"image": cells, "label": ["a", "b"]}), tmp_path / "x.parquet")
    s3.put("tables/train-00000-of-00001.parquet", (tmp_path / "x.parquet").read_bytes())
    images = listed(Path("data"), parquet=f"s3://{BUCKET}/tables")
    assert images.names == ("train-00000-of-00001.parquet/000000", "train-00000-of-00001.parquet/000001")
    assert [images.reader.open(row) for row in (0, 1)] == cells
    paths = ["../animals/dog/2.png", f"s3://{BUCKET}/animals/dog/3.png", f"s3://{BUCKET}/gone.png"]
    pq.write_table(pa.table({"file": ["dog/2.png", *paths[1:]]}), tmp_path / "x.parquet")
    s3.put("animals.parquet", (tmp_path / "x.parquet").read_bytes())
    images = listed(place_at(f"s3://{BUCKET}/animals"), parquet=f"s3://{BUCKET}/animals.parquet", image="file")
    with pytest.raises(NoImage, match="nothing is there"):
        images.reader.open(2)
    assert images.reader.open(1) == replica.picture(3)


def test_shards_are_fetched_as_they_are_called(s3, tmp_path):
    replica.shards(tmp_path / "in", [0, 1, 0, 1, 0, 1])
    s3.put_folder(tmp_path / "in", "shards")
    spec = "photos-{000..001}.tar"
    there, here = listed(place_at(f"s3://{BUCKET}/shards"), shards=spec), listed(tmp_path / "in", shards=spec)
    assert (there.names, there.labels, contents(there)) == (here.names, here.labels, contents(here))


def test_a_folder_of_the_web_is_its_page_of_links(animals, web):
    for name, number in FILES.items():
        replica.put(web.folder / "some animals" / name, number)
    here = listed(animals, folder=".")
    there = listed(Path("data"), folder=f"{web.url}/some%20animals/")
    assert (there.names, there.labels, there.class_names) == (here.names, here.labels, here.class_names)
    assert contents(there) == contents(here) and not there.stamps().vague.any()
    found = list(sources([f"{web.url}/some%20animals/big%20fox/4.png"]))
    assert [each.inside for each in found] == ["4.png"] and found[0].place.read() == replica.picture(4)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_other_file_systems_are_read(protocol, animals, tmp_path):
    import fsspec

    root = f"memory://{tmp_path.name}" if protocol == "memory" else f"file://{tmp_path}/x"
    for name, number in FILES.items():
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(replica.picture(number))
    there, here = listed(Path("data"), folder=root), listed(animals, folder=".")
    assert (there.names, there.labels, contents(there)) == (here.names, here.labels, contents(here))


def test_new_images_are_those_of_a_folder(animals, s3):
    def told(found):
        return [(each.inside, each.reason, each.reason is None and each.place.read()) for each in found]

    there = list(sources([f"s3://{BUCKET}/animals", f"s3://{BUCKET}/animals/dog/2.png"]))
    here = list(sources([str(animals), str(animals / "dog" / "2.png")]))
    assert told(there) == told(here) == told(fetched_ahead(there))
    assert there[0].path == f"s3://{BUCKET}/animals/big fox/4.png"
    s3.put("new.txt", f"s3://{BUCKET}/animals/dog/3.png\n{animals}/cat/0.png\ns3://me:secret@{BUCKET}/x.png\n".encode())
    one, other, refused = sources([f"s3://{BUCKET}/new.txt"])
    assert (one.place.read(), other.place.read()) == (replica.picture(3), replica.picture(0))
    assert "no password stands in an address" in refused.reason and "secret" not in str(refused)


def test_a_folder_without_a_name_is_read_and_is_no_class(s3):
    for number, key in enumerate(("slashes//a.png", "slashes/cat//a.png", "slashes/cat/a.png")):
        s3.put(key, replica.picture(number))
    found = {each.path.removeprefix(f"s3://{BUCKET}/"): each for each in sources([f"s3://{BUCKET}/slashes"])}
    assert [each.place.read() for each in found.values()] == [replica.picture(number) for number in range(3)]
    assert [*found] == ["slashes//a.png", "slashes/cat//a.png", "slashes/cat/a.png"]
    assert found["slashes//a.png"].inside == "a.png"
    with pytest.raises(ConfigError, match=r"slashes//a\.png lies in a folder without a name \(//\)"):
        listed(Path("data"), folder=f"s3://{BUCKET}/slashes")
    s3.remove("slashes//a.png")
    bucket_tree._listed.cache_clear()
    images = listed(Path("data"), folder=f"s3://{BUCKET}/slashes")
    assert images.names == ("cat//a.png", "cat/a.png") and images.content(0) != images.content(1)


def test_workers_make_file_systems_of_their_own(s3):
    place = Object(Address("s3", f"{BUCKET}/animals/cat/0.png"))
    assert place.read() == replica.picture(0)  # this process has one already
    for method in ("fork", "spawn"):
        with get_context(method).Pool(1) as pool:
            assert pool.apply_async(read_in_a_worker, [place]).get(120) == replica.picture(0)


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


def test_an_object_in_parts_whose_version_is_no_checksum_is_read(s3):
    content = replica.picture(0)
    key = {"Bucket": BUCKET, "Key": "parts/a.png"}
    upload = s3.client.create_multipart_upload(**key)["UploadId"]
    part = s3.client.upload_part(**key, UploadId=upload, PartNumber=1, Body=content)
    parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    s3.client.complete_multipart_upload(**key, UploadId=upload, MultipartUpload=parts)
    (found,) = sources([f"s3://{BUCKET}/parts"])
    assert found.place.version.endswith("-1") and found.place.read() == content


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


def test_an_archive_elsewhere_with_a_member_that_is_no_file_has_a_place(s3, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../b.png", replica.picture(1))
    s3.put("odd/a.zip", (tmp_path / "a.zip").read_bytes())
    (found,) = sources([f"s3://{BUCKET}/odd/a.zip"])
    assert found.reason and place_of(*found.place) == found.place


def test_objects_that_a_list_names_have_the_version_of_now(s3):
    s3.put("now/a.png", b"one")
    asked = sources([f"s3://{BUCKET}/now/a.png", f"s3://{BUCKET}/now/none.png"])
    found, none = with_versions(list(asked))
    assert found.place.size == 3 and found.place.version and none.place.size is None
    s3.put("now/a.png", b"two")
    (changed,) = with_versions(list(sources([f"s3://{BUCKET}/now/a.png"])))
    assert changed.place.version != found.place.version
    with pytest.raises(NoImage, match="has changed"):
        found.place.read()


def test_a_file_address_names_no_other_machine(tmp_path):
    assert place_at("file://localhost/x/a%20b.png") == place_at("file:///x/a%20b.png") == Path("/x/a b.png")
    with pytest.raises(UserError, match="write file:///photos/new"):
        place_at("file://photos/new")


def test_sets_of_torchvision_are_not_looked_for_at_an_address():
    given = ["--data.root=s3://photos", "--data.id={images: {torchvision: CIFAR10, split: train}}"]
    check_folders(load_config("own_images.yaml", given))
    with pytest.raises(ConfigError, match="of this machine"):
        listed(place_at("s3://photos"), torchvision="CIFAR10", split="train")


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


@pytest.mark.parametrize("text", ["s3://", "https:///x", "memory:///a"])
def test_an_address_without_a_place_is_told(text):
    with pytest.raises(UserError, match="is an address without a place: name one, as "):
        check_path(text)


def test_a_package_that_is_lacking_is_named(monkeypatch):
    import fsspec

    def lacking(protocol):
        raise ImportError("no gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lacking)
    with pytest.raises(UserError, match=r"gs:// cannot be read: pip install 'clip-ood\[gcs\]'"):
        check_path("gs://bucket/a.png")


def test_the_cache_keeps_no_more_than_it_may(s3, tmp_path, monkeypatch):
    for name in ("one", "two"):
        s3.put(f"big/{name}.txt", name.encode() * 1000)
    monkeypatch.setattr(fetched, "LIMIT", 100)
    with pytest.raises(UserError, match=r"more than the 100 bytes that the cache keeps"):
        fetched.local(place_at(f"s3://{BUCKET}/big/one.txt"))
    monkeypatch.setattr(fetched, "LIMIT", 4000)
    one = fetched.local(place_at(f"s3://{BUCKET}/big/one.txt"))
    other = one.parent.with_name("other.file")
    other.mkdir()
    (other / "x").write_bytes(bytes(1000))
    two = fetched.local(place_at(f"s3://{BUCKET}/big/two.txt"))
    assert not other.exists() and one.read_bytes() == b"one" * 1000 and two.read_bytes() == b"two" * 1000
    s3.put("big/two.txt", b"2" * 3000)
    fetched._fetched.cache_clear()
    assert fetched.local(place_at(f"s3://{BUCKET}/big/two.txt")).read_bytes() == b"2" * 3000


def test_a_server_that_trickles_is_given_up(web, monkeypatch):
    monkeypatch.setattr(pace, "SPAN", 0.5)
    (web.folder / "in.zip").write_bytes(bytes(10_000))
    web.trickling.add("/in.zip")
    with pytest.raises(
        UserError, match=r"/in\.zip: the server sends less than 32,768 bytes a second\. 0 bytes are kept"
    ):
        fetched.local(place_at(f"{web.url}/in.zip?Signature=S3CR3T"))
    assert web.asked["/in.zip"] == 1


def test_one_file_is_fetched_while_another_one_is(web, monkeypatch):
    download = fetched.download

    def meanwhile(*args, **options):
        with get_context("spawn").Pool(1) as pool:  # its download is the real one
            other = pool.apply_async(fetched_in_a_worker, [place_at(f"{web.url}/b.txt")]).get(120)
        assert other == b"of b"
        download(*args, **options)

    for name in "ab":
        (web.folder / f"{name}.txt").write_text(f"of {name}")
    monkeypatch.setattr(fetched, "download", meanwhile)
    assert fetched.local(place_at(f"{web.url}/a.txt")).read_bytes() == b"of a"


def test_a_large_file_is_fetched_in_blocks(s3, monkeypatch):
    content = np.random.default_rng(0).bytes(100_001)
    s3.put("big/x.bin", content)
    monkeypatch.setattr(fetched, "BLOCK", 1 << 13)
    assert fetched.local(place_at(f"s3://{BUCKET}/big/x.bin")).read_bytes() == content


def test_an_object_is_read_by_one_request_and_not_far_beyond_its_size(s3, monkeypatch):
    s3.put("one/a.bin", b"abc")
    s3.put("one/empty.bin", b"")
    place, empty = (Object(place_at(f"s3://{BUCKET}/one/{name}.bin"), size) for name, size in [("a", 3), ("empty", 0)])
    system, asked = file_system(place.address)[0], []
    call = system._call_s3

    async def counted(method, *arguments, **options):
        asked.append(method)
        return await call(method, *arguments, **options)

    monkeypatch.setattr(system, "_call_s3", counted)
    assert (place.read(), empty.read()) == (b"abc", b"")
    assert asked == ["get_object"]
    s3.put("one/a.bin", b"abcdefg")
    assert content_at(place.address, 3, 100) == b"abcd"
    with pytest.raises(NoImage, match="has changed"):
        place.read()


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
