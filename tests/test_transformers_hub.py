"""Models of transformers on the Hugging Face hub: what is said before downloads, and of what cannot be had."""

from __future__ import annotations

import huggingface_hub
import pytest
import strangers

from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.downloads import WouldDownload, require_here
from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.backbones.weights import announce
from clip_ood.config.schema import BackboneConfig


def hub_spec(pretrained="default"):
    return BackboneConfig(library="transformers", model="someone/tiny", pretrained=pretrained)


def test_a_model_in_the_cache_needs_no_host_and_is_known_by_its_commit(tiny_model, tmp_path, watch, hub):
    strangers.in_cache(hub, "someone/tiny", tiny_model("clip")[0], commit="c0ffee")
    own = hub_spec()
    assert own.reads_text and fingerprint(own, tmp_path / "hashes.json")["weights"] == "someone/tiny@c0ffee"
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # which the fixture sets back
    ours = create_backbone(own, download=False)
    assert ours.encode_text(["a cat"]).shape == (1, 24) and watch.saw_nothing()


def test_what_is_not_here_is_told_before_it_is_downloaded(hub, monkeypatch, capsys):
    with pytest.raises(
        WouldDownload, match=r"its configuration would be downloaded from https://huggingface\.co/someone/tiny"
    ):
        require_here(hub_spec())
    with pytest.raises(WouldDownload):
        create_backbone(hub_spec(), download=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for ask in (announce, create_backbone):
        with pytest.raises(ConnectionError, match=r"someone/tiny are not in the local cache.*downloaded to"):
            ask(hub_spec())
    assert "Downloading someone" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "GatedRepoError",
            r"someone/tiny is gated: accept its licence there, then sign in with `hf auth login` or set HF_TOKEN",
        ),
        (
            "RepositoryNotFoundError",
            "The Hugging Face hub has no repository someone/tiny, or it is private: check the name",
        ),
    ],
)
def test_gated_and_missing_repositories_are_told_in_a_line(error, told, hub, monkeypatch):
    import httpx

    cls = getattr(huggingface_hub.utils, error)
    answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))

    def refuse(*asked, **more):
        raise cls("403", response=answer)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    for ask in (announce, create_backbone, lambda spec: spec.reads_text):
        with pytest.raises(ConnectionError, match=told):
            ask(hub_spec())
