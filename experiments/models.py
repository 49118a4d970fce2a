"""Makes what a method trains or evaluates: the module, and the data that it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from clip_ood.backbones.backbone import Backbone, unit
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.inside import check_inside
from clip_ood.backbones.shape import Unknown, shapes_inside
from clip_ood.config import method_schema
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.datamodules.evaluation_data import EvaluationData
from clip_ood.datamodules.feature_data import FeatureData
from clip_ood.detectors.build import check_any_runs, inside, patched, required
from clip_ood.detectors.trial import try_own, try_parameters
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments import prompts
from clip_ood.experiments.earlier_run import check_fits, finished_run, learnt_by
from clip_ood.experiments.extraction import START
from clip_ood.experiments.negatives import class_images
from clip_ood.experiments.patches import check_patches, token_arrays
from clip_ood.experiments.stream import check_stream, stream_fields
from clip_ood.features.store import TextEmbeddings
from clip_ood.features.stored_set import Features
from clip_ood.head import StandardisedLinear
from clip_ood.lightning_modules.coop import CoOp
from clip_ood.lightning_modules.linear_probe import LinearProbe
from clip_ood.lightning_modules.locoop import LoCoOp
from clip_ood.lightning_modules.plp import PLP
from clip_ood.lightning_modules.probe_sweep import LinearProbeSweep, PLPSweep
from clip_ood.lightning_modules.tip_adapter import TipAdapter
from clip_ood.lightning_modules.zero_shot import ZeroShot
from clip_ood.outputs import Inside
from clip_ood.runs.run_folder import head_of
from clip_ood.texts.prompts import prototypes

SAME = 1e-6  # 1 - the cosine of two prototypes of one text, which rounding in other batches leaves


def check_method(config: Config, benchmark: Benchmark) -> None:
    """Raises UserError, before images are read, for a method that the ID set or encoder cannot serve, or an unknown detector."""
    required(config.detectors)
    try_parameters(config.detectors)
    try_own(config.detectors, _count(benchmark))
    check_any_runs(config.detectors, _lacking(config, benchmark))
    _check_enough(config, benchmark)
    check_stream(config, benchmark)
    method, settings = config.method.name, config.method.settings
    if settings.needs_labels and not benchmark.labelled:
        raise ConfigError(
            f"method.{method} needs labels, and the ID images are a flat folder: sort them into class folders, use "
            "--method={plp: {}} with data.id.class_names, or --method={zero_shot: {}}"
        )
    if settings.trains and len(benchmark.class_names or ()) < 2:
        count = len(benchmark.class_names or ())
        raise ConfigError(f"method.{method} needs two classes or more (data.id.class_names); the ID set has {count}")
    if settings.needs_text and not config.backbone.reads_text:
        raise ConfigError(
            f"method.{method} needs a text encoder, and {config.backbone.library}'s {config.backbone.model} has none: use open_clip"
        )
    if settings.tunes_encoder:
        _check_start(config)
    if settings.learns_negatives:
        prompts.check_positives(config)
    if settings.patches is not None:
        check_patches(config, benchmark)
    if wanted := inside(config.detectors, _lacking(config, benchmark)):
        with suppress(Unknown):  # then it is checked when the encoder is loaded
            shapes_inside(config.backbone, wanted)
    if getattr(settings, "sweep", None) is not None:
        _check_sweep(config, benchmark)


def _lacking(config: Config, benchmark: Benchmark) -> set[str]:
    """Returns fields of Outputs and Reference that a run certainly lacks, by what is known before images are read."""
    settings = config.method.settings
    fields = set() if settings.gives_logits else {"logits"}
    fields |= set() if settings.trains_head else {"weight", "bias"}
    if not settings.learns_negatives:
        fields |= {"negprompt"}
    if benchmark.class_names is None:
        fields |= {"class_names", "text_embeddings"} | (set() if benchmark.labelled else {"labels"})
    return (
        fields
        if config.backbone.reads_text
        else fields | {"text_embeddings", "logit_scale", "text_tower", "projection"}
    )


def _check_enough(config: Config, benchmark: Benchmark) -> None:
    count = min(len(benchmark.parts[name].rows) for name in ("train", "bank"))
    if config.evaluation.cross_fit is not None and count < 2:
        raise ConfigError(
            f"evaluation.cross_fit compares the ID images with each other, and there {'is 1' if count == 1 else 'are none'}: name two or "
            "more (data.id)"
        )


def check_detectors(config: Config, benchmark: Benchmark, features: int, embeddings: int | None) -> None:
    """Raises UserError, before training, for a user's own detector that cannot take features and embeddings of these widths."""
    try_own(config.detectors, _count(benchmark), (features, embeddings or features))


