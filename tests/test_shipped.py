"""Every shipped config up to the first forward pass: its folders, encoder, method, Trainer and detectors.

Images are empty files in the layouts that the sources unpack to, a few of each, encoders have their real architecture and no memory
(the meta device), features are random numbers of the encoder's widths.
"""

from __future__ import annotations

import re
import shutil
from copy import deepcopy
from functools import cache

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch.nn.functional import normalize
from torchvision import datasets

import clip_ood.experiments.extraction
import clip_ood.experiments.models
import clip_ood.experiments.resume
import clip_ood.experiments.run
import clip_ood.experiments.saving
from clip_ood.backbones.create import create_backbone
from clip_ood.config.loading import CONFIGS, load_config
from clip_ood.config.schema import BackboneConfig
from clip_ood.data.class_names import imagenet_wnids
from clip_ood.detectors import DETECTORS
from clip_ood.detectors.build import required
from clip_ood.detectors.names import NOT_BY_DEFAULT
from clip_ood.evaluation import DetectorSuite
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.features.rows import Rows
from clip_ood.features.store import TextEmbeddings
from clip_ood.features.stored_set import Features
from clip_ood.outputs import NegativeLabels
from clip_ood.texts.prompts import fill

HERE = CONFIGS
SHIPPED = [path.name for path in sorted(HERE.glob("*.yaml"))]
DEMO_ENCODER = HERE.parent / "data" / "demo_encoder" / "open_clip_config.json"

