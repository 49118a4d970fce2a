"""A folder of somebody else's is data: whatever it says, no code of it runs and no host is asked, by no command."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import huggingface_hub
import judged_run
import open_clip
import pytest
import strangers
import tiny_clip
import torch

import detect
import eval as evaluation
import train
from clip_ood import load
from clip_ood.detect.save import add_encoder
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError

pytestmark = pytest.mark.slow

COMMANDS = {
    "load": lambda folder, out: load(folder),
    "judge": lambda folder, out: detect.main(["--run", str(folder), str(folder)]),
    "export": lambda folder, out: detect.main(["--run", str(folder), "--export", str(out / "model.pt2")]),
    "with_encoder": lambda folder, out: detect.main(["--run", str(folder), "--with-encoder"]),
}
ASKING = {  # what the encoder's folder says, and what the error names
    "tokenizer_kwargs": (strangers.TRUSTING, "tokenizer_kwargs.trust_remote_code"),
    "a file": ({"text": {"tokenizer_kwargs": {"bpe_path": "/etc/hostname"}}}, "tokenizer_kwargs.bpe_path"),
    "timm on the hub": ({"vision": {"timm_model_name": "hf-hub:somebody/else"}}, "timm_model_name"),
    "timm in capitals": ({"vision": {"timm_model_name": "HF_HUB:somebody/else"}}, "timm_model_name"),
    "timm in a folder": ({"vision": {"timm_model_name": "local-dir:else"}}, "timm_model_name"),
    "another key": ({"model": {"custom_load": "hf"}}, "model_cfg.custom_load"),
    "another kind": ({"vision": {"width": "32"}}, "vision_cfg.width is \"32\", and must be a whole number"),
}  # fmt: skip


def evil(tmp_path, root, watch, what, spelling, hub):
    """The name of a model whose description asks for what it may not."""
    folder = strangers.encoder(tmp_path / "evil", root / "clip", watch.marker, **({"text": {}} | what))
    return f"local-dir:{folder}" if spelling == "local-dir" else strangers.in_cache(hub, "somebody/evil", folder)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("spelling", ["local-dir", "hf-hub"])
@pytest.mark.parametrize("asking", ASKING)
def test_an_encoder_that_asks_for_more_than_its_data_is_refused(
    asking, spelling, command, root, run, tmp_path, watch, hub
):
    what, named = ASKING[asking]
    folder = strangers.detector(tmp_path / "copy", run, model=evil(tmp_path, root, watch, what, spelling, hub))
    with pytest.raises(ValueError, match=r"open_clip_config\.json") as error:
        COMMANDS[command](folder, tmp_path)
    assert named in str(error.value) and "\n" not in str(error.value)
    assert watch.saw_nothing()


OF_TRANSFORMERS = {  # beside the encoder, for whoever reads texts with it
    "tokenizer": (
        {"tokenizer": strangers.ASKS | {"tokenizer_class": "Own"}},
        r"tokenizer_config\.json: .*(auto_map|tokenizer_class)",
    ),
    "tokenizer's class": ({"tokenizer": {"tokenizer_class": "AutoModel"}}, r"tokenizer_class is \"AutoModel\""),
    "text tower": ({"config": strangers.ASKS | {"model_type": "own"}}, r"/config\.json: .*(auto_map|model_type)"),
    "kernel": ({"config": {"attn_implementation": "somebody/kernel"}}, r"/config\.json: .*attn_implementation"),
    "another config": ({"config": {"configuration_files": ["config.4.0.0.json"]}}, r"configuration_files"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("asking", OF_TRANSFORMERS)
def test_who_judges_images_opens_nothing_of_a_text_tower(asking, command, root, run, tmp_path, watch):
    pytest.importorskip("transformers")
    what, _ = OF_TRANSFORMERS[asking]
    plain = strangers.encoder(tmp_path / "plain", root / "clip", watch.marker, strangers.READ_TEXT)
    model = open_clip.create_model(f"local-dir:{plain}", load_weights=False, pretrained_text=False)
    folder = strangers.encoder(tmp_path / "evil", root / "clip", watch.marker, strangers.READ_TEXT, **what)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    watch.marker.unlink(missing_ok=True)
    copy = strangers.detector(tmp_path / "copy", run, model=f"local-dir:{folder}")
    if command == "judge":
        with pytest.raises(SystemExit):
            COMMANDS[command](copy, tmp_path)
    else:
        COMMANDS[command](copy, tmp_path)
    assert watch.saw_nothing()


@pytest.mark.parametrize("script", [train, evaluation])
@pytest.mark.parametrize("asking", [*ASKING, *OF_TRANSFORMERS])
def test_runs_refuse_such_an_encoder_before_anything_is_loaded(script, asking, root, tmp_path, watch, hub):
    text = strangers.READ_TEXT if asking in OF_TRANSFORMERS else {}
    what, named = (ASKING | OF_TRANSFORMERS)[asking]
    model = evil(tmp_path, root, watch, {"text": text} | what, "local-dir", hub)
    method = {"zero_shot": {}} if script is evaluation else judged_run.PROBE
    file = tiny_clip.config(root, "evil", method)
    for key in ("backbone.model", "backbone.text.model"):
        with pytest.raises(UserError, match=re.escape(named) if asking in ASKING else named) as error:
            script.main(["--config", file, f"--{key}={model}"])
        assert "\n" not in str(error.value)
    assert watch.saw_nothing() and not (root / "runs" / "evil").exists()


def test_runs_refuse_such_a_model_of_the_hub_once_they_see_it(root, tmp_path, watch, hub):
    what = ASKING["tokenizer_kwargs"][0]
    model = evil(tmp_path, root, watch, what, "hf-hub", hub)
    file = tiny_clip.config(root, "evil_hub", {"zero_shot": {}})
    with pytest.raises(ValueError, match=r"somebody/evil cannot be loaded: .*trust_remote_code"):
        evaluation.main(["--config", file, f"--backbone.model={model}"])
    assert watch.saw_nothing()


# Encoders that are elsewhere


ELSEWHERE = {  # encoders that are not on this machine; where they would come from, and how large they are
    "open_clip's tag": ({"model": "ViT-B-32", "pretrained": "openai"}, r"https://huggingface\.co/timm/\S* to .*hub: about 0\.6 GB"),
    "timm's weights": ({"library": "timm", "model": "test_vit", "pretrained": "default"}, r"https://huggingface\.co/timm/test_vit\S* to .*: about 0\.0 GB"),
    "a hub's model": ({"model": "hf-hub:somebody/else"}, r"configuration would be downloaded from https://huggingface\.co/somebody/else to .*size is not known"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", ELSEWHERE)
def test_what_would_be_downloaded_is_said_and_no_host_is_asked(where, command, run, tmp_path, watch):
    keys, message = ELSEWHERE[where]
    folder = strangers.detector(tmp_path / "copy", run, known=False, **keys)
    with pytest.raises(ValueError, match=message) as error:
        COMMANDS[command](folder, tmp_path)
    assert "--allow-download" in str(error.value) and "allow_download=True" in str(error.value)
    assert "\n" not in str(error.value) and watch.saw_nothing()


def test_a_host_is_asked_where_that_is_allowed(run, tmp_path, watch):
    folder = strangers.detector(tmp_path / "copy", run, known=False, model="hf-hub:somebody/else")
    with pytest.raises(ValueError, match="somebody/else"):
        load(folder, allow_download=True)
    assert watch.asked
    watch.asked.clear()
    with pytest.raises(ValueError, match="somebody/else"):
        detect.main(["--run", str(folder), str(folder), "--allow-download"])
    assert watch.asked


def test_weights_are_fetched_where_that_is_allowed_and_kept(root, run, tmp_path, watch, hub, monkeypatch):
    def download(repository, file, cache_dir):
        if not (root / "clip" / file).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(file)
        if not (hub / "models--somebody--tiny").exists():
            strangers.in_cache(hub, repository, root / "clip")
        return str(root / "clip" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda api, name: SimpleNamespace(sha="c0ffee" * 6 + "abcd")
    )
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: SimpleNamespace(size=10**9))
    model = "hf-hub:somebody/tiny"
    folder = strangers.detector(tmp_path / "copy", run, known=False, model=model)
    manifest = json.loads((folder / "detector.json").read_text())
    weights = f"somebody/tiny@{'c0ffee' * 6}abcd"
    manifest["encoder"]["fingerprint"] = {
        "library": "open_clip",
        "model": model,
        "precision": "fp32",
        "weights": weights,
    }
    strangers.seal(folder, manifest)
    with pytest.raises(ValueError, match="--allow-download"):
        load(folder)
    images = sorted((root / "data" / "near").iterdir())
    expected = [prediction.score for prediction in load(run)(images)]
    for allowed in (True, False):  # the second time it is there
        assert [prediction.score for prediction in load(folder, allow_download=allowed)(images)] == expected
    assert watch.saw_nothing()


# Encoders of timm, and inside the folder


@pytest.mark.parametrize(
    "model", ["hf-hub:somebody/else", "hf_hub:somebody/else", "HF-HUB:somebody/else", "local-dir:else", "./else"]
)
@pytest.mark.parametrize(
    "command, in_folder",
    [(each, inside) for each in COMMANDS for inside in (True, False) if (each, inside) != ("with_encoder", True)],
)  # --with-encoder reads none that is inside
def test_an_encoder_of_timm_is_one_that_timm_knows(command, in_folder, model, run, tmp_path, watch):
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    keys = {"library": "timm", "model": model, "pretrained": None, "in_folder": in_folder}
    folder = strangers.detector(tmp_path / "copy", run, known=False, **keys)
    with pytest.raises(ValueError, match="timm has no model"):
        COMMANDS[command](folder, tmp_path)
    assert watch.saw_nothing()


@pytest.mark.parametrize("asking", ASKING)
def test_an_encoder_inside_the_folder_is_all_that_is_read(asking, root, run, tmp_path, watch):
    folder = strangers.detector(tmp_path / "copy", run, model=f"local-dir:{root}/clip")
    add_encoder(SavedDetector(folder))
    file = folder / "encoder" / "architecture" / "open_clip_config.json"
    described = json.loads(file.read_text())
    what, named = ASKING[asking]
    for key, part in (("text", "text_cfg"), ("vision", "vision_cfg")):
        described["model_cfg"][part] |= what.get(key, {})
    described["model_cfg"] |= what.get("model", {})
    file.write_text(json.dumps(described))
    strangers.seal(folder, json.loads((folder / "detector.json").read_text()))
    if "text" in what:  # which is not used
        assert load(folder).column == "knn"
    else:
        with pytest.raises(ValueError, match=r"open_clip_config\.json") as error:
            load(folder)
        assert named in str(error.value)
    assert watch.saw_nothing()


# Manifests and links


@pytest.mark.parametrize(
    "change, message",
    [
        ({"trust_remote_code": True}, "key 'encoder.trust_remote_code'"),
        ({"features": "load"}, "encoder.features is \"load\", and must be 'float32', 'float16'"),
        ({"autocast": ["float16"]}, "encoder.autocast is"),
        ({"spec": {"library": "os", "model": "system"}}, "encoder.spec.library is \"os\", and must be 'open_clip', 'timm'"),
        ({"spec": {"library": "timm", "model": ["a"]}}, "encoder.spec.model is"),
        ({"spec": {"library": "timm"}}, "the key encoder.spec.model is missing"),
    ],
)  # fmt: skip
def test_a_manifest_names_an_encoder_and_nothing_else(change, message, run, tmp_path, watch):
    folder = strangers.detector(tmp_path / "copy", run, known=False)
    manifest = json.loads((folder / "detector.json").read_text())
    manifest["encoder"] |= change
    strangers.seal(folder, manifest)
    with pytest.raises(ValueError) as error:
        load(folder)
    assert message in str(error.value) and watch.saw_nothing()


@pytest.mark.parametrize("outside", ["../bank-00000.safetensors", "/etc/hostname", "encoder/../../x"])
def test_a_manifest_names_files_of_its_folder(outside, run, tmp_path):
    folder = strangers.detector(tmp_path / "copy", run, known=False)
    manifest = json.loads((folder / "detector.json").read_text())
    manifest["files"][outside] = "0" * 64
    strangers.seal(folder, manifest)
    with pytest.raises(ValueError, match="names a file outside its folder"):
        SavedDetector(folder)


@pytest.mark.parametrize(
    "place", ["encoder", "encoder/architecture", "encoder/architecture/open_clip_config.json", "detector.json.tmp"]
)
def test_links_in_a_folder_lead_no_write_elsewhere(place, root, run, tmp_path):
    folder = strangers.detector(tmp_path / "copy", run, model=f"local-dir:{root}/clip")
    other = tmp_path / "other"
    if place.endswith(("json", "tmp")):
        other.write_text("mine")
    else:
        other.mkdir()
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).symlink_to(other)
    assert add_encoder(SavedDetector(folder))
    assert other.read_text() == "mine" if other.is_file() else list(other.iterdir()) == []
    assert load(folder).column == "knn"
