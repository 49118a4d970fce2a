"""Loading without the garbage collector."""

from __future__ import annotations

import gc
import sys

import pytest

from clip_ood.process.loading import loading


@pytest.fixture
def no_torch(monkeypatch):
    frozen = gc.get_freeze_count()
    monkeypatch.delitem(sys.modules, "torch")
    yield
    if not frozen:
        gc.unfreeze()


def test_nothing_is_collected_meanwhile_and_what_was_made_stays(no_torch):
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() > 1000


def test_an_import_that_fails_leaves_the_collector_on(no_torch):
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_it_does_nothing_where_torch_is_loaded_or_the_collector_is_off(no_torch, monkeypatch):
    before = gc.get_freeze_count()
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()
    gc.enable()
    monkeypatch.setitem(sys.modules, "torch", gc)
    with loading():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
