"""Weights of encoders at an address: whole, of the checksum that was published or was met first."""

from __future__ import annotations

import hashlib

import pytest
import torch
from bad_server import PAGE

from clip_ood.backbones.remote import Remote
from clip_ood.files.download import DownloadError


def weights(server, folder, place):
    return Remote(folder, url=f"http://127.0.0.1:{server.server_port}/{place}")


@pytest.fixture
def checkpoint(server, tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "made.pt")
    server.content = (tmp_path / "made.pt").read_bytes()
    return server


@pytest.mark.parametrize("place", ["openaipublic/{}/ViT.pt", "mlfoundations/vit-{:.8}.pt"])
def test_weights_have_the_checksum_in_their_address(place, checkpoint, tmp_path):
    remote = weights(checkpoint, tmp_path / "cache", place.format(hashlib.sha256(checkpoint.content).hexdigest()))
    assert remote.fetch(True).read_bytes() == checkpoint.content
    remote.fetch(True).write_bytes(checkpoint.content[:500])  # cut off
    assert remote.fetch(True).read_bytes() == checkpoint.content and len(checkpoint.asked) == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [remote.url.rpartition("/")[2]]
    other = weights(checkpoint, tmp_path / "other", place.format("0" * 64))
    with pytest.raises(DownloadError, match="and by its address begins with 0000"):
        other.fetch(True)


def test_weights_without_one_are_whole_and_recorded(checkpoint, tmp_path, capsys):
    remote = weights(checkpoint, tmp_path / "cache", "ijepa/weights.pth.tar")
    checkpoint.breaks_after = 1500
    assert remote.fetch(True).read_bytes() == checkpoint.content and len(checkpoint.asked) > 1
    assert f"kept in {tmp_path}/cache/weights.pth.tar.sha256" in capsys.readouterr().out
    (tmp_path / "cache" / "weights.pth.tar").write_bytes(PAGE)
    assert remote.fetch(True).read_bytes() == checkpoint.content
    assert "weights.pth.tar: it is a web page" in capsys.readouterr().out


def test_a_page_never_becomes_the_weights(checkpoint, tmp_path):
    checkpoint.content = PAGE
    with pytest.raises(DownloadError, match="it is a web page, and no checkpoint of torch"):
        weights(checkpoint, tmp_path / "cache", "vit.pt").fetch(True)
    assert list((tmp_path / "cache").iterdir()) == []
