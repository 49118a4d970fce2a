"""Images are prepared as the image processors of transformers do, and processors that do more are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_transformers
import torch
import transformers
from PIL import Image
from tiny_transformers import copy, spec

from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.transformers_images import read_prepared
from clip_ood.errors import UserError


def pictures(shape):
    generator = np.random.default_rng(1)
    return Image.fromarray(generator.integers(0, 256, (9, 7, 3), np.uint8)).resize(shape, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("shape", [(50, 40), (33, 90), (64, 64), (301, 200)])
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "vit", "convnext", "resnet"])
def test_pixels_are_those_of_the_image_processor(kind, shape, tiny_model):
    """Those that Pillow resizes to 1e-5, and those of the processor that resizes tensors to two grey levels. torchvision rounds the
    left and upper edge of the middle where transformers truncates, so that the middle may lie one pixel further."""
    folder, _ = tiny_model(kind)
    ours = create_backbone(spec(folder))
    picture = pictures(shape)
    found = ours.transform(picture)
    std = torch.tensor(ours.preprocessing.std)[:, None, None]
    for backend, tolerance in (("pil", 1e-5), ("torchvision", 2.01 / 255)):
        content = json.loads((folder / "preprocessor_config.json").read_text())
        (name,) = (content[key] for key in ("image_processor_type", "feature_extractor_type") if key in content)
        made = getattr(
            transformers, name.replace("FeatureExtractor", "ImageProcessor") + ("Pil" if backend == "pil" else "")
        )
        theirs = torch.as_tensor(
            np.asarray(made(**{k: v for k, v in content.items() if "type" not in k})(images=picture)["pixel_values"][0])
        )
        assert found.shape == theirs.shape
        shifted = [theirs, theirs.roll(-1, 1), theirs.roll(-1, 2)]
        inner = (slice(None), slice(0, -1), slice(0, -1))
        differences = [((found - each).abs() * std)[inner].max().item() for each in shifted]
        assert min(differences) <= tolerance
        if all((side - 32) % 4 != 3 for side in _resized(ours, shape)):
            assert ((found - theirs).abs() * std).max() <= tolerance


def _resized(backbone, shape):
    return backbone.transform.transforms[0](Image.new("RGB", shape)).size


def test_a_processor_that_does_more_is_refused(tiny_model, tmp_path):
    folder, _ = tiny_model("vit")
    for number, (change, told) in enumerate(
        [
            ({"do_resize": False}, "not prepared by resize"),
            ({"rescale_factor": 0.5}, "does more to images"),
            ({"auto_map": {"AutoImageProcessor": "own.Own"}}, "auto_map asks for code"),
            ({"size": {"longest_edge": 32}}, "none of shortest_edge"),
            ({"image_mean": "0.5"}, "must be a number"),
        ]
    ):
        own = copy(folder, tmp_path / str(number))
        content = json.loads((own / "preprocessor_config.json").read_text())
        (own / "preprocessor_config.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=told):
            create_backbone(spec(own))
    (own / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"holds no preprocessor_config\.json, which says how images are prepared"):
        create_backbone(spec(own))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("", "is damaged: it is no JSON"),
        ({"resample": 99}, "no image can be prepared by its figures .IndexError"),
        ({"crop_size": -3}, "no image can be prepared by its figures"),
        ({"image_processor_type": "Foo"}, "no image can be prepared by its figures"),
    ],
)
def test_damaged_figures_of_images_name_their_file(change, told, tmp_path):
    tiny_transformers.make(tmp_path, "clip")
    file = tmp_path / "preprocessor_config.json"
    content = json.loads(file.read_text())
    file.write_text(change if change == "" else json.dumps(content | change))
    with pytest.raises(UserError, match=rf"preprocessor_config\.json.* {told}"):
        read_prepared(file, "clip")
    file.write_text(json.dumps(content | {"image_mean": [0.5]}))
    assert read_prepared(file, "clip").mean == [0.5] * 3
