"""Exported graphs against the detectors that they were made of, in onnxruntime and torch.export."""

from __future__ import annotations

import json
from dataclasses import replace

import detector_data
import onnxruntime
import pytest
import tiny_clip
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.create import create_backbone
from clip_ood.config.schema import BackboneConfig
from clip_ood.detectors import Detector, build_detectors
from clip_ood.detectors.names import DEFAULTS
from clip_ood.evaluation import predict
from clip_ood.export import Exported, export, format_of, formats, verify
from clip_ood.outputs import NegativeLabels, Outputs, Reference

pytestmark = pytest.mark.extras

CLASSES = ("cat", "dog", "fox")
ALL = [
    *DEFAULTS,
    {"name": "knn", "k": 5},
    {"name": "knn", "k": 5, "kth": True},
    {"name": "knn", "k": 0.1, "as": "tenth"},
]
ALL += [
    {"name": "lof", "k": 7},
    "gaussian_pp",
    "pca",
    "nci",
    "eoe",
    {"name": "mahalanobis", "beta": 0.5, "as": "radial"},
]
FEW = ["knn", "mahalanobis"]
TEXT_TOWER = 4 * 49408 * 32  # bytes of its embedding of tokens


def pictures(count: int, size: int, seed: int) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] of one to `size` coarse cells."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(1, 9, (count,), generator=generator).tolist()
    return torch.cat(
        [interpolate(torch.rand(1, 3, n, n, generator=generator), size=(size, size), mode="bicubic") for n in cells]
    ).clamp(0, 1)


def rows_of(backbone: Backbone, reference: Reference, pixels: Tensor) -> Outputs:
    prepared = backbone.preprocessing
    mean, std = (torch.tensor(each)[:, None, None] for each in (prepared.mean, prepared.std))
    features = backbone.encode_image((pixels - mean) / std)
    logits = None if reference.weight is None else features @ reference.weight.T + reference.bias
    labels = torch.arange(len(pixels)) % len(CLASSES)
    return Outputs(features, backbone.project(features), logits, labels, torch.arange(len(pixels)))


def fitted(backbone: Backbone, reference: Reference, specs: list) -> dict[str, Detector]:
    rows = rows_of(backbone, reference, pictures(80, backbone.preprocessing.size[0], 1))
    given = {name for value in (rows, reference) for name, part in vars(value).items() if part is not None}
    detectors, omitted = build_detectors(specs, reference, given)
    assert not omitted
    return {name: detector_data.fitted(detector, rows) for name, detector in detectors.items()}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> tuple[Backbone, Reference]:
    """A tiny ViT with QuickGELU, a head and words."""
    root = tiny_clip.make(tmp_path_factory.mktemp("clip"))
    file = root / "clip" / "open_clip_config.json"
    described = json.loads(file.read_text())
    described["model_cfg"]["quick_gelu"] = True
    file.write_text(json.dumps(described))
    backbone = create_backbone(BackboneConfig(model=f"local-dir:{root}/clip"))
    generator = torch.Generator().manual_seed(0)
    text, words = (normalize(torch.randn(n, 16, generator=generator), dim=1) for n in (len(CLASSES), 230))
    negatives = NegativeLabels(text, words)
    head = 2 * torch.randn(len(CLASSES), 32, generator=generator), torch.tensor([0.1, -0.2, 0.3])
    return backbone, Reference(CLASSES, text, backbone.logit_scale, *head, negatives, negatives, -3.0, negatives)


@pytest.fixture(scope="module")
def cnn() -> tuple[Backbone, Reference]:
    """A tiny network of timm: no texts, no head."""
    return create_backbone(BackboneConfig(library="timm", model="test_efficientnet", pretrained=None)), Reference()


@pytest.fixture(scope="module")
def whole(clip, tmp_path_factory) -> tuple[Exported, dict[str, Detector]]:
    """All detectors in one ONNX file."""
    detectors = fitted(*clip, ALL)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return export(path, *clip, detectors, {"knn": 0.5, "msp": 0.25, "absent": 1.0}), detectors


def run(session: onnxruntime.InferenceSession, pixels: Tensor) -> dict[str, Tensor]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"pixels": pixels.numpy()})), strict=True))


