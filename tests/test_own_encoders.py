"""A user's own module as an encoder: what it gives, what is refused, and that a saved detector runs no code that is not trusted."""

from __future__ import annotations

import json
import re
import shutil

import judged_run
import own_encoders
import pytest
import tiny_clip
import torch
from PIL import Image
from torch.nn.functional import normalize

from clip_ood import load
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.backbones.names import check_model
from clip_ood.backbones.shape import shape_of
from clip_ood.backbones.spec import ImageSpec
from clip_ood.config.schema import BackboneConfig
from clip_ood.errors import UserError

QUIET = {"report": False, "figures": False}
TEXTS = ["a cat", "a dog", "a fox"]


def spec(name, **keys):
    return BackboneConfig(library="own", model=f"own_encoders:{name}", **keys)


@torch.inference_mode()
def test_a_module_gives_features_embeddings_and_texts(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = own_encoders.Joint().eval()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    images = torch.randn(3, 3, 16, 16)
    for own in (
        create_backbone(spec("Joint", random_seed=7)),
        create_backbone(spec("Joint", pretrained=str(tmp_path / "weights.pt"))),
    ):
        assert torch.equal(own.encode_image(images), module(images))
        assert torch.equal(own.project(module(images)), normalize(module.project(module(images)), dim=1))
        assert torch.equal(own.encode_text(TEXTS), normalize(module.encode_text(TEXTS), dim=1))
        assert own.has_text and own.logit_scale == 20.0 and own.logit_bias is None
        picture = Image.new("RGB", (30, 20), (9, 80, 200))
        assert torch.equal(own.transform(picture), own_encoders.TRANSFORM(picture))
        assert own.preprocessing.size == (16, 16) and own.preprocessing.mean == pytest.approx((0.4, 0.5, 0.6), abs=1e-5)
        assert own.preprocessing.std == pytest.approx((0.2, 0.25, 0.3), abs=1e-5)
        assert not own.training and not any(weights.requires_grad for weights in own.parameters())
    assert spec("Joint").reads_text and not spec("Images").reads_text and not spec("pair").reads_text
    assert shape_of(spec("Joint")).features == 12 and shape_of(spec("Joint")).embeddings == 8
    assert create_backbone(spec("pair")).encode_image(images).shape == (3, 64)
    assert create_backbone(spec("Images")).project(torch.zeros(1, 12)) is None
    half = create_backbone(spec("Joint", precision="bf16"))
    assert half.encode_image(images).dtype == torch.float32 and half.encode_text(TEXTS).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "keys", "told"),
    [
        ("no_such", {}, "has no 'no_such'"),
        ("Jiont", {}, "Did you mean own_encoders:Joint?"),
        ("FIGURE", {}, "is a int, and must be a function or class"),
        ("no_module", {}, "gives a str, and must give an nn.Module"),
        ("no_transform", {}, "gives a module without a transform"),
        ("Maps", {}, r"forward gives \(2, 12, 4, 4\), and must give a tensor \(2, D\)"),
        ("Endless", {}, "gives values that are not finite"),
        ("Complex", {}, "gives complex numbers"),
        ("Noisy", {}, "forward gives other values of the same images each time"),
        ("Failing", {}, r"KeyError in .*own_encoders.py, line \d+: 'gone'"),
        ("Sized", {}, "cannot be called without arguments .*'width'"),
        ("Unscaled", {}, "logit_scale is nan, and must be a number above 0"),
        ("Opposite", {}, r"logit_scale is -1.0, and must be a number above 0"),
        ("Worded", {}, "logit_scale is <bound method.*, and must be a number above 0"),
        ("NoProjection", {}, "has encode_text and no project"),
        ("OtherWidth", {}, "encode_text is 9 wide, and project 8"),
        ("Pictures", {}, "the transform gives Image of a picture"),
        ("Turned", {}, "does more to colours than"),
        ("Random", {}, "must not be random"),
        ("Joint", {"pretrained": "nowhere.pt"}, "there is no file 'nowhere.pt'"),
        ("Joint", {"pooling": "mean"}, "pools images itself"),
        ("Joint", {"image_size": 32}, r"backbone\.image_size"),
        ("Joint", {"preprocess": "openai"}, r"backbone\.preprocess"),
    ],
)
def test_what_is_no_encoder_is_told(name, keys, told):
    with pytest.raises(UserError, match=told):
        create_backbone(spec(name, **keys))


