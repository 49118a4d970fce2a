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
from clip_ood.folder.embeddings import write_embeddings
from clip_ood.folder.groups import Group
from clip_ood.folder.principal import plane
from clip_ood.folder.ranking import Ranking
from clip_ood.folder.suspects import Folder
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


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK", 3)
    rows = features(8).half()
    paths = [os.fsdecode(b"caf\xe9.png"), *(f"{number}.png" for number in range(7))]
    folder = Folder(
        paths=paths,
        identities=np.arange(16, dtype=np.uint64).reshape(8, 2),
        labels=["cat", None] * 4,
        first=np.arange(8),
        nearest=np.full(8, -1),
        cosines=np.full(8, np.nan),
        points=np.zeros((8, 2)),
        scores={"knn": np.r_[np.nan, np.arange(7.0)]},
    )
    ranking = Ranking(np.linspace(0, 1, 8), [Group(np.array([1, 5]), 2.0)], {})
    path = tmp_path / "folder.parquet"
    write_embeddings(path, folder, ranking, Rows([rows[:5], rows[5:]]), {"model": "ViT-B-16"}, "resize to 224")
    return path, folder, rows


def test_other_programs_read_what_was_written(written):
    path, folder, rows = written
    table = pq.read_table(path)
    assert paths_of(table) == folder.paths
    assert np.array_equal(np.stack(table["features"].to_numpy()), rows.float().numpy())
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[6]"
    assert table["group"].to_pylist() == [None, 1, None, None, None, 1, None, None]
    assert table["score"].to_pylist() == pytest.approx(np.linspace(0, 1, 8))
    assert table["score_knn"].to_pylist() == [None, *map(float, range(7))]
    assert table["label"].to_pylist() == folder.labels and table["image"][0].as_py() == folder.image(0)
    assert json.loads(table.schema.metadata[b"encoder"]) == {"model": "ViT-B-16"}
    assert table.schema.metadata[b"preprocessing"] == b"resize to 224"


def test_rows_are_written_block_by_block(written):
    assert pq.ParquetFile(written[0]).num_row_groups == 3


def test_duckdb_reads_it(written):
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb: pip install duckdb")
    found = duckdb.sql(f"select path, \"group\", features[1] from '{written[0]}' order by score limit 2").fetchall()
    assert found[0][0] == "caf\\xe9.png" and found[1][1] == 1 and found[0][2] == pytest.approx(float(written[2][0, 0]))
