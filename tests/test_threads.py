"""Small computations take one thread, and leave the number of threads as they found it."""

import pytest
import torch

from clip_ood.detectors import gaussian
from clip_ood.lightning_modules import batches
from clip_ood.metrics import ood
from clip_ood.metrics.metric import OODMetrics
from clip_ood.threads import one_thread


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def noting(monkeypatch, place, name) -> list[int]:
    """Returns a list of how many threads torch has at each call of a function."""
    function, seen = getattr(place, name), []

    def noted(*args, **kwargs):
        seen.append(torch.get_num_threads())
        return function(*args, **kwargs)

    monkeypatch.setattr(place, name, noted)
    return seen


def test_one_thread_inside_and_as_many_as_before_afterwards_whatever_happens():
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    with one_thread(small=False):
        assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_a_single_thread_stays_a_single_thread():
    torch.set_num_threads(1)
    with one_thread():
        pass
    assert torch.get_num_threads() == 1
    torch.set_num_threads(3)


@pytest.mark.parametrize(("rows", "threads"), [(8, 1), (9, 3)])
def test_eigendecompositions_of_small_matrices(monkeypatch, rows, threads):
    monkeypatch.setattr(gaussian, "WIDE", 8)
    seen = noting(monkeypatch, torch.linalg, "eigh")
    gaussian.eigh(torch.eye(rows))
    assert seen == [threads]


def test_metrics(monkeypatch):
    seen = noting(monkeypatch, torch.Tensor, "sort")
    ood.ood_metrics(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0)
    metric = OODMetrics()
    metric.update(torch.tensor([3.0, 4.0, 1.0, 2.0]), torch.tensor([1, 1, 0, 0]))
    metric.compute()
    assert len(seen) >= 2 and set(seen) == {1}


@pytest.mark.parametrize(("width", "threads"), [(4, 1), (5, 3)])
def test_batches_of_few_values(monkeypatch, width, threads):
    monkeypatch.setattr(batches, "SMALL", 8)
    features, labels = torch.zeros(4, width), torch.zeros(4, dtype=torch.long)
    seen = noting(monkeypatch, torch.Tensor, "__getitem__")
    for _ in batches.DeviceBatches(features, labels, 2, seed=0):
        assert torch.get_num_threads() == 3
    assert threads in seen
    assert (1 in seen) == (threads == 1)