def _count(benchmark: Benchmark) -> int | None:
    return None if benchmark.class_names is None else len(benchmark.class_names)


def _check_sweep(config: Config, benchmark: Benchmark) -> None:
    method = config.method.name
    if not benchmark.parts["val"].rows:
        raise ConfigError(
            f"method.{method}.sweep chooses among heads on ID val, and val is empty: raise data.splits.val "
            f"({config.data.splits.val:g}) or name data.id.val; or drop the sweep"
        )
    if config.trainer.get("gradient_clip_val"):
        raise ConfigError(
            f"trainer.gradient_clip_val would clip the gradients of all heads of method.{method}.sweep together: drop one"
        )


def _check_start(config: Config) -> None:
    start = config.method.settings.head
    if start == "text" and not config.backbone.reads_text:
        raise ConfigError(
            f"method.finetune.head: text needs a text encoder, and {config.backbone.library}'s models have none: take random"
        )
    if start in ("random", "text"):
        return
    run, theirs = finished_run(config.seed, "method.finetune.head", start, "neither random, nor text,")
    if not theirs.method.settings.trains_head or theirs.method.settings.tunes_encoder:
        raise ConfigError(f"method.finetune.head: {run} is a {theirs.method.name} run; take a linear_probe or plp run")
    check_fits(config, "method.finetune.head", run, theirs)


def build(
    config: Config, benchmark: Benchmark, features: dict[str, Features], text: TextEmbeddings | None
) -> tuple[LightningModule, EvaluationData]:
    """Makes the module for a config's method, and its data: stored features, or images for fine-tuning."""
    classes: dict[str, Any] = {"class_names": benchmark.class_names}
    if text is not None:
        embeddings = prototypes(text.embeddings, len(config.data.prompts), [len(names) for names in benchmark.called])
        check_texts(embeddings, benchmark.class_names)
        classes |= {"text_embeddings": embeddings, "logit_scale": text.logit_scale, "logit_bias": text.logit_bias}
        classes |= {"negatives": text.negatives}
    module, data = BUILDERS[type(config.method.settings)](config, benchmark, features, classes)
    if text is not None:
        module.text_tower = text_tower(config)
    if text is not None and "projection" in required(config.detectors) and not config.method.settings.tunes_encoder:
        module.projection = create_backbone(config.backbone).affine_projection()
    if "class_images" in stream_fields(config):
        module.class_images = class_images(benchmark, features)
    return module, data


def text_tower(config: Config) -> Callable[[], Backbone]:
    """Returns what loads the encoder of texts when it is first called, and from then on returns the same."""
    spec = config.backbone.text_spec or config.backbone
    return cache(lambda: create_backbone(spec).text_side())


def _zero_shot(
    config: Config, benchmark: Benchmark, features: dict[str, Features], classes: dict[str, Any]
) -> tuple[LightningModule, EvaluationData]:
    return ZeroShot(**classes), _stored(config, benchmark, features)


def _tip_adapter(
    config: Config, benchmark: Benchmark, features: dict[str, Features], classes: dict[str, Any]
) -> tuple[LightningModule, EvaluationData]:
    data = _stored(config, benchmark, features)
    return TipAdapter(config.method.settings, data.train, config.seed, **classes), data


def _probe(
    alone: type[LinearProbe], swept: type[LinearProbe], config: Config, *given: Any
) -> tuple[LightningModule, EvaluationData]:
    return _on_features(swept if config.method.settings.sweep else alone, config, *given)


def _on_features(
    kind: type[LightningModule],
    config: Config,
    benchmark: Benchmark,
    features: dict[str, Features],
    classes: dict[str, Any],
) -> tuple[LightningModule, EvaluationData]:
    """Makes a method that learns from stored features."""
    data = _stored(config, benchmark, features)
    width = data.train.stored.features.width
    return joined(kind(config.method.settings, width, config.seed, **classes), data), data


def _prompts(
    make: Callable[..., CoOp],
    config: Config,
    benchmark: Benchmark,
    features: dict[str, Features],
    classes: dict[str, Any],
) -> tuple[LightningModule, EvaluationData]:
    """Makes a method that learns prompts on stored embeddings."""
    data = _stored(config, benchmark, features)
    return joined(make(config.method.settings, config.seed, benchmark.called, **classes), data), data


def _stored(config: Config, benchmark: Benchmark, features: dict[str, Features]) -> FeatureData:
    """Makes the data of stored features, with the patches that detectors look at."""
    kinds = Inside.of(token_arrays(config, benchmark)).tokens
    size, of_bank = config.evaluation.batch_size, partial(patched, config.detectors)
    return FeatureData(benchmark, features, size, kinds, of_bank)


