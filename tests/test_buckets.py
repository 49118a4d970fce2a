"""Images in buckets and behind URLs: what lies there is what a folder of it would be."""

from __future__ import annotations

import zipfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import replica
from replica import listed
from storage_servers import ANIMALS, BUCKET, contents, fetched_in_a_worker, read_in_a_worker

from clip_ood.config.checks import check_folders
from clip_ood.config.loading import load_config
from clip_ood.data import bucket_tree
from clip_ood.data.fetched_ahead import fetched_ahead, with_versions
from clip_ood.data.inputs import sources
from clip_ood.data.readers.objects import Object
from clip_ood.data.readers.parquet_rows import place_of
from clip_ood.data.readers.reader import NoImage
from clip_ood.errors import ConfigError, UserError
from clip_ood.files import download as downloads
from clip_ood.files.remote import fetched
from clip_ood.files.remote.address import Address, place_at
from clip_ood.files.remote.content import content_at
from clip_ood.files.remote.file_systems import file_system

pytest.importorskip("s3fs", reason="needs s3fs: pip install -e '.[test]'")
pytest.importorskip("moto.server", reason="needs moto: pip install -e '.[test]'")
pytestmark = [pytest.mark.extras, pytest.mark.usefixtures("here")]


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


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_other_file_systems_are_read(protocol, animals, tmp_path):
    import fsspec

    root = f"memory://{tmp_path.name}" if protocol == "memory" else f"file://{tmp_path}/x"
    for name, number in ANIMALS.items():
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


def test_an_object_in_parts_whose_version_is_no_checksum_is_read(s3):
    content = replica.picture(0)
    key = {"Bucket": BUCKET, "Key": "parts/a.png"}
    upload = s3.client.create_multipart_upload(**key)["UploadId"]
    part = s3.client.upload_part(**key, UploadId=upload, PartNumber=1, Body=content)
    parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    s3.client.complete_multipart_upload(**key, UploadId=upload, MultipartUpload=parts)
    (found,) = sources([f"s3://{BUCKET}/parts"])
    assert found.place.version.endswith("-1") and found.place.read() == content


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


def test_sets_of_torchvision_are_not_looked_for_at_an_address():
    given = ["--data.root=s3://photos", "--data.id={images: {torchvision: CIFAR10, split: train}}"]
    check_folders(load_config("own_images.yaml", given))
    with pytest.raises(ConfigError, match="of this machine"):
        listed(place_at("s3://photos"), torchvision="CIFAR10", split="train")


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


def test_one_file_is_fetched_while_another_one_is(web, monkeypatch):
    download = downloads.download

    def meanwhile(*args, **options):
        with get_context("spawn").Pool(1) as pool:  # its download is the real one
            other = pool.apply_async(fetched_in_a_worker, [place_at(f"{web.url}/b.txt")]).get(120)
        assert other == b"of b"
        download(*args, **options)

    for name in "ab":
        (web.folder / f"{name}.txt").write_text(f"of {name}")
    monkeypatch.setattr(downloads, "download", meanwhile)
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
