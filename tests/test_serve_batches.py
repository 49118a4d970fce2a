"""Batches across requests, with judges that are played."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from clip_ood.files.unreadable import NO_MEMORY
from clip_ood.serve.batches import LOST, Batches
from clip_ood.serve.judge import Prepared


class Judge:
    """Answers with its own name and the image's; it waits for `go` before each batch."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error, self.batches = name, error, []
        self.predictor = SimpleNamespace(batch_size=4)
        self.go = threading.Event()
        self.go.set()

    def judge(self, images):
        self.go.wait(10)
        self.batches.append([each.name for each in images])
        if self.error is not None:
            raise self.error
        return [[{"path": each.name, "by": self.name}] for each in images]


def prepared(*names: str) -> list[Prepared]:
    return [Prepared(name, torch.zeros(3, 1, 1), b"") for name in names]


@pytest.fixture
def started():
    made = []

    def start(size=None, seconds=0.0, see=lambda found: None, broken=lambda error: None) -> Batches:
        made.append(Batches(size, seconds, see, broken))
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        each.end()


def held(batches: Batches, judge: Judge) -> None:
    """Has the thread wait in a batch, so that what comes gathers behind it."""
    judge.go.clear()
    batches.put(judge, prepared("first"))
    while batches._queue.qsize():
        pass


def test_what_gathers_is_judged_together_in_its_order_up_to_the_size(started):
    batches, judge = started(), Judge("a")
    held(batches, judge)
    waiting = batches.put(judge, prepared(*"abcde")) + batches.put(judge, prepared("f"))
    judge.go.set()
    assert [each.result(10)[0]["path"] for each in waiting] == list("abcdef")
    assert judge.batches == [["first"], list("abcd"), list("ef")]


def test_the_first_image_waits_for_others(started):
    batches, judge = started(size=2, seconds=10.0), Judge("a")
    (one,) = batches.put(judge, prepared("a"))
    (other,) = batches.put(judge, prepared("b"))
    assert (one.result(5), other.result(5)) and judge.batches == [["a", "b"]]


def test_a_batch_has_one_judge(started):
    batches, old, new = started(), Judge("old"), Judge("new")
    held(batches, old)
    waiting = [batches.put(judge, prepared(name))[0] for judge, name in zip((old, new, new, old), "abcd", strict=True)]
    old.go.set()
    assert [each.result(10)[0]["by"] for each in waiting] == ["old", "new", "new", "old"]
    assert old.batches == [["first"], ["a"], ["d"]] and new.batches == [["b", "c"]]


def test_an_error_is_that_of_its_images_alone(started):
    batches = started()
    (failed,) = batches.put(Judge("a", LookupError("a fault")), prepared("a"))
    (short,) = batches.put(Judge("b", MemoryError()), prepared("b"))
    (good,) = batches.put(Judge("c"), prepared("c"))
    with pytest.raises(LookupError):
        failed.result(10)
    assert short.result(10) == [{"path": "b", "error": NO_MEMORY}] and good.result(10)[0]["by"] == "c"


@pytest.mark.skipif(not LOST, reason="this torch has no error of its own for a device that is lost")
def test_a_device_that_is_lost_is_told(started):
    told = []
    batches = started(broken=told.append)
    (failed,) = batches.put(Judge("a", LookupError("a fault")), prepared("a"))
    with pytest.raises(LookupError):
        failed.result(10)
    assert not told
    (failed,) = batches.put(Judge("a", LOST("CUDA error: an illegal memory access")), prepared("a"))
    with pytest.raises(LOST):
        failed.result(10)
    batches.end()
    assert [type(each) for each in told] == [LOST]


def test_the_end_of_the_thread_is_told(started, monkeypatch):
    told = []
    monkeypatch.setattr(Batches, "_judge", lambda *_: 1 / 0)
    batches = started(broken=told.append)
    batches.put(Judge("a"), prepared("a"))
    batches.end()
    assert [type(each) for each in told] == [ZeroDivisionError]


def test_images_are_answered_although_nobody_can_note_them(started, caplog):
    def see(found):
        raise OSError("no space")

    (good,) = started(see=see).put(Judge("a"), prepared("a"))
    assert good.result(10)[0]["by"] == "a" and "could not be noted" in caplog.text


def test_what_waits_at_the_end_is_judged():
    seen = []
    batches, old, new = Batches(None, 0.0, seen.append, seen.append), Judge("old"), Judge("new")
    batches.start()
    held(batches, old)
    waiting = batches.put(old, prepared("a")) + batches.put(new, prepared("b"))
    threading.Timer(0.2, old.go.set).start()
    batches.end()
    assert all(each.done() for each in waiting) and sum(map(len, seen)) == 3


def test_images_for_which_nobody_waits_any_more_are_not_judged(started):
    batches, judge = started(), Judge("a")
    held(batches, judge)
    waiting = batches.put(judge, prepared(*"abcdefgh"))
    for each in waiting[1:6]:
        assert each.cancel()
    judge.go.set()
    assert [each.result(10)[0]["path"] for each in waiting[:1] + waiting[6:]] == ["a", "g", "h"]
    assert judge.batches == [["first"], ["a"], ["g", "h"]]