@pytest.mark.parametrize(("name", "found"), [("Narrowing", "(5, 7)"), ("Dropping", "(4, 12)")])
def test_outputs_of_a_larger_batch_are_checked_too(name, found):
    encoder = create_backbone(spec(name))
    assert encoder.encode_image(torch.zeros(4, 3, 16, 16)).shape == (4, 12)
    with pytest.raises(
        UserError, match=f"of 5 images, forward gives {re.escape(found)}, and must give a tensor .5, 12."
    ):
        encoder.encode_image(torch.zeros(5, 3, 16, 16))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("nowhere.at_all:make", "there is no module 'nowhere' on the Python path"),
        ("make", "'make' names no code: an encoder of your own is the dotted path"),
    ],
)
def test_code_that_is_not_there_is_told(model, told):
    with pytest.raises(UserError, match=told):
        check_model(BackboneConfig(library="own", model=model))


def test_weights_that_do_not_fit_are_told(tmp_path):
    torch.save({"layers.0.weight": torch.zeros(12, 3, 4, 4)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"are not this module's: .*Missing key"):
        create_backbone(spec("Joint", pretrained=str(tmp_path / "weights.pt")))


def test_fingerprints_cover_code_and_weights(tmp_path, monkeypatch):
    hashes = tmp_path / "hashes.json"
    monkeypatch.syspath_prepend(tmp_path)
    code = "from own_encoders import Images\n\n\nclass {}(Images):\n    pass\n"
    for name in ("One", "Two"):
        (tmp_path / f"code_{name}.py").write_text(code.format("Mine") + f"# {name}\n")
        torch.save({"a": torch.zeros(len(name) + (name == "Two"))}, tmp_path / f"{name}.pt")
    specs = [BackboneConfig(library="own", model=f"code_{name}:Mine") for name in ("One", "Two")]
    specs += [specs[0].model_copy(update={"random_seed": 1})]
    specs += [specs[0].model_copy(update={"pretrained": str(tmp_path / f"{name}.pt")}) for name in ("One", "Two")]
    found = [fingerprint(each, hashes) for each in specs]
    assert len({json.dumps(each) for each in found}) == 5 and found == [fingerprint(each, hashes) for each in specs]
    assert found[0]["weights"].startswith("made:") and found[3]["weights"].startswith("sha256:")


@pytest.mark.parametrize("inside", [False, True])
def test_a_run_and_its_detector_folder(inside, root, tmp_path, monkeypatch):
    name = f"own-{inside}"
    backbone = {"library": "own", "model": "own_encoders:Joint"}
    run = judged_run.make(root, name, backbone=backbone, evaluation=QUIET | {"with_encoder": inside})
    with pytest.raises(UserError, match=r"own_encoders:Joint, is code of somebody's own.*--trust-classes"):
        load(run)
    scores = judged_run.scores(run, "ood")
    assert {"knn", "mcm", "msp"} <= scores["0.png"].keys()
    for prediction in load(run, detector="all", trust_classes=True)([root / "data/near/0.png"]):
        assert prediction.score == pytest.approx(scores["0.png"][prediction.detector], rel=1e-5)
    with pytest.raises(UserError, match="--trust-classes"):
        judged_run.detect.main(["--run", str(run), str(root / "data/near/0.png")])
    judged_run.judged("--run", run, "--trust-classes", "--out", tmp_path / "found.csv", root / "data/near/0.png")
    folder = shutil.copytree(run / "detector", tmp_path / "moved")
    monkeypatch.setattr("clip_ood.backbones.own_library.code_of", lambda path: "sha256:other")
    with pytest.raises(UserError, match="code"):
        load(folder, trust_classes=True)


def test_it_is_fine_tuned_and_exported(root, tmp_path):
    from clip_ood.export import export
    from clip_ood.outputs import Reference

    backbone = {"library": "own", "model": "own_encoders:Images"}
    run = judged_run.make(root, "own-tuned", "finetune", backbone=backbone, evaluation=QUIET)
    assert load(run, trust_classes=True)([root / "data/near/0.png"])[0].score is not None
    for name in ("model.onnx", "model.pt2"):
        exported = export(
            tmp_path / name, create_backbone(ImageSpec("own", "own_encoders:Images")), Reference(), {}, {}
        )
        assert not exported.notes and len(exported.files) == 2


def test_a_misspelt_name_ends_a_run_before_it_begins(root):
    config = tiny_clip.config(
        root, "wrong", {"zero_shot": {}}, backbone={"library": "own", "model": "own_encoders:Jiont"}
    )
    with pytest.raises(UserError, match="Did you mean own_encoders:Joint"):
        judged_run.evaluation.main(["--config", config])


def test_the_module_of_the_page_is_one(tmp_path, monkeypatch):
    page = (tiny_clip.PROJECT / "docs" / "sets.md").read_text()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_encoders.py").write_text(page.split("```python\n")[1].split("```")[0])
    own = create_backbone(BackboneConfig(library="own", model="my_encoders:make"))
    assert own.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, 512) and own.preprocessing.size == (64, 64)
