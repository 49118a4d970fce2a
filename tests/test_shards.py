"""Tar shards: the same pictures and labels as from files, an identity of their own, errors that name shard and member."""

from __future__ import annotations

import gzip
import io
import os

import numpy as np
import pytest
import replica
import tiny_clip
from PIL import Image

import eval as evaluation
from clip_ood.config.schema import ImageSet
from clip_ood.data.listing import list_images
from clip_ood.errors import ConfigError

LABELS = [2, 0, 1, 1, 0, 2, 0, 1, 2, 0]


def listed(root, pattern="photos-{000..002}.tar", **spec):
    return list_images("photos", ImageSet(shards=pattern, **spec), root, True, 0)


def test_images_and_labels_are_those_of_the_shards(tmp_path):
    images = listed(replica.shards(tmp_path, LABELS))
    assert images.labels == tuple(LABELS) and images.names[4] == "photos-001.tar/00004.png"
    for index in (9, 0, 4):
        expected = np.asarray(Image.open(io.BytesIO(replica.picture(index))))
        np.testing.assert_array_equal(np.asarray(images.read(index)), expected)
    few = images.subset([9, 3])
    np.testing.assert_array_equal(np.asarray(few.read(0)), np.asarray(images.read(9)))
    assert few.labels == (0, 1) and [few.content(0), few.content(1)] == [images.content(9), images.content(3)]
    np.testing.assert_array_equal(few.stamps()[0], images.stamps()[0][[9, 3]])
    assert listed(replica.shards(tmp_path / "flat", None).parent, "flat/photos-{000..002}.tar").labels is None


def test_an_image_is_known_by_its_place_and_its_shard(tmp_path):
    before = listed(replica.shards(tmp_path, LABELS)).stamps()[0]
    assert len(np.unique(before, axis=0)) == len(LABELS)
    os.utime(tmp_path / "photos-001.tar", (1, 1))
    changed = (before != listed(tmp_path).stamps()[0]).any(axis=1).tolist()
    assert changed == [False] * 4 + [True] * 4 + [False] * 2


def test_a_draw_by_class(tmp_path):
    images = listed(replica.shards(tmp_path, LABELS), per_class=1)
    assert sorted(images.labels) == [0, 1, 2]


def test_a_shard_that_changes_while_it_is_read_is_an_error_of_the_file_system(tmp_path):
    images = listed(replica.shards(tmp_path, LABELS))
    with (tmp_path / "photos-002.tar").open("r+b") as file:
        file.truncate(600)
    with pytest.raises(OSError, match="the shard has become shorter"):
        images.read(9)


def test_a_run_on_shards_scores_as_one_on_files(tmp_path):
    tiny_clip.make(tmp_path)
    for number in range(9):  # the pictures of `near`, in shards and beside them as files of the same names
        name = f"{number:05d}.png"
        (tmp_path / "data" / "files").mkdir(exist_ok=True)
        (tmp_path / "data" / "files" / name).write_bytes(replica.picture(number))
    replica.shards(tmp_path / "data" / "packed", [0] * 9)
    data = {"root": f"{tmp_path}/data", "id": "id", "splits": {"val": 0.0, "test": 0.3}, "batch_size": 8}
    data["ood"] = {"files": "files", "packed": {"shards": "packed/photos-{000..002}.tar", "count": 9}}
    evaluation.main(["--config", tiny_clip.config(tmp_path, "packed", {"zero_shot": {}}, data=data)])
    rows = tiny_clip.results(tmp_path / "runs" / "packed")["rows"]
    scores = {
        name: {row["detector"]: row["auroc"] for row in rows if row["ood"] == name} for name in ("files", "packed")
    }
    assert scores["files"] == scores["packed"] and len(scores["files"]) >= 2


@pytest.mark.parametrize(
    "labels, spoil, message",
    [
        ([0, "cat", 1], lambda path: None, r"photos-000\.tar, 00001\.cls: expected a label number, got b'cat'"),
        (LABELS, lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "is no whole, uncompressed tar file"),
        (LABELS, lambda path: path.write_bytes(path.read_bytes()[:3000]), "is no whole, uncompressed tar file"),
        (
            LABELS,
            lambda path: replica.shards(path.parent / "x", None).joinpath(path.name).replace(path),
            "has no label",
        ),
    ],
)
def test_what_is_wrong_with_a_shard_is_named(labels, spoil, message, tmp_path):
    spoil(replica.shards(tmp_path, labels) / "photos-000.tar")
    with pytest.raises(ConfigError, match=f"photos: .*{message}"):
        listed(tmp_path, "photos-000.tar" if len(labels) == 3 else "photos-{000..002}.tar")


def test_a_range_that_counts_down_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="counts down from 002 to 000"):
        listed(tmp_path, "photos-{002..000}.tar")
