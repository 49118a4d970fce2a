"""Encoders before they are loaded: names, fingerprints, remembered hashes, what is said before a download."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import open_clip
import pytest
import timm

from clip_ood.backbones.fingerprint import file_hash, fingerprint
from clip_ood.backbones.model_lists import list_file, models
from clip_ood.backbones.names import check_model
from clip_ood.backbones.weights import announce
from clip_ood.config.schema import BackboneConfig
from clip_ood.process.ranks import RANKS

ROOT = Path(__file__).parent.parent
LAION = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"


def spec(model="ViT-B-32", library="open_clip", **keys):
    return BackboneConfig(model=model, library=library, **keys)


def python(code: str, *arguments, **environment: str) -> subprocess.Popen:
    """Another interpreter at work on `code`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# Names


def told(library: str, cache: Path) -> tuple[str, bool]:
    """What another process says of a model that is there and of one that is not, and whether it imported torch."""
    code = """
import sys
from clip_ood.backbones.model_lists import models
found = models(sys.argv[1])
print("ViT-B-16" in found, "vit_base_patch16_224" in found, "vit_bse" in found, len(found), "torch" in sys.modules)
"""
    out, errors = python(code, library, XDG_CACHE_HOME=str(cache)).communicate()
    *answer, imported = out.split()
    assert not errors, errors
    return " ".join(answer), imported == "True"


def test_names_are_the_libraries_own():
    known = models("open_clip")
    assert known.keys() == set(open_clip.list_models())
    assert all(tags == set(open_clip.list_pretrained_tags_by_model(model)) for model, tags in known.items())
    known = models("timm")
    assert known.keys() == set(timm.list_models())
    weights = {f"{model}.{tag}" for model, tags in known.items() for tag in tags}
    assert set(timm.list_models(pretrained=True)) - known.keys() <= weights


@pytest.mark.slow
@pytest.mark.parametrize("library, rest", [("open_clip", "True False False"), ("timm", "False True False")])
def test_a_library_is_imported_once_a_version(library, rest, tmp_path):
    expected = f"{rest} {len(models(library))}"
    assert told(library, tmp_path) == (expected, True)
    assert told(library, tmp_path) == (expected, False)
    (kept,) = (tmp_path / "clip-ood" / "models").iterdir()
    kept.rename(kept.with_name(f"{library}-0.0.1.json"))  # another version's
    assert told(library, tmp_path) == (expected, True)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"a": 1}', b"\xff", None])
