"""Small computations take one thread, and leave the number of threads as they found it."""

from threading import Barrier

import pytest
import torch

from clip_ood.detectors import gaussian
from clip_ood.detectors.neighbours import nearest
from clip_ood.lightning_modules import batches
from clip_ood.metrics import ood
from clip_ood.metrics.metric import OODMetrics
from clip_ood.threads import check_wanted, one_thread, side_by_side


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


@pytest.mark.parametrize(("parts", "threads"), [(0, None), (1, 3), (2, 1), (3, 1), (7, 1)])
def test_every_part_is_worked_on_once_by_threads_that_share_those_of_torch(parts, threads):
    seen, before = {}, torch.__config__.parallel_info()  # which also tells MKL's number
    side_by_side(lambda part: seen.update({part: torch.get_num_threads()}), range(parts))
    assert seen == dict.fromkeys(range(parts), threads)
    assert torch.__config__.parallel_info() == before


@pytest.mark.parametrize("inference", [False, True])
def test_work_side_by_side_is_done_in_the_mode_of_the_caller_and_without_autograd(inference):
    weight, made = torch.ones(2, requires_grad=True), [None] * 4

    def work(part):
        made[part] = 2 * weight

    with torch.inference_mode(inference):
        side_by_side(work, range(4))
    assert [each.is_inference() for each in made] == [inference] * 4
    assert not any(each.requires_grad for each in made)


def test_an_error_in_a_part_is_raised():
    def work(part):
        if part == 5:
            raise ZeroDivisionError(part)

    with pytest.raises(ZeroDivisionError, match="5"):
        side_by_side(work, range(9))


def test_nobody_waits_for_the_parts_beside_one_that_fails():
    begun = Barrier(2)

    def work(part):
        begun.wait(timeout=60)
        if part == 0:
            raise ZeroDivisionError
        while True:
            check_wanted()

    with pytest.raises(ZeroDivisionError):
        side_by_side(work, range(2))
    check_wanted()  # in this thread, all is wanted


@pytest.mark.parametrize("count", [1, 255, 256, 700, 1025, 3100])
@pytest.mark.parametrize("k", [1, 7])
def test_neighbours_are_the_same_whatever_the_number_of_threads(count, k):
    generator = torch.Generator().manual_seed(count)
    queries, bank = torch.randn(count, 8, generator=generator), torch.randn(900, 8, generator=generator)
    found = nearest(queries, [bank[:300], bank[300:]], k)
    expected = (queries.double() @ bank.double().T).topk(k, dim=1)
    assert torch.equal(found[1], expected.indices)
    torch.testing.assert_close(found[0].double(), expected.values, rtol=1e-6, atol=1e-6)
    torch.set_num_threads(1)
    assert torch.equal(nearest(queries, [bank[:300], bank[300:]], k)[1], found[1])
    torch.set_num_threads(3)
