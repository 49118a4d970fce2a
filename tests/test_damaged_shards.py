"""Shards as they really come: damaged, cut, compressed, with masks, links and files of a Mac; never a shorter set without a word."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
import replica

from clip_ood.config.checks import check_folders
from clip_ood.config.loading import load_config
from clip_ood.config.schema import ImageSet
from clip_ood.data.inputs import sources
from clip_ood.data.listing import list_images
from clip_ood.errors import ConfigError

WHOLE = [(f"{k:04d}.{end}", content) for k in range(6) for end, content in (("png", k), ("cls", str(k % 3).encode()))]


def tar(path, members, mode="w"):
    """A tar file of (name, content), (name, number of a picture) or (name, (type of a link, its target))."""
    with tarfile.open(path, mode) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                content = b""
            content = replica.picture(content) if isinstance(content, int) else content
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def listed(path):
    return list_images("x", ImageSet(shards=path.name), path.parent, True, 0)


def offsets(path):
    """Where each header of a tar file lies, and where the end mark."""
    with tarfile.open(path) as file:
        return [info.offset for info in file] + [file.offset]


def cut(content, place):
    return content[:place]


def zeroed(content, place):
    return content[:place] + bytes(512) + content[place + 512 :]


def spoilt(content, place):
    return content[: place + 3] + b"\xff" + content[place + 4 :]


def wrong_size(content, place):
    return content[: place + 124] + b"7" + content[place + 125 :]


@pytest.mark.parametrize("header", [0, 1, 6, 10, 11])
@pytest.mark.parametrize("harm", [cut, zeroed, spoilt, wrong_size, lambda content, place: content[: place + 200]])
def test_harm_at_any_header_is_told(harm, header, tmp_path):
    path = tar(tmp_path / "x.tar", WHOLE)
    place = offsets(path)[header]
    path.write_bytes(harm(path.read_bytes(), place))
    behind = (
        rf"behind its member {WHOLE[header - 1][0]}, at byte {place:,}" if header else "at its beginning|it is empty"
    )
    with pytest.raises(ConfigError, match=rf"Image set x: .*x\.tar is no whole, uncompressed tar file: ({behind})"):
        listed(path)
    found = list(sources([str(path)]))
    assert "no whole, uncompressed tar file" in found[-1].reason
    assert [each.reason for each in found[:-1]] == [None] * ((header + 1) // 2)


@pytest.mark.parametrize(
    "harm, told",
    [
        (lambda content, end: content + content, "several archives lie one behind the other"),
        (lambda content, end: content + b"hello", "more follows"),
        (lambda content, end: content[:end], "without the end mark"),
        (lambda content, end: content[: end - 100], "unexpected end of data"),
        (lambda content, end: content + bytes(20_000), "its download was perhaps not finished"),
        (lambda content, end: b"", "it is empty"),
    ],
)
def test_harm_at_the_end_is_told(harm, told, tmp_path):
    path = tar(tmp_path / "x.tar", WHOLE)
    path.write_bytes(harm(path.read_bytes(), offsets(path)[-1]))
    with pytest.raises(ConfigError, match=told):
        listed(path)
    assert told in list(sources([str(path)]))[-1].reason


def test_a_size_below_nothing_ends(tmp_path):
    path = tar(tmp_path / "x.tar", WHOLE)
    place, content = offsets(path)[2], bytearray(path.read_bytes())
    header = bytearray(tarfile.TarInfo("n.png").tobuf())
    header[124:136] = (-512 & (1 << 96) - 1).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(content[:place] + header + content[place:])
    with pytest.raises(ConfigError, match=r"behind its member 0000\.cls, at byte"):
        listed(path)


def test_whole_archives_are_read_whoever_wrote_them(tmp_path):
    path = tar(tmp_path / "x.tar", WHOLE)
    end = offsets(path)[-1]
    for content in (path.read_bytes(), path.read_bytes()[: end + 1024], path.read_bytes()[: end + 512]):
        path.write_bytes(content)
        assert listed(path).labels == (0, 1, 2, 0, 1, 2)
        assert [each.reason for each in sources([str(path)])] == [None] * 6
    long = tar(tmp_path / "long.tar", [(f"{'d' * 120}/{'e' * 150}{k}.png", k) for k in range(3)])
    assert len(listed(long)) == 3


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_archives_say_how_they_are_unpacked(kind, tmp_path):
    path = tar(tmp_path / "x.tar", WHOLE, f"w:{kind}")
    with pytest.raises(ConfigError, match=r"it is compressed \(.*\): unpack it with (gunzip|bunzip2|unxz)"):
        listed(path)
    (found,) = sources([str(path)])
    assert "unpack it with" in found.reason


@pytest.mark.parametrize(
    "members, told",
    [
        (
            [("v1.cat.000.png", 0), ("v1.cat.001.png", 1)],
            "holds v1.cat.000.png and v1.cat.001.png, which are of one sample",
        ),
        ([("v1.cls", b"0"), ("v1.cat.cls", b"1")], "holds v1.cls and v1.cat.cls, which are of one sample"),
        ([("a.png", 0), ("a.mask.png", 1)], "holds a.png and a.mask.png, which are of one sample"),
        ([("a.jpg", 0), ("a.png", 1), ("a.cls", b"0")], "holds a.jpg and a.png, which are of one sample"),
        ([("a.png", 0), ("a.cls", b"0"), ("a.x.cls", b"1")], "holds a.cls and a.x.cls, which are of one sample"),
        ([("./a.png", 0), ("a.jpg", 1)], "holds ./a.png and a.jpg, which are of one sample"),
        ([("a.png", 0), ("a.png", 1)], "holds a.png twice"),
        ([("a.png", 0), ("b.png", (tarfile.LNKTYPE, "a.png"))], r"x\.tar, b\.png: it is a link to a\.png"),
        ([("a.png", 0), ("b.png", (tarfile.SYMTYPE, "a.png"))], r"x\.tar, b\.png: it is a link to a\.png"),
        ([("a.png", 0), ("a.cls", (tarfile.SYMTYPE, "b"))], r"x\.tar, a\.cls: it is a link to b"),
        (
            [("a.png", 0), ("a.cls", b"0"), ("b.psd", b"?"), ("b.cls", b"1")],
            r"b\.cls: this label has no image .*b\.psd",
        ),
        ([("a.png", 0), ("a.cls", b"-3")], r"a\.cls: expected a label number, got b'-3'"),
        ([("a.png", 0), ("a.cls", b"1_0")], r"a\.cls: expected a label number, got b'1_0'"),
        ([("a.png", 0), ("a.cls", b"\xff\xfe1\0")], r"a\.cls: expected a label number"),
        ([("a.txt", b"")], "holds no images"),
    ],
)
def test_samples_that_can_be_read_in_two_ways_are_refused(members, told, tmp_path):
    with pytest.raises(ConfigError, match=f"Image set x: .*{told}"):
        listed(tar(tmp_path / "x.tar", members))


def test_files_of_a_mac_and_thumbnails_are_left_out(tmp_path):
    hidden = ("./._a.png", "./._a.cls", "__MACOSX/a.png", "@eaDir/a.png/SYNO.jpg", ".thumbnails/a.png", "sub/Thumbs.db")
    path = tar(tmp_path / "x.tar", [*((name, b"?") for name in hidden), ("./a.png", 0), ("./a.cls", b"1")])
    images = listed(path)
    assert images.names == ("x.tar/./a.png",) and images.labels == (1,)
    assert [(each.inside, each.reason) for each in sources([str(path)])] == [("x.tar/./a.png", None)]


def test_labels_in_capitals_count_and_no_label_is_minus_one(tmp_path):
    assert listed(
        tar(tmp_path / "x.tar", [("a.png", 0), ("a.CLS", b" 2\n"), ("b.png", 1), ("b.cls", b"-1")])
    ).labels == (2, -1)
    assert listed(tar(tmp_path / "y.tar", [("a.png", 0), ("a.cls", b"-1")])).labels is None


def test_what_is_passed_over_is_told(tmp_path, capsys):
    path = tar(
        tmp_path / "x.tar",
        [("a.png", 0), ("a.json", b"{}"), ("b.psd", b"?")],
    )
    assert len(listed(path)) == 1 and "1 file is passed over" in (told := capsys.readouterr().out) and "b.psd" in told
    assert [(each.inside, each.reason) for each in sources([str(path)])] == [
        ("x.tar/a.png", None),
        ("x.tar/b.psd", "no image by its name"),
    ]
    linked = tar(tmp_path / "y.tar", [("a.png", 0), ("b.png", (tarfile.SYMTYPE, "a.png"))])
    assert "it is a link to a.png" in list(sources([str(linked)]))[-1].reason


def test_a_pipe_called_a_shard_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(ConfigError, match="it is a pipe, and no file"):
        listed(tmp_path / "x.tar")
    (found,) = sources([str(tmp_path / "x.tar")])
    assert "it is a pipe, and no file" in found.reason


@pytest.mark.parametrize(
    "folder", ["@eaDir", "__MACOSX", ".thumbnails", ".ipynb_checkpoints", "#recycle", "lost+found"]
)
def test_thumbnails_are_left_out_of_folders(folder, tmp_path):
    for place in ("cat", f"cat/{folder}", "dog", folder, f"dog/{folder}/1.png"):
        replica.put(tmp_path / "in" / place / "1.jpg")
    for place in ("cat/Thumbs.db", "desktop.ini"):
        (tmp_path / "in" / place).write_bytes(b"?")
    images = list_images("x", ImageSet(folder="in"), tmp_path, True, 0)
    assert images.class_names == ("cat", "dog") and images.names == ("cat/1.jpg", "dog/1.jpg")
    assert [(each.inside, each.reason) for each in sources([str(tmp_path / "in")])] == [
        ("cat/1.jpg", None),
        ("dog/1.jpg", None),
    ]


@pytest.mark.parametrize(
    "given, told",
    [
        ("{list: shards}", r"This is a folder: name it as --data\.ood\.a='\{folder: .*shards\}'"),
        ("x.7z", r"This is an archive of a kind that is not read: unpack it, or pack it as \.zip or \.tar"),
        ("list.txt", r"This is a file: a list of images is named as --data\.ood\.a='\{list: .*list\.txt\}'"),
        ("photos-*", "Patterns are not filled in here"),
        ("ftp://example.org/x", "download others first"),
        ("{shards: shards}", r"name it as --data\.ood\.a='\{folder: .*shards\}'\. It holds 2 tar files, as y-0\.tar"),
        ("{shards: 'shards/*.tar'}", r"Patterns are not filled in here.*name-\{000\.\.009\}\.tar"),
        ("{shards: 'shards/{a,b}.tar'}", r"Patterns are not filled in here.*name-\{000\.\.009\}\.tar"),
        ("{shards: 'shards/y-{0..1}-{0..1}.tar'}", "Patterns are not filled in here"),
        ("{shards: 'shards-{0..1}/y.tar'}", "Patterns are not filled in here"),
        ("{shards: 'pipe:cat x.tar'}", "download others first"),
        ("{shards: 'ftp://example.org/x.tar'}", "download others first"),
        ("{shards: 'shards/y-{0..3}.tar'}", r"there is no shard .*y-2\.tar \(nor 1 more of 4\)\.$"),
        ("{shards: 'y-{0..9999999999}.tar'}", "stands for more than 100,000 files"),
    ],
)
def test_places_of_another_kind_are_named(given, told, tmp_path):
    for name in ("x.tar", "shards/y-0.tar", "shards/y-1.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tar(tmp_path / name, WHOLE)
    for name in ("x.7z", "list.txt"):
        (tmp_path / name).touch()
    (tmp_path / "id").mkdir()
    (tmp_path / "run.yaml").write_text("data: {id: id}\nbackbone: {model: ViT-B-32}\nmethod: {zero_shot: {}}\n")
    with pytest.raises(ConfigError, match=told):
        check_folders(
            load_config(str(tmp_path / "run.yaml"), [f"--data.root={tmp_path}", f"--data.ood={{a: {given}}}"])
        )


def test_a_folder_of_shards_is_told_how_they_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    tar(tmp_path / "in" / "y-0.tar", WHOLE)
    with pytest.raises(ConfigError, match=r"holds no images .* It holds 1 tar files, as y-0\.tar"):
        list_images("x", ImageSet(folder="in"), tmp_path, True, 0)


@pytest.mark.parametrize(
    "path, told",
    [
        ("shards/*.tar", "Patterns such as"),
        ("shards/{a,b}.tar", "Patterns such as"),
        ("pipe:cat x.tar", "download others first"),
        ("ftp://example.org/x.tar", "download others first"),
        ("x.tar.zst", "is an archive of a kind that is not read: unpack it"),
        ("x.rar", "is an archive of a kind that is not read: unpack it"),
    ],
)
def test_what_detect_cannot_read_is_named_at_once(path, told, tmp_path, monkeypatch):
    import detect

    monkeypatch.chdir(tmp_path)
    for name in ("x.tar.zst", "x.rar"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=told):
        detect.main(["--run", "nowhere", path])
