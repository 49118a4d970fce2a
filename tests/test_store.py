"""Sets of images, words and strings under one encoder, as the feature store keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clip_ood.features.identity import identity_of, pairs
from clip_ood.features.store import FeatureStore, TextEmbeddings
from clip_ood.features.stored_set import Known

PROJECT = Path(__file__).parents[1]
FP32, BF16 = {"precision": "fp32", "model": "a"}, {"precision": "bf16", "model": "a"}


def in_memory(numbers):
    """A list of images that are known by their number."""
    return Known([*map(str, numbers)], pairs([identity_of(str(number)) for number in numbers]))


def fill(stored, features, embeddings=None, errors=None):
    arrays = {"features": features} | ({} if embeddings is None else {"embeddings": embeddings})
    stored.add(stored.identities_of(np.arange(len(features))), arrays, errors)
    stored.refresh()


@pytest.mark.parametrize(("fingerprint", "dtype"), [(FP32, torch.float32), (BF16, torch.float16)], ids=["fp32", "bf16"])
def test_what_is_written_is_what_is_opened(tmp_path, fingerprint, dtype):
    store = FeatureStore(tmp_path, fingerprint)
    stored = store.image_set("cats", in_memory(range(10)), ("features", "embeddings"))
    assert stored.missing().tolist() == list(range(10))
    features, embeddings = torch.randn(10, 3), torch.randn(10, 2)
    fill(stored, features, embeddings)
    assert not len(stored.missing())
    found = FeatureStore(tmp_path, fingerprint).image_set("dogs", in_memory([7, 2]), ("features", "embeddings")).open()
    assert torch.equal(found.features.take(torch.arange(2)), features[[7, 2]].to(dtype))
    assert torch.equal(found.embeddings.take(torch.arange(2)), embeddings[[7, 2]].to(dtype))
    assert found.valid.all() and np.array_equal(found.identities, in_memory([7, 2]).identities())


def test_unreadable_rows_are_masked_and_say_why(tmp_path):
    stored = FeatureStore(tmp_path, FP32).image_set("cats", in_memory(range(10)))
    features = torch.randn(10, 3)
    features[6] = torch.nan  # whatever an encoder says of a blank image
    fill(stored, features, errors={1: "OSError: torn", 6: "ValueError: no picture"})
    found = stored.open()
    assert [row for row, valid in enumerate(found.valid.tolist()) if not valid] == [1, 6]
    assert stored.unreadable() == [("1", "OSError: torn"), ("6", "ValueError: no picture")]
    assert not found.features.take(torch.tensor([1, 6])).any()


@pytest.mark.parametrize(
    ("fingerprint", "value"), [(FP32, torch.nan), (FP32, -torch.inf), (BF16, 1e5)], ids=["nan", "inf", "above float16"]
)
@pytest.mark.parametrize("part", ["features", "embeddings"])
def test_features_that_are_not_finite_are_an_error(tmp_path, fingerprint, value, part):
    stored = FeatureStore(tmp_path, fingerprint).image_set("cats", in_memory(range(4)), ("features", "embeddings"))
    values = {"features": torch.randn(4, 3), "embeddings": torch.randn(4, 3)}
    values[part][1:3, 0] = value
    with pytest.raises(ValueError, match=r"Image set cats: 2 of 4 images .* Try backbone.precision=fp32"):
        fill(stored, values["features"], values["embeddings"])
    assert len(stored.missing()) == 4


def test_missing_features_are_an_error_that_counts_them(tmp_path):
    store = FeatureStore(tmp_path, FP32)
    fill(store.image_set("few", in_memory(range(3))), torch.randn(3, 2))
    with pytest.raises(FileNotFoundError, match="Image set cats: the features of 7 of 10 images are missing"):
        store.image_set("cats", in_memory(range(10))).open()


def test_text_embeddings_are_entries_of_their_own(tmp_path):
    store = FeatureStore(tmp_path, FP32)
    embeddings = torch.randn(3, 3)
    assert store.missing_texts(["a cat", "a dog", "a cat"]) == ["a cat", "a dog"]
    store.write_texts(["a cat", "a dog", "a fox"], TextEmbeddings(embeddings, 1 / 0.07))
    store.texts.refresh()
    found = store.texts_of(["a dog", "a cat", "a dog"])
    assert torch.equal(found.embeddings, embeddings[[1, 0, 1]]) and found.logit_scale == 1 / 0.07
    assert store.missing_texts(["a dog", "a cow"]) == ["a cow"]
    assert FeatureStore(tmp_path, BF16).missing_texts(["a cat"]) == ["a cat"]
    with pytest.raises(ValueError, match="text encoder gives NaN or Inf"):
        store.write_texts(["x"], TextEmbeddings(torch.full((1, 3), torch.nan), 1.0))


def test_only_arrays_that_are_missing_are_written(tmp_path):
    store = FeatureStore(tmp_path, FP32)
    numbers = in_memory(range(4))
    fill(store.image_set("cats", numbers), torch.full((4, 3), 1.0), errors={3: "torn"})
    both = store.image_set("cats", in_memory(range(6)), ("features", "layers.3"))
    assert both.missing().tolist() == list(range(6)) and not len(both.derivable(both.missing()))
    identities = both.identities_of(np.arange(6))
    both.add(
        identities,
        {"features": torch.full((6, 3), 2.0), "layers.3": torch.full((6, 2, 2), 2.0)},
        {3: "torn", 5: "torn"},
    )
    both.refresh()
    found = store.images.rows(identities, ["features", "layers.3"])
    assert found["features"].take(torch.arange(6))[:, 0].tolist() == [1, 1, 1, 0, 2, 0]
    assert found["layers.3"].take(torch.arange(6))[:, 0, 0].tolist() == [2, 2, 2, 0, 2, 0]
    assert both.open().valid.tolist() == [True, True, True, False, True, False] and [
        name for name, _ in both.unreadable()
    ] == ["3", "5"]
    assert store.images.count(["features"]) == store.images.count(["layers.3"]) == store.images.count(["valid"]) == 6
    layers = torch.full((6, 2, 2), torch.nan)
    with pytest.raises(ValueError, match="4 of 6 images have NaN or Inf"):
        both.add(identities, {"layers.3": layers})


def test_an_image_that_fails_when_more_is_made_of_it_has_nothing_blank_stored(tmp_path):
    """For lack of memory, say: another run makes the array that is missing."""
    store = FeatureStore(tmp_path, FP32)
    fill(store.image_set("cats", in_memory(range(4))), torch.arange(8.0).view(4, 2))
    more = store.image_set("cats", in_memory(range(4)), ("features", "layers.3"))
    more.add(more.identities_of(np.arange(4)), {"layers.3": torch.ones(4, 3)}, {1: "no memory"})
    more.refresh()
    assert more.missing().tolist() == [1]
    more.add(more.identities_of(np.array([1])), {"layers.3": torch.full((1, 3), 2.0)})
    more.refresh()
    assert more.open().layers["3"].take(torch.arange(4))[:, 0].tolist() == [1, 2, 1, 1]