def test_a_damaged_list_is_made_again(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = list_file("timm")
    if damage is None:
        place.mkdir(parents=True)  # nor can it be written
    else:
        place.parent.mkdir(parents=True)
        place.write_bytes(damage)
    models.cache_clear()
    assert models("timm").keys() == set(timm.list_models())
    assert place.is_dir() if damage is None else len(json.loads(place.read_text())) == len(timm.list_models())


@pytest.mark.slow
def test_a_list_that_cannot_be_kept_is_asked_for_each_time():
    expected = f"False True False {len(models('timm'))}"
    for _ in range(2):
        assert told("timm", Path(os.devnull)) == (expected, True)


@pytest.mark.slow
def test_processes_may_keep_a_list_at_once(tmp_path):
    code = "import sys; from clip_ood.backbones.model_lists import models; print(len(models(sys.argv[1])))"
    running = [python(code, "timm", XDG_CACHE_HOME=str(tmp_path)) for _ in range(3)]
    assert [each.communicate() for each in running] == [(f"{len(timm.list_models())}\n", "")] * 3
    assert told("timm", tmp_path) == (f"False True False {len(timm.list_models())}", False)
    (kept,) = (tmp_path / "clip-ood" / "models").iterdir()
    assert kept.suffix == ".json"


WRONG = [  # keys, what the answer must hold
    ({"library": "open-clip", "model": "ViT-B-16"}, "no encoder library 'open-clip': use open_clip or timm"),
    ({"model": "ViT-B-61"}, "open_clip has no model 'ViT-B-61'. Did you mean ViT-B-16"),
    ({"model": "ViT-B-16", "pretrained": "laion2b_s34b_b88"}, "Did you mean laion2b_s34b_b88k"),
    ({"model": "ViT-B-16", "pretrained": "FILE"}, "set backbone.preprocess"),
    ({"model": "ViT-S-16", "pretrained": "FILE"}, "use model local-dir:FOLDER"),
    ({"model": "ViT-B-16", "pretrained": "FILE", "preprocess": "opnai"}, "Did you mean openai"),
    ({"model": "ViT-B-16", "pretrained": "openai", "preprocess": "laion2b_s34b_b88k"}, "leave `preprocess` out"),
    ({"model": "local-dir:nowhere"}, "nowhere holds no open_clip_config.json"),
    ({"model": "local-dir:data/demo_encoder_"}, "holds no open_clip_config.json"),
    ({"model": "hf-hub:a/b", "pretrained": "openai"}, "leave `pretrained` out"),
    ({"model": "hf-hub:a/b", "preprocess": "openai"}, "leave `preprocess` out"),
    ({"model": "ViT-B-16", "pooling": "mean"}, "goes with encoders of timm"),
    ({"library": "timm", "model": "vit_bse_patch16_224"}, "Did you mean vit_base_patch16_224"),
    ({"library": "timm", "model": "resnet50.a1_in2k"}, "Did you mean a1_in1k"),
    ({"library": "timm", "model": "resnet50", "pretrained": "imagenet"}, "there is no file 'imagenet'"),
    ({"library": "timm", "model": "resnet50", "preprocess": "openai"}, "leave `preprocess` out"),
]


def test_wrong_names_are_answered_with_the_nearest_before_torch_is_imported(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"")
    cases = [
        {"library": "open_clip", "pretrained": None, "preprocess": None, "text_spec": None, "pooling": "default"}
        | {key: value.replace("FILE", str(tmp_path / "weights.pt")) for key, value in keys.items()}
        for keys, _ in WRONG
    ]
    code = """
import json, sys
from types import SimpleNamespace
from clip_ood.backbones.names import check_model
for case in json.loads(sys.argv[1]):
    try:
        check_model(SimpleNamespace(**case))
        print("accepted")
    except ValueError as error:
        print(error)
print(sorted({"torch", "open_clip", "timm", "huggingface_hub"} & sys.modules.keys()))
"""
    for library in ("open_clip", "timm"):
        models(library)  # as an earlier command has asked
    out, errors = python(code, json.dumps(cases)).communicate()
    *answers, imported = out.splitlines()
    assert len(answers) == len(WRONG), errors
    for (keys, expected), answer in zip(WRONG, answers, strict=True):
        assert expected in answer, keys
    assert imported == "[]"


@pytest.mark.parametrize(
    "keys",
    [
        {"model": "ViT-B-16", "pretrained": "laion2b-s34b-b88k"},
        {"model": "ViT-B-16-quickgelu", "pretrained": "openai"},
        {"model": "hf-hub:someone/something"},
        {"library": "timm", "model": "resnet50.a1_in1k", "pretrained": "default"},
    ],
)
def test_right_names_are_accepted(keys):
    check_model(spec(**keys))


# Fingerprints


def write_folder(folder: Path, width=64, tokenizer="{}", weights=b"weights", text_tower="/somewhere/else") -> None:
    folder.mkdir(parents=True)
    text = {"hf_model_name": text_tower}
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": {"width": width}, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "open_clip_model.safetensors").write_bytes(weights)


@pytest.fixture
def of(tmp_path):
    """The fingerprint of a spec; weights that are no weights show that none is loaded."""
    (tmp_path / "weights.pt").write_bytes(b"first")
    (tmp_path / "other.pt").write_bytes(b"other")

    def fingerprint_of(model="ViT-B-32", **keys):
        keys |= {"pretrained": str(tmp_path / file)} if (file := keys.get("pretrained", "")).endswith(".pt") else {}
        return fingerprint(spec(model, **keys), tmp_path / "hashes.json")

    return fingerprint_of


FILE = {"pretrained": "weights.pt", "preprocess": "openai"}


@pytest.mark.parametrize(
    "one, other",
    [
        ({}, {"model": "ViT-B-16"}),
        ({}, {"random_seed": 1}),
        ({}, {"precision": "bf16"}),
        ({}, {"preprocess": "openai"}),
        ({}, {"preprocess": "laion2b_s34b_b79k"}),
        ({}, FILE),
        (FILE, FILE | {"pretrained": "other.pt"}),
        (FILE, FILE | {"preprocess": "laion2b_s34b_b79k"}),
        ({"library": "timm", "model": "test_vit"}, {"library": "timm", "model": "test_vit2"}),
        ({"library": "timm", "model": "test_vit"}, {"library": "timm", "model": "test_vit", "random_seed": 1}),
        (
            {"library": "timm", "model": "test_vit"},
            {"library": "timm", "model": "test_vit", "pretrained": "weights.pt"},
        ),
    ],
)
def test_fingerprints_differ(one, other, of):
    assert of(**one) != of(**other)
    assert of(**one) == of(**one)


def test_what_changes_no_feature_changes_no_fingerprint(of):
    assert of(**FILE) == of(**FILE | {"random_seed": 7})
    assert of(**FILE, label="mine") == of(**FILE)


@pytest.mark.parametrize(
    "change", [{"width": 32}, {"tokenizer": "[]"}, {"weights": b"other"}], ids=lambda change: next(iter(change))
)
def test_a_folder_is_known_by_its_files_wherever_it_lies(change, of, tmp_path):
    write_folder(tmp_path / "one")
    write_folder(tmp_path / "moved", text_tower=str(tmp_path))
    write_folder(tmp_path / "other", **change)
    one, moved, other = (of(f"local-dir:{tmp_path / name}") for name in ("one", "moved", "other"))
    assert one == moved != other


def test_a_folder_without_weights_is_known_by_the_seed(of, tmp_path):
    write_folder(tmp_path / "bare")
    (tmp_path / "bare" / "open_clip_model.safetensors").unlink()
    zero, one = (of(f"local-dir:{tmp_path / 'bare'}", random_seed=seed) for seed in (0, 1))
    assert (zero["weights"], one["weights"]) == ("random:0", "random:1")


def test_weights_written_anew_or_moved(of, tmp_path):
    before = of(**FILE)
    (tmp_path / "weights.pt").rename(tmp_path / "moved.pt")
    assert of(**FILE | {"pretrained": "moved.pt"}) == before
    (tmp_path / "weights.pt").write_bytes(b"newer")  # of the same size
    assert of(**FILE) != before


# Remembered hashes


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    file, hashes = tmp_path / "weights", tmp_path / "made" / "hashes.json"
    file.write_bytes(b"abc")
    assert file_hash(file, hashes) == f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    known = json.loads(hashes.read_text())
    hashes.write_text(json.dumps({key: "remembered" for key in known}))
    assert file_hash(file, hashes) == "remembered"
    os.utime(file, ns=(0, 0))
    assert file_hash(file, hashes) != "remembered"


@pytest.mark.parametrize("damaged", ['{"weights|3|', "", "[]", b"\xff\xfe"])
def test_damaged_hashes_are_made_again(damaged, tmp_path):
    file, hashes = tmp_path / "weights", tmp_path / "hashes.json"
    file.write_bytes(b"abc")
    hashes.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    expected = f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    assert file_hash(file, hashes) == expected
    assert list(json.loads(hashes.read_text()).values()) == [expected]


def test_two_processes_may_remember_at_once(tmp_path):
    files = [tmp_path / str(index) for index in range(100)]
    for file in files:
        file.write_text(file.name)
    code = """
import sys
from pathlib import Path
from clip_ood.backbones.fingerprint import file_hash
for file in sys.argv[2:]:
    file_hash(Path(file), Path(sys.argv[1]))
"""
    both = [python(code, tmp_path / "hashes.json", *files) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    remembered = json.loads((tmp_path / "hashes.json").read_text())
    assert remembered
    for key, value in remembered.items():
        name = Path(key.split("|")[0]).name
        assert value == f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    assert not list(tmp_path.glob("*.tmp"))


# Downloads


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hugging Face cache and a hub that answers: 0.6 GB, commit abc."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda api, repository: SimpleNamespace(sha="abc"))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: SimpleNamespace(size=598_600_000))
    for rank in RANKS:
        monkeypatch.delenv(rank, raising=False)
    return tmp_path


def put(cache: Path, repository: str, file: str, commit="123") -> None:
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / file).touch()


REMOTE = [  # keys, how it is called, the hub's repository, a file there
    ({"model": "ViT-B-16", "pretrained": "laion2b_s34b_b88k"}, "ViT-B-16 laion2b_s34b_b88k", LAION, "open_clip_model.safetensors"),
    ({"model": "ViTamin-S", "pretrained": "datacomp1b"}, "ViTamin-S datacomp1b", "jienengchen/ViTamin-S", "pytorch_model.bin"),
    ({"model": "hf-hub:someone/tiny"}, "hf-hub:someone/tiny", "someone/tiny", "open_clip_pytorch_model.bin"),
    ({"library": "timm", "model": "test_vit", "pretrained": "default"}, "test_vit", "timm/test_vit.r160_in1k", "model.safetensors"),
]  # fmt: skip


@pytest.mark.parametrize("keys, called, repository, file", REMOTE)
def test_a_download_is_announced_once(keys, called, repository, file, hub, monkeypatch, capsys):
    line = f"Downloading {called} (0.6 GB) from https://huggingface.co/{repository} to {hub}\n"
    announce(spec(**keys))
    assert capsys.readouterr().out == line
    monkeypatch.setenv("LOCAL_RANK", "1")
    announce(spec(**keys))
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    put(hub, repository, file)
    announce(spec(**keys))
    assert capsys.readouterr().out == ""


def test_an_unknown_size_is_said_to_be_unknown(hub, monkeypatch, capsys):
    def fail(url, timeout):
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    announce(spec("hf-hub:someone/tiny"))
    assert "tiny (size not known) from" in capsys.readouterr().out


def test_random_weights_are_announced(tmp_path, capsys):
    write_folder(tmp_path / "full")
    announce(spec(f"local-dir:{tmp_path / 'full'}"))
    assert capsys.readouterr().out == ""
    announce(spec(random_seed=3))
    assert capsys.readouterr().out == "ViT-B-32 comes without weights: random ones are drawn from seed 3\n"


@pytest.mark.parametrize("keys, called, repository, file", REMOTE)
def test_remote_weights_are_known_by_their_commit(keys, called, repository, file, hub):
    assert fingerprint(spec(**keys), hub / "hashes.json")["weights"] == f"{repository}@abc"
    put(hub, repository, file)
    assert fingerprint(spec(**keys), hub / "hashes.json")["weights"] == f"{repository}@123"


@pytest.mark.parametrize("keys, called, repository, file", REMOTE)
def test_an_unreachable_hub_is_answered_with_the_way_out(keys, called, repository, file, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for ask in (announce, lambda each: fingerprint(each, tmp_path / "hashes.json")):
        with pytest.raises(ConnectionError, match=repository) as error:
            ask(spec(**keys))
        for hint in (f"downloaded to {tmp_path}", "backbone.pretrained", "backbones/demo.yaml"):
            assert hint in str(error.value)


def test_timm_models_without_published_weights_say_so():
    with pytest.raises(ValueError, match="no published weights of beit3_giant_patch14_224"):
        announce(spec("beit3_giant_patch14_224", "timm", pretrained="default"))
