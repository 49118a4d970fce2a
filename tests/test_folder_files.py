"""suspects.csv and groups.csv give back what was written, whatever names hold, and say where they are damaged."""

from __future__ import annotations

import csv
import os

import numpy as np
import pytest

from clip_ood.files.records import Damaged
from clip_ood.folder.files import read_groups, read_suspects, write_groups, write_suspects
from clip_ood.folder.groups import Group
from clip_ood.folder.ranking import Ranking
from clip_ood.folder.suspects import Folder, group_members, suspects

PATHS = ["a.png", "=1+1.png", os.fsdecode(b'caf\xe9,\n".png'), "sub/ é.png", "'-x.png"]


@pytest.fixture
def answer():
    folder = Folder(
        paths=PATHS,
        identities=np.arange(10, dtype=np.uint64).reshape(5, 2),
        labels=["-cats", None, "dogs, old", "", "cats"],
        first=np.array([0, 1, 1, 3, 4]),
        nearest=np.array([1, 0, 0, 4, -1]),
        cosines=np.array([0.5, 0.5, 0.5, 0.25, np.nan]),
        points=np.array([[0.5, -0.25], [0, 0], [0, 0], [1, 1], [np.nan, np.nan]]),
        scores={"knn": np.array([0.1, 0.2, 0.2, np.nan, 1e-30]), "=odd": np.arange(5.0)},
    )
    ranking = Ranking(np.array([0.9, 0.2, 0.2, np.nan, 0.1]), [Group(np.array([1, 2, 3]), 2.5)], {})
    return folder, ranking


def test_suspects_are_ranked_and_come_back(tmp_path, answer):
    rows = list(suspects(*answer))
    assert [each.path for each in rows] == [PATHS[place] for place in (4, 1, 2, 0, 3)]
    assert [each.rank for each in rows] == [1, 2, 3, 4, 5]
    first, _, copy, _, last = rows
    assert (first.nearest, first.cosine, first.group, first.copies) == (None, None, None, 0)
    assert (copy.copy_of, copy.copies, copy.group, copy.nearest) == (PATHS[1], 1, 1, PATHS[0])
    assert last.score is None and last.scores == {"knn": None, "=odd": 3.0}
    assert last.image == "06000000000000000700000000000000"
    write_suspects(tmp_path / "suspects.csv", rows)
    found = list(read_suspects(tmp_path / "suspects.csv"))
    assert [each.label for each in found] == ["cats", None, "dogs, old", "-cats", None]
    assert [(each.path, each.copy_of, each.nearest) for each in found] == [
        (each.path, each.copy_of, each.nearest) for each in rows
    ]
    assert [(each.score, each.group, each.cosine, each.x, each.y, each.scores) for each in found] == [
        (each.score, each.group, each.cosine, each.x, each.y, each.scores) for each in rows
    ]
    assert (found[3].x, found[3].y, found[0].x) == (0.5, -0.25, None)


def test_no_cell_is_a_formula(tmp_path, answer):
    write_suspects(tmp_path / "suspects.csv", suspects(*answer))
    with (tmp_path / "suspects.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert not [cell for line in csv.reader(file) for cell in line if cell.startswith(("=", "-c"))]


def test_groups_come_back(tmp_path, answer):
    rows = list(group_members(*answer))
    write_groups(tmp_path / "groups.csv", rows)
    assert list(read_groups(tmp_path / "groups.csv")) == rows and len(rows) == 3


def test_an_empty_folder_has_files_with_a_first_line(tmp_path):
    write_suspects(tmp_path / "suspects.csv", [])
    write_groups(tmp_path / "groups.csv", [])
    assert not list(read_suspects(tmp_path / "suspects.csv")) and not list(read_groups(tmp_path / "groups.csv"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rank,path", "rang,path", "its first line must name the columns rank, path"),
        ("1,'-x.png", "one,'-x.png", "line 2: its rank is 'one', and must be a whole number"),
        ("\r\n2,", "\r\n3,", "line 3: its rank is 3, and must be 2"),
        ("0.900000", "much", "line 5: its score is 'much', and must be a number"),
        ("0.900000,,0", "0.900000,,", "line 5: its copies is '', and must be a whole number"),
        ("0.900000,", "", "line 5 has 14 cells, and must have 15"),
    ],
)
def test_a_damaged_file_says_where(tmp_path, answer, old, new, told):
    path = tmp_path / "suspects.csv"
    write_suspects(path, suspects(*answer))
    text = path.read_bytes()
    assert old.encode() in text
    path.write_bytes(text.replace(old.encode(), new.encode(), 1))
    with pytest.raises(Damaged) as error:
        list(read_suspects(path))
    assert str(error.value).startswith(f"{path} is damaged ({told}")


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, answer):
    def broken():
        yield from suspects(*answer)
        raise KeyboardInterrupt

    path = tmp_path / "suspects.csv"
    write_suspects(path, suspects(*answer))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_suspects(path, broken())
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["suspects.csv"]