# What the sources give, below data.root: class folders {name: classes}, flat folders.
WNIDS = imagenet_wnids()
LAYOUTS = {
    "imagenet": (
        {"imagenet/train": WNIDS, "imagenet/val": WNIDS, "dtd/images": ["banded"], "NINCO/NINCO_OOD_classes": ["cup"]},
        ["iNaturalist/images", "SUN/images", "Places/images", "imagenet-o/n01443537"],
    ),
    "demo": ({"id": ["bird", "fish", "hoofed animal"]}, ["ood/stamps", "ood/symbols", "ood/digits"]),
    "photos": ({"photos": ["red_fox", "dog"]}, []),
    "cifar": ({}, ["tiny-imagenet-200/val/images"]),
}
LAYOUT_OF = {
    "own_images.yaml": "photos",
    "demo_cifar.yaml": "cifar",
    "finetune_published_vitl.yaml": "cifar",
} | dict.fromkeys(
    [
        "demo.yaml",
        "linear_probe_demo.yaml",
        "zero_shot_demo.yaml",
        "stream_demo.yaml",
        "finetune_demo.yaml",
        "sweep_demo.yaml",
        "coop_demo.yaml",
        "locoop_demo.yaml",
        "tip_adapter_demo.yaml",
        "negprompt_demo.yaml",
    ],
    "demo",
)
WIDTHS = {  # of g and of h
    "ViT-bigG-14": (1664, 1280),
    "ViT-H-14": (1280, 1024),
    "ViT-L-14": (1024, 768),
    "ViT-B-16": (768, 512),
    "local-dir:data/demo_encoder": (1280, 384),
}
NEGATIVES = {"neglabel", "csp"}
HEADS = {name for name in set(DETECTORS) - set(NOT_BY_DEFAULT) if required([name]) & {"logits", "weight"}}
PARAMETERS = {"own_images.yaml": 86, "linear_probe_vith.yaml": 632, "plp_vitg.yaml": 1845}  # 10⁶, of the image tower


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    for layout, (classes, flat) in LAYOUTS.items():
        (root / layout).mkdir()
        for folder in [f"{top}/{label}" for top, labels in classes.items() for label in labels] + flat:
            (root / layout / folder).mkdir(parents=True)
            for index in range(4):
                (root / layout / folder / f"{index}.JPEG").touch()
    annotations = "".join(f"{index}.JPEG\tn01443537\t0\t0\t62\t62\n" for index in range(4))
    (root / "cifar" / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text(annotations)
    (root / "words.txt").write_text("shovel\nrain\n")
    return root


class TinyCIFAR:
    """Thirty images of each of ten classes, no download."""

    def __init__(self, root, train, download):
        self.targets = [index % 10 for index in range(300)]
        self.data = torch.zeros(300, 32, 32, 3, dtype=torch.uint8).numpy()
        self.classes = [f"class {label}" for label in range(10)]

    def __len__(self):
        return 300


@pytest.fixture
def config(request, layouts, tmp_path, monkeypatch):
    """A shipped config on faked images, one CPU process instead of its devices."""
    if not DEMO_ENCODER.is_file() and "\nbackbone: backbones/demo.yaml" in (HERE / request.param).read_text():
        pytest.skip("the demo encoder is not built: clip-ood demo encoder")
    monkeypatch.chdir(HERE.parent)
    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(datasets, name, TinyCIFAR)
    root = layouts / LAYOUT_OF.get(request.param, "imagenet")
    changes = [
        f"--data.root={root}",
        "--data.allow_partial=true",
        f"--runs_root={tmp_path}/runs",
        f"--features_root={tmp_path}/features",
    ]
    if request.param.startswith("finetune"):
        changes.append("--method.finetune.batch_size=2")  # of so few images
    if "negative_words" in (HERE / request.param).read_text():
        changes.append(f"--data.negative_words={layouts}/words.txt")
    return load_config(request.param, [*changes, "--trainer.accelerator=cpu", "--trainer.devices=1"])


@cache
def encoder(spec: BackboneConfig):
    """The real architecture without memory or weights; a pretrained tag still gives the preprocessing."""
    with torch.device("meta"):
        return create_backbone(spec)


@pytest.fixture
def backbone(config, layouts):
    """The encoder of a config, its weights left out."""
    spec = config.backbone
    if not spec.model.startswith("local-dir:"):
        return encoder(spec.model_copy(update={"pretrained": None, "preprocess": spec.pretrained}))
    folder = layouts / "encoder"
    folder.mkdir(exist_ok=True)
    for file in DEMO_ENCODER.parent.iterdir():
        if file.suffix in (".json", ".txt"):
            shutil.copy(file, folder)
    return encoder(spec.model_copy(update={"model": f"local-dir:{folder}"}))


@pytest.mark.parametrize("config", SHIPPED, indirect=True)
def test_the_encoder_gives_features_and_embeddings_of_its_widths(config, backbone):
    image = backbone.transform(Image.new("RGB", (50, 40)))
    with torch.device("meta"), torch.inference_mode():
        g = backbone.encode_image(torch.zeros(2, *image.shape))
        h = backbone.project(g)
    assert image.shape == (3, 224, 224) and (g.shape[1], h.shape[1]) == WIDTHS[config.backbone.model]
    assert (
        backbone.has_text
        and backbone.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[config.backbone.precision]
    )


@pytest.mark.parametrize("config", PARAMETERS, indirect=True)
def test_the_image_tower_has_the_size_that_the_blocks_tell(backbone, request):
    count = sum(weights.numel() for weights in backbone.model.visual.parameters()) / 1e6
    assert count == pytest.approx(PARAMETERS[request.node.callspec.params["config"]], rel=0.01)


def faked(config, benchmark):
    """Random features and embeddings of every image set, and of the prompts."""
    width, joint = WIDTHS[config.backbone.model]
    torch.manual_seed(0)
    features = {
        name: Features(
            Rows((torch.randn(len(images), width),)),
            Rows((normalize(torch.randn(len(images), joint), dim=1),)),
            torch.ones(len(images), dtype=torch.bool),
        )
        for name, images in benchmark.images.items()
    }
    strings = fill(config.data.prompts, benchmark.class_names)
    labels = NegativeLabels(torch.randn(len(benchmark.class_names), joint), torch.randn(5, joint))
    negatives = dict.fromkeys(NEGATIVES, labels) if config.data.negative_words else {}
    return features, TextEmbeddings(normalize(torch.randn(len(strings), joint), dim=1), 100.0, negatives)


class Reached(Exception):
    """The run has come to its Trainer's first loop."""


@pytest.mark.parametrize("config", SHIPPED, indirect=True)
def test_trainer_method_and_detectors_are_made_and_take_a_batch(config, backbone, tmp_path, monkeypatch):
    def reached(trainer, module, datamodule, **_):
        raise Reached(trainer, module, datamodule)

    monkeypatch.setattr(Trainer, "fit", reached)
    monkeypatch.setattr(Trainer, "test", reached)
    monkeypatch.setattr(clip_ood.experiments.models, "create_backbone", lambda spec: deepcopy(backbone))
    monkeypatch.setattr(clip_ood.experiments.models, "initial_head", lambda *_: None)  # needs weights
    for module in (clip_ood.experiments.saving, clip_ood.experiments.resume, clip_ood.experiments.extraction):
        monkeypatch.setattr(module, "fingerprint", lambda *_: {})  # would ask the hub
    monkeypatch.setattr(
        clip_ood.experiments.run, "load_features", lambda config, benchmark, *_: faked(config, benchmark)
    )
    monkeypatch.setattr(
        clip_ood.experiments.run, "with_training_patches", lambda config, benchmark, features, _: features
    )
    monkeypatch.setattr(clip_ood.experiments.run, "vocabulary_of", lambda config: None)
    with pytest.raises(Reached) as stop:
        clip_ood.experiments.run.run(config, tmp_path)
    trainer, module, data = stop.value.args
    trained = config.method.settings.trains
    assert trainer.max_epochs == (config.method.settings.epochs if trained else 1)
    if config.method.name == "finetune":  # takes images, through weights
        assert module.head.weight.shape == (len(module.class_names), WIDTHS[config.backbone.model][0])
        assert len(data.augmented.transforms) > 2
        return

    outputs = module.bank_outputs(data.tables["bank"][torch.arange(4)])
    headed = config.method.settings.gives_logits
    assert (outputs.logits is not None) == headed
    if headed:
        assert outputs.logits.shape == (4, len(module.class_names))
    suite = DetectorSuite(module.reference(), config.detectors, later=frozenset({"tokens"}))
    suite.update(outputs)
    omitted = {each.detector for each in suite.omitted}
    if config.detectors is not None:
        assert not omitted
        return
    without_words = set() if config.data.negative_words else NEGATIVES
    without = without_words | {"mcm_sigmoid"}  # which needs the logit bias that CLIP does not have
    assert omitted - without == (set() if headed else HEADS) and without <= omitted


@pytest.mark.parametrize("config", SHIPPED, indirect=True)
def test_every_part_holds_images_and_trained_methods_hold_out_val(config):
    benchmark = load_benchmark(config)
    parts = {part.name: len(part.rows) for part in benchmark.parts.values()}
    may_be_empty = ("val", "id_test") if config.evaluation.cross_fit else ("val",)
    assert all(parts[name] for name in parts if name not in may_be_empty)
    assert set(config.data.ood) | {"bank", "id_test", "train", "val"} == set(parts)
    assert len(benchmark.class_names) == len(set(benchmark.labels(benchmark.parts["train"])))


def test_what_the_paper_found_against_a_faulty_baseline_is_not_expected_against_a_fair_one():
    headers = {path.name: " ".join(path.read_text().replace("#", " ").split()) for path in HERE.rglob("*.yaml")}
    claims = {name: text for name, text in headers.items() if re.search(r"(?<![\d.])7\.3(?![\d.])", text)}
    assert claims.keys() == {"finetune_vith.yaml", "linear_probe_vith.yaml", "main_table.yaml"}
    assert all("with the faults listed in finetune_published_vitl.yaml" in text for text in claims.values())
