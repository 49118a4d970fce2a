"""Batches of columns: each row is judged, or its error says why not, whatever the other rows are."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from clip_ood import load
from clip_ood.detect.batches import NOT_FINITE
from clip_ood.errors import UserError

pytestmark = pytest.mark.slow


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_columns_that_are_no_images_are_refused(run):
    with pytest.raises(UserError, match="columns picture, id, and none of image, bytes, path: rename"):
        load(run)({"picture": [], "id": []})
    with pytest.raises(UserError, match="A batch has score, error among its columns"):
        load(run)({"path": [], "error": [], "score": []})
    with pytest.raises(UserError, match="load one detector"):
        load(run, detector="all")({"path": []})


@pytest.mark.parametrize(
    "batch",
    [{"path": "a.png"}, {"bytes": b"x"}, {"image": {"bytes": b"x", "path": None}}, {"image": pixels(3, 30, 40, 3)}],
)
def test_one_row_is_no_batch(run, batch):
    with pytest.raises(UserError, match="holds one row, and a batch of rows is judged: call map with batched=True"):
        load(run)(batch)


def test_columns_of_pandas_are_taken_by_their_place(run, root):
    pd = pytest.importorskip("pandas")
    paths = [str(root / "data" / "near" / f"{number}.png") for number in range(3)]
    frame = pd.DataFrame({"path": paths}, index=[2, 0, 1])
    predictor = load(run)
    expected = [each.score for each in predictor(paths)]
    assert predictor({"path": frame["path"]})["score"].tolist() == pytest.approx(expected)
    for frames in (frame, pa.table({"path": paths})):
        with pytest.raises(UserError, match=r"A batch is a mapping of columns, and no (DataFrame|Table)"):
            predictor(frames)


def test_an_odd_row_leaves_the_others_as_they_are(run):
    grey = pixels(0, 40, 40)
    odd = [
        pixels(1, 2, 40, 40, 3),
        pixels(2, 4, 5, 7),
        None,
        "s3://key:secret@bucket/a.jpg",
        2 * torch.ones(3, 8, 8).numpy(),
        grey.tolist(),
        np.array([*grey, None], object),
        np.zeros((3, 8, 8), np.longdouble),
        float("nan"),
        7,
        pixels(4, 100),
    ]
    whole = [Image.fromarray(grey), BytesIO(portable(grey))]
    found = load(run)({"image": [grey[:, :, None], *odd, *whole], "id": list(range(14))})
    assert found["id"] == list(range(14))
    assert [bool(error) for error in found["error"]] == [False, *11 * [True], False, False]
    assert found["score"][0] == pytest.approx(found["score"][12], rel=1e-6) and np.isnan(found["score"][1:12]).all()
    assert found["is_ood"][1:12] == 11 * [None] and found["copy_of"][1:12] == 11 * [""]
    assert found["error"][6].startswith("a list is no image: expected a picture")
    assert found["error"][9] == "the row holds no image"


def portable(grey: np.ndarray) -> bytes:
    with BytesIO() as file:
        Image.fromarray(grey).save(file, "png")
        return file.getvalue()


def test_an_image_that_the_encoder_has_no_numbers_for_is_no_id_image(run, monkeypatch):
    predictor, images = load(run), [Image.fromarray(pixels(seed, 40, 40, 3)) for seed in range(3)]
    expected, real = predictor({"image": images}), predictor.backbone.encode_image

    def overflowing(batch):
        features = real(batch)
        return features.index_fill(0, torch.tensor([1]), torch.inf)

    monkeypatch.setattr(predictor.backbone, "encode_image", overflowing)
    found = predictor({"image": images})
    assert found["error"] == ["", NOT_FINITE, ""] and found["is_ood"][1] is None
    assert np.isnan(found["p_value"][1])
    assert found["score"][[0, 2]] == pytest.approx(expected["score"][[0, 2]], rel=1e-6)


def test_a_batch_of_no_rows_has_the_columns(run):
    found = load(run)({"image": [], "id": []})
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, 0) and "score" in found
