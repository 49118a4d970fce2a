"""What a folder's answer becomes: a map for the report, and a Parquet file for other programs."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clip_ood.features.rows import Rows
from clip_ood.files.written_names import paths_of
from clip_ood.folder import embeddings
from clip_ood.folder.embeddings import EmbeddedSet, write_embeddings
from clip_ood.folder.principal import plane
from clip_ood.report.folder_map import COLOURED, POINTS, folder_map

GENERATOR = torch.Generator().manual_seed(0)


def features(count):
    return torch.randn(count, 6, generator=GENERATOR)


def coloured(text):
    """How many points each colour of the page has."""
    return {
        number: sum(
            len(re.findall("<use ", part))
            for part in re.findall(r"<g[^>]*>(?:(?!<g).)*?</g>", text, flags=re.DOTALL)
            if f"var(--c{number})" in part
        )
        for number in (0, 1, 2, 3)
    }


def points(count):
    return torch.randn(count, 2, generator=GENERATOR).numpy()


def test_the_map_marks_suspects_and_groups_and_names_these():
    text = str(folder_map(points(50), [list(range(10, 17)), list(range(20, 24))], [3, 9]))
    assert text.startswith("<svg") and "#0d00" not in text
    assert coloured(text) == {0: 37, 1: 4, 2: 7, 3: 4}  # a suspect is a ring and a dot
    assert "group 1" in text and "group 2" in text and "component" not in text


def test_the_map_of_many_images_shows_some_of_them_and_all_suspects():
    text = str(folder_map(points(2 * POINTS + 500), [list(range(POINTS + 100))], range(POINTS + 100, POINTS + 105)))
    assert coloured(text) == {0: POINTS, 1: 10, 2: POINTS, 3: 0}


def test_more_groups_than_colours():
    text = str(folder_map(points(60), [list(range(start, start + 5)) for start in range(0, 50, 5)], []))
    assert "group 5" in text and "group 6" not in text and coloured(text)[0] == 60 - 5 * COLOURED


@pytest.mark.parametrize("images", [torch.ones(1, 6), torch.ones(4, 6), torch.eye(6)[:2]])
def test_a_map_of_few_images_or_of_equal_ones(images):
    assert str(folder_map(plane(Rows([images])).points.numpy(), [], [0])).startswith("<svg")


def test_three_images_lie_in_a_plane():
    assert all(1 - 1e-9 < plane(Rows([features(3)])).variance <= 1 for _ in range(50))


@pytest.mark.parametrize("places", [np.empty((0, 2)), np.array([[0.0, 1], [np.nan, np.nan]])])
def test_without_coordinates_there_is_no_map(places):
    assert folder_map(places, [], []) is None


def test_the_plane_holds_the_most_variance():
    rows = features(40) * torch.tensor([5.0, 3, 1, 1, 1, 1])
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    values = torch.linalg.svdvals(unit - unit.mean(dim=0))
    found = plane(Rows([rows]))
    assert torch.allclose(found.points.double().norm(dim=0), values[:2], atol=1e-4)
    assert found.variance == pytest.approx(float(values[:2].square().sum() / values.square().sum()))
    assert (torch.cdist(found.points, found.points) <= torch.cdist(unit.float(), unit.float()) + 1e-3).all()


def embedded(name, paths, rows, **known):
    count = len(paths)
    unknown = {
        "images": [None] * count, "labels": [None] * count, "score": np.full(count, np.nan), "group": np.zeros(count, int),
        "points": np.full((count, 2), np.nan), "scores": {"knn": np.full(count, np.nan)},
    }  # fmt: skip
    return EmbeddedSet(name=name, role=name, paths=paths, features=Rows([rows[:5], rows[5:]]), **unknown | known)


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK", 3)
    rows = features(8).half()
    known = {
        "images": ["00ff"] * 8, "labels": ["cat", None] * 4, "score": np.linspace(0, 1, 8), "group": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
        "points": np.arange(16.0).reshape(8, 2), "scores": {"knn": np.r_[np.nan, np.arange(7.0)]},
    }  # fmt: skip
    paths = [os.fsdecode(b"caf\xe9.png"), *(f"{number}.png" for number in range(7))]
    sets = [embedded("train", paths, rows, **known), embedded("near", paths[1:3], rows[1:3])]
    path = tmp_path / "folder.parquet"
    assert write_embeddings(path, iter(sets), ["knn"], 6, {"model": "ViT-B-16"}, {"size": [224, 224]}) == 10
    return path, paths, rows


def test_other_programs_read_what_was_written(written):
    path, paths, rows = written
    table = pq.read_table(path)
    assert paths_of(table) == [*paths, *paths[1:3]] and table["set"].to_pylist() == ["train"] * 8 + ["near"] * 2
    assert np.array_equal(np.stack(table["features"].to_numpy())[:8], rows.float().numpy())
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[6]"
    assert table["group"].to_pylist() == [None, 1, None, None, None, 1, None, None, None, None]
    assert table["score"].to_pylist() == [*np.linspace(0, 1, 8), None, None]
    assert table["score_knn"].to_pylist() == [None, *map(float, range(7)), None, None]
    assert table["y"].to_pylist() == [*range(1, 16, 2), None, None]
    assert table["label"].to_pylist() == ["cat", None] * 4 + [None, None] and table["image"][0].as_py() == "00ff"
    assert json.loads(table.schema.metadata[b"encoder"]) == {"model": "ViT-B-16"}
    assert json.loads(table.schema.metadata[b"preprocessing"]) == {"size": [224, 224]}


def test_rows_are_written_block_by_block(written):
    assert pq.ParquetFile(written[0]).num_row_groups == 4