def agree(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    spread = (expected.amax(dim=0) - expected.amin(dim=0)).max()
    assert spread > 0
    assert (got - expected).abs().max() <= 1e-4 * spread


def test_every_detector_scores_in_onnxruntime_as_it_does_here(clip, whole):
    exported, detectors = whole
    assert exported.omitted == () and exported.detectors == tuple(detectors) and len(detectors) == 30
    session = onnxruntime.InferenceSession(exported.files[0])
    pixels = pictures(9, 32, 2)
    rows = rows_of(*clip, pixels)
    one, many = run(session, pixels[:1]), run(session, pixels)
    assert set(many) == {"features", "predicted", "confidence", *(f"score_{name}" for name in detectors)}
    for name, detector in detectors.items():
        scores = detector.score(rows)
        agree(many[f"score_{name}"], scores)
        agree(torch.cat([one[f"score_{name}"], scores[1:]]), scores)
    agree(many["features"], rows.features)
    agree(many["confidence"], rows.logits.softmax(dim=1).amax(dim=1))
    assert torch.equal(many["predicted"], predict(rows, clip[1].text_embeddings)[0])


def test_the_file_says_what_must_be_known_of_it_and_holds_no_text_tower(whole):
    exported, detectors = whole
    session = onnxruntime.InferenceSession(exported.files[0])
    about = json.loads(session.get_modelmeta().custom_metadata_map["clip_ood"])
    assert about["outputs"] == [output.name for output in session.get_outputs()]
    assert about["detectors"] == list(detectors)
    assert about["thresholds"] == {"knn": 0.5, "msp": 0.25}
    assert about["class_names"] == list(CLASSES)
    assert about["size"] == [32, 32] and about["mean"] == [0.3, 0.5, 0.6] and about["std"] == [0.2, 0.3, 0.4]
    assert "Resize" in about["transform"] and "torch" in about["versions"]
    assert exported.files[0].stat().st_size < TEXT_TOWER
    assert sorted(exported.files[0].parent.iterdir()) == sorted(exported.files)


def test_without_a_head_classes_are_those_of_the_texts(clip, tmp_path):
    backbone, reference = clip
    reference = replace(reference, weight=None, bias=None)
    export(tmp_path / "model.pt2", backbone, reference, {}, {})
    pixels = pictures(9, 32, 2)
    assert (tmp_path / "model.pt2").stat().st_size < TEXT_TOWER
    said = torch.export.load(tmp_path / "model.pt2").module()(pixels)
    rows = rows_of(backbone, reference, pixels)
    probabilities = (reference.logit_scale * rows.embeddings @ reference.text_embeddings.T).softmax(dim=1)
    agree(said["confidence"], probabilities.amax(dim=1))
    assert torch.equal(said["predicted"], predict(rows, reference.text_embeddings)[0])


def test_an_encoder_of_images_alone_comes_back_from_torch_export(cnn, tmp_path):
    detectors = fitted(*cnn, FEW)
    exported = export(tmp_path / "model.pt2", *cnn, detectors, {"knn": 0.5})
    about = {"clip_ood": ""}
    graph = torch.export.load(exported.files[0], extra_files=about).module()
    assert json.loads(about["clip_ood"])["thresholds"] == {"knn": 0.5}
    pixels = pictures(5, cnn[0].preprocessing.size[0], 2)
    rows = rows_of(*cnn, pixels)
    for batch in (slice(1), slice(5)):
        said = graph(pixels[batch])
        assert set(said) == {"features", "score_knn", "score_mahalanobis"}
        for name, detector in detectors.items():
            torch.testing.assert_close(said[f"score_{name}"], detector.score(rows)[batch], rtol=1e-4, atol=1e-4)


class Branching(Detector):
    name, requires = "branching", ("features",)

    def _score(self, rows: Outputs) -> Tensor:
        return rows.features[:, 0] if rows.features.sum() > 0 else rows.features[:, 1]


class Untranslated(Detector):
    name, requires = "untranslated", ("features",)

    def _score(self, rows: Outputs) -> Tensor:
        return torch.linalg.eigvalsh(rows.features[:, :2, None] * rows.features[:, None, :2])[:, -1]


class Lying(Detector):
    name, requires = "lying", ("features",)

    def _score(self, rows: Outputs) -> Tensor:
        return rows.features[:, 0]

    def traceable(self):
        return lambda rows: 1.001 * rows.features[:, 0]


def test_what_cannot_be_exported_is_left_out_by_name_with_the_reason(clip, tmp_path):
    zoo = fitted(*clip, ["knn", "pytorch_ood.NCI"])
    detectors = {"branching": Branching(), "untranslated": Untranslated(), **zoo}
    exported = export(tmp_path / "model.onnx", *clip, detectors, {})
    assert exported.detectors == ("knn",)
    reasons = {each.detector: each.reason for each in exported.omitted}
    assert set(reasons) == {"branching", "untranslated", "NCI"}
    assert "pytorch-ood's own code" in reasons["NCI"]
    assert reasons["branching"].startswith(
        "cannot be written as .onnx (see Detector.traceable): Could not guard on data"
    )
    assert "_linalg_eigh" in reasons["untranslated"]
    names = [output.name for output in onnxruntime.InferenceSession(exported.files[0]).get_outputs()]
    assert names == ["features", "predicted", "confidence", "score_knn"]


def test_a_graph_that_scores_otherwise_is_never_left_behind(cnn, tmp_path):
    with pytest.raises(ValueError, match="score_lying of the graph differs"):
        export(tmp_path / "model.pt2", *cnn, {"lying": Lying()}, {})
    assert not list(tmp_path.iterdir())


def test_large_weights_lie_in_a_file_beside_it(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "ONE_FILE", 1000)
    detectors = fitted(*clip, ["knn"])
    exported = export(tmp_path / "model.onnx", *clip, detectors, {})
    assert [file.name for file in exported.files] == ["model.onnx", "model.onnx.data", "clip_ood_pixels.py"]
    assert sorted(tmp_path.iterdir()) == sorted(exported.files)
    pixels = pictures(4, 32, 2)
    said = run(onnxruntime.InferenceSession(exported.files[0]), pixels)
    agree(said["score_knn"], detectors["knn"].score(rows_of(*clip, pixels)))


def test_half_precision_encoders_run_in_float32_and_say_so(tmp_path):
    spec = BackboneConfig(library="timm", model="test_efficientnet", pretrained=None, precision="bf16")
    backbone = create_backbone(spec)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    exported = export(tmp_path / "model.pt2", backbone, Reference(), {}, {})
    assert "bfloat16" in exported.notes[0] and exported.differences["features"] < 1e-4
    assert backbone.dtype == torch.bfloat16
    for name, value in backbone.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])