def joined(module: LightningModule, data: FeatureData) -> LightningModule:
    """Gives a module the tables it learns from, and its batches to the data that serve them."""
    module.tables, data.training_batches = data.tables, module.training_batches
    return module


def check_texts(embeddings: Tensor, names: Sequence[str]) -> None:
    """Raises ConfigError for two classes whose prompts are one text to the encoder, by their prototypes (C, E).

    Its tokenizer may drop accents, marks, or everything after a number of words.
    """
    embeddings = unit(embeddings.double())
    for first in range(0, len(names), 1024):
        alike = embeddings[first : first + 1024] @ embeddings.T > 1 - SAME  # (≤ 1024, E) @ (E, C) -> (≤ 1024, C)
        if len(pairs := alike.triu(diagonal=first + 1).nonzero()):
            one, other = pairs[0].tolist()
            raise ConfigError(
                f"The classes {names[first + one]!r} and {names[other]!r} are one text to this encoder, whose tokenizer reads the same in "
                "both: call them otherwise (data.id.class_names)"
            )


def _fine_tuning(
    config: Config, benchmark: Benchmark, features: dict[str, Features], classes: dict[str, Any]
) -> tuple[LightningModule, EvaluationData]:
    from clip_ood.datamodules.image_data import ImageData
    from clip_ood.lightning_modules.fine_tune import FineTune

    settings = config.method.settings
    backbone = create_backbone(config.backbone.model_copy(update={"precision": "fp32", "text": None}))
    data = ImageData(benchmark, features, backbone, config.data, settings, config.seed)
    width, joint = widths(backbone)
    try_own(config.detectors, _count(benchmark), (width, joint or width))
    head = initial_head(settings.head, config.seed, backbone, width, features.get(START), classes)
    wanted = inside(config.detectors, _lacking(config, benchmark))
    check_inside(backbone.image_tower, wanted, config.backbone.model)
    return FineTune(settings, backbone, width, config.seed, head, wanted, **classes), data


@torch.inference_mode()
def widths(backbone: Backbone) -> tuple[int, int | None]:
    """Returns the widths of g and of h (None without a joint space), found by a blank image."""
    device = next(backbone.parameters()).device
    features = backbone.encode_image(torch.zeros(1, 3, *backbone.preprocessing.size, device=device))
    embeddings = backbone.project(features)
    return features.shape[1], None if embeddings is None else embeddings.shape[1]


def initial_head(
    start: str, seed: int, backbone: Backbone, width: int, stored: Features | None, classes: dict[str, Any]
) -> tuple[Tensor, Tensor] | None:
    """Returns W (C, D) and b (C,) of a head's initial weights: None for random ones, those of the text prototypes, or those of a
    run.

    From text: z_c = s ⟨P g, t_c⟩ / n, with n the mean norm of P g over the `stored` features, so that z is near s · cos(h, t_c).
    Raises: ValueError for a run of other classes, and for text if the projection P is not linear.
    """
    if start == "random":
        return None
    if start != "text":
        run, checkpoint = learnt_by(seed, start, classes["class_names"])
        head = StandardisedLinear(width, len(classes["class_names"]))
        weights = {k.removeprefix("head."): v for k, v in checkpoint["state_dict"].items() if "head." in k}
        try:
            head.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"method.finetune.head: {head_of(run)} holds no head of this encoder's width: {reason}"
            ) from error
        return head.folded()
    features = stored.features.take(stored.valid.nonzero().squeeze(1)).float()
    offset = backbone.projection(torch.zeros(1, width))
    matrix = backbone.projection(torch.eye(width)) - offset  # (D, E)
    projected = backbone.projection(features)
    if not torch.allclose(projected, features @ matrix + offset, rtol=1e-3, atol=1e-3):
        raise UserError("method.finetune.head: text needs a linear projection, and this encoder's is not: take random")
    text = classes["logit_scale"] * classes["text_embeddings"] / projected.norm(dim=1).mean()
    return text @ matrix.T, (text @ offset.T).squeeze(1)


# The functions that make a method's module and its data, by the section of its keys.
BUILDERS: dict[type[method_schema.Settings], Callable[..., tuple[LightningModule, EvaluationData]]] = {
    method_schema.ZeroShot: _zero_shot,
    method_schema.TipAdapter: _tip_adapter,
    method_schema.LinearProbe: partial(_probe, LinearProbe, LinearProbeSweep),
    method_schema.PLP: partial(_probe, PLP, PLPSweep),
    method_schema.CoOp: partial(_prompts, CoOp),
    method_schema.LoCoOp: partial(_prompts, LoCoOp),
    method_schema.NegPrompt: partial(_prompts, prompts.neg_prompt),
    method_schema.FineTune: _fine_tuning,
}
