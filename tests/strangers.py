"""Encoders and detector folders as somebody would write them to have code run or hosts asked by whoever opens them."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from tiny_clip import CLIP, PREPROCESSING

from clip_ood.backbones.fingerprint import fingerprint, sha256
from clip_ood.backbones.spec import ImageSpec
from clip_ood.detect.manifest import sealed

BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 16, "vocab_size": 12, "pad_token_id": 0}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat", "dog", "fox", "."]
READ_TEXT = {"hf_model_name": "{folder}", "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"}
READ_TEXT |= {"hf_tokenizer_name": "{folder}", "context_length": 8}
ASKS = {"auto_map": {"AutoTokenizer": ["payload.Own", None], "AutoConfig": "payload.Own", "AutoModel": "payload.Own"}}
TRUSTING = {"hf_tokenizer_name": "{folder}", "tokenizer_kwargs": {"trust_remote_code": True}}
TRUSTING = {"text": TRUSTING, "tokenizer": ASKS | {"tokenizer_class": None}}


class Watch:
    """What was tried: files that a payload wrote, hosts that were asked."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.marker, self.asked = folder / "ran", []

        def refuse(*address: Any, **more: Any) -> None:
            self.asked.append(address)
            raise OSError("no host is to be asked")

        real = socket.socket.connect

        def connect(own: socket.socket, address: Any) -> None:
            if own.family == getattr(socket, "AF_UNIX", None):  # of processes on this machine
                return real(own, address)
            return refuse(address)

        monkeypatch.setattr(socket.socket, "connect", connect)
        monkeypatch.setattr(socket, "create_connection", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    def saw_nothing(self) -> bool:
        return not self.marker.exists() and self.asked == []


def encoder(folder: Path, clip: Path, marker: Path, text: dict[str, Any], **more: Any) -> Path:
    """A folder of open_clip with a payload in it: `text` and `more` are added to its text_cfg and vision_cfg, `config` and
    `tokenizer` to the files of transformers. Weights are those of `clip`, which the config may not fit."""
    shutil.copytree(clip, folder)
    text = json.loads(json.dumps(text).replace("{folder}", str(folder)))
    vision = CLIP["vision_cfg"] | more.get("vision", {})
    model = CLIP | {"vision_cfg": vision, "text_cfg": (text if "hf_model_name" in text else CLIP["text_cfg"] | text)}
    described = {"model_cfg": model | more.get("model", {}), "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    (folder / "config.json").write_text(json.dumps(BERT | more.get("config", {})))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = {"tokenizer_class": "BertTokenizer"} | more.get("tokenizer", {})
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "payload.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own:\n    pass\n")
    return folder


def in_cache(cache: Path, repository: str, folder: Path, commit: str = "c0ffee" * 6 + "abcd") -> str:
    """`folder` as a repository in the Hugging Face cache; how a model of it is named."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots").mkdir()
    os.symlink(folder, place / "snapshots" / commit)
    return f"hf-hub:{repository}"


def detector(folder: Path, run: Path, known: bool = True, **changes: Any) -> Path:
    """The detector folder of `run` with another encoder, sealed as a run seals it; with the fingerprint of that, if it is `known`."""
    if not folder.exists():
        shutil.copytree(run / "detector", folder)
    manifest = json.loads((folder / "detector.json").read_text())
    spec = manifest["encoder"]["spec"] | {key: value for key, value in changes.items() if key != "in_folder"}
    manifest["encoder"] |= {"spec": spec, "in_folder": changes.get("in_folder", False)}
    if known:
        manifest["encoder"]["fingerprint"] = fingerprint(ImageSpec(**spec), folder.parent / "hashes.json")
    return seal(folder, manifest)


def seal(folder: Path, manifest: dict[str, Any]) -> Path:
    """Writes a manifest with the digests of what lies in the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "detector.json"]
    manifest["files"] |= {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    (folder / "detector.json").write_text(json.dumps(sealed(manifest), default=list))
    return folder