def test_traceable_scores_are_those_of_score():
    detectors, _ = build_detectors([*DEFAULTS, "nci", "eoe", "negprompt"], detector_data.REFERENCE, detector_data.ALL)
    half = detector_data.TRAIN.map(lambda value: value.half() if value.is_floating_point() else value)
    zero = replace(
        detector_data.TEST, features=detector_data.TEST.features.clone().index_fill_(0, torch.tensor([3]), 0)
    )
    for detector in detectors.values():
        detector_data.fitted(detector, detector_data.part(half, slice(50)), detector_data.part(half, slice(50, None)))
        score = detector.traceable()
        for rows in (detector_data.TEST, zero):
            torch.testing.assert_close(score(rows).float(), detector.score(rows), rtol=1e-5, atol=1e-5)


def test_what_cannot_work_is_said_before_any_work(cnn, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"ends in '\.bin'; expected \.onnx \(ONNX\) or \.pt2 \(torch\.export\)"):
        format_of(tmp_path / "model.bin")
    with pytest.raises(ValueError, match="there is no folder"):
        format_of(tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(ValueError, match="call update with ID training images"):
        export(tmp_path / "model.pt2", *cnn, build_detectors(["knn"], Reference(), {"features"})[0], {})
    backbone = create_backbone(BackboneConfig(library="timm", model="test_efficientnet", pretrained=None)).train()
    with pytest.raises(ValueError, match=r"training mode, expected evaluation mode: call eval\(\)"):
        export(tmp_path / "model.pt2", backbone, Reference(), {}, {})
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ValueError, match=r"there is no onnxscript: pip install 'clip-ood\[export\]'"):
        format_of(tmp_path / "model.onnx")
    assert format_of(tmp_path / "model.pt2") is formats.TorchExport


def test_not_a_number_is_a_difference(cnn):
    backbone, reference = cnn

    def broken(pixels: Tensor) -> dict[str, Tensor]:
        return {"features": graph.rows(pixels).features * torch.nan}

    graph = verify.ScoringGraph(backbone, reference, {})
    with pytest.raises(ValueError, match="features of the graph differs"):
        verify.compare(broken, graph, {})
