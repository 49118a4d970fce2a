"""Learnt prompts: the tower on changed embeddings, a step and a run of CoOp against naive code, resumed runs and two processes."""

from __future__ import annotations

import csv
import math
import subprocess
import sys

import forked
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from interrupted import train_until
from lightning.pytorch import Trainer
from tiny_clip import PROJECT
from torch.nn.functional import cross_entropy, normalize

import detect
import eval as evaluation
import train
from clip_ood.backbones.create import create_backbone
from clip_ood.config.method_schema import CoOp as Settings
from clip_ood.config.schema import BackboneConfig
from clip_ood.errors import UserError
from clip_ood.evaluation import DetectorSuite
from clip_ood.lightning_modules.coop import CoOp, constant_then_cosine
from clip_ood.lightning_modules.linear_probe import few_shot
from clip_ood.outputs import Outputs, Reference
from clip_ood.texts.learnt_prompts import LearntPrompts
from clip_ood.texts.prompts import prototypes

NAMES = [["cat"], ["prairie dog", "marmot"], ["red-breasted merganser"]]
COOP = {"coop": {"epochs": 4, "batch_size": 7, "lr": 0.5, "context": 4, "per_class": 8}}
TOWERS = {  # how a text is padded, masked and pooled
    "clip": {},
    "custom": {"custom_text": True},
    "eos": {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 49407}},
    "bidirectional": {"custom_text": True, "text_cfg": {"no_causal_mask": True, "pool_type": "last"}},
    "coca": {"custom_text": True, "text_cfg": {"embed_cls": True}},
}


@pytest.fixture(scope="module", params=TOWERS)
def tower(request, tmp_path_factory):
    """Text towers of each kind that open_clip has of its own, with random weights."""
    changed = TOWERS[request.param]
    described = tiny_clip.CLIP | changed | {"text_cfg": tiny_clip.CLIP["text_cfg"] | changed.get("text_cfg", {})}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_clip, "CLIP", described)
        place = tiny_clip.make(tmp_path_factory.mktemp(request.param))
    return create_backbone(BackboneConfig(model=f"local-dir:{place}/clip")).text_side()


@pytest.fixture(scope="module")
def clip(root):
    return create_backbone(BackboneConfig(model=f"local-dir:{root}/clip")).text_side()


def test_a_context_of_words_embeds_as_these_words_do(tower):
    prompts = LearntPrompts(tower, NAMES, start="a photo of a")
    texts = tower.encode_text([f"a photo of a {name}." for names in NAMES for name in names])
    expected = prototypes(texts, 1, [1, 2, 1])
    torch.testing.assert_close(prompts(tower), expected, rtol=0, atol=1e-5)
    parts = [prompts(tower, first, last) for first, last in ((0, 1), (1, 3))]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("place", "text"), [("end", "a b c d {}."), ("middle", "a b {} c d."), ("front", "{} a b c d.")]
)
def test_the_class_name_stands_where_it_should(clip, place, text):
    prompts = LearntPrompts(clip, NAMES, length=4, place=place)
    words = clip.token_embeddings(clip.tokenize(["a b c d"]))[0, 1:5]
    with torch.no_grad():
        prompts.context.copy_(words)
    expected = clip.encode_text([text.format(name) for names in NAMES for name in names])
    torch.testing.assert_close(prompts(clip), prototypes(expected, 1, [1, 2, 1]), rtol=0, atol=1e-5)


def test_contexts_of_classes_are_their_own(clip):
    prompts = LearntPrompts(clip, NAMES, length=3, class_specific=True, seed=1)
    assert prompts.context.shape == (3, 3, 32) and prompts.context.std().item() == pytest.approx(0.02, rel=0.2)
    prompts(clip)[1].sum().backward()
    assert [bool(each.any()) for each in prompts.context.grad] == [False, True, False]
    again = LearntPrompts(clip, NAMES, length=3, class_specific=True, seed=1).context
    assert torch.equal(prompts.context, again)
    assert not torch.equal(again, LearntPrompts(clip, NAMES, length=3, class_specific=True, seed=2).context)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"names": [["cat"], ["a " * 60 + "dog"]]},
            r"The class 'a a .* context of 16 vectors do not fit the 77 tokens",
        ),
        ({"length": 76}, r"The class 'cat' and a context of 76 .* take a shorter context"),
        ({"start": ""}, r"cannot start from ''"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(clip, given, message):
    with pytest.raises(UserError, match=message):
        LearntPrompts(clip, **({"names": NAMES} | given))


def test_an_encoder_without_texts_says_so():
    backbone = create_backbone(BackboneConfig(library="timm", model="test_vit"))
    for ask in (
        lambda: backbone.tokenize(["cat"]),
        lambda: backbone.encode_tokens(torch.ones(1, 1), None),
        backbone.text_side,
    ):
        with pytest.raises(
            UserError, match=r"needs? a text tower that takes embeddings of tokens, and ImageBackbone has none"
        ):
            ask()


def test_the_rate_is_that_of_coops_code():
    """One epoch at 1e-5, then the cosine of a scheduler of `epochs` steps that has begun an epoch late."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    factor, rates = constant_then_cosine(50, 1, 1e-5 / 2e-3), []
    for _ in range(49):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert [2e-3 * factor(epoch) for epoch in range(50)] == pytest.approx([1e-5, *rates])


# A module


def module(clip, **settings):
    texts = prototypes(clip.encode_text([f"a photo of a {name}." for names in NAMES for name in names]), 1, [1, 2, 1])
    classes = {"class_names": tuple(names[0] for names in NAMES), "text_embeddings": texts, "logit_scale": 20.0}
    return CoOp(Settings(**settings), 3, NAMES, **classes)


def attached(module, clip, world=1):
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module._trainer, module._tower = trainer, [clip]
    module.prompts = module.make_prompts(clip)
    return module


def test_loss_and_gradient_are_those_of_a_naive_loop(clip):
    rows = normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 1, 1, 2, 0])
    coop = attached(module(clip, context=4), clip)
    loss, logits = coop.loss(rows, labels)
    loss.backward()

    context = coop.prompts.context.detach().clone().requires_grad_()  # (1, 4, W)
    model, texts = clip.model, []
    for names in NAMES:
        of_class = []
        for name in names:
            tokens = clip.tokenize([f"X X X X {name}."])
            embedded = model.token_embedding(tokens)
            x = torch.cat([embedded[:, :1], context, embedded[:, 5:]], dim=1) + model.positional_embedding
            x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
            vector = x[0, int(tokens[0].argmax())] @ model.text_projection
            of_class.append(vector / vector.norm())
        mean = sum(of_class) / len(of_class)
        texts.append(mean / mean.norm())
    naive = 0.0
    for row, label in zip(rows, labels.tolist(), strict=True):
        cosines = [20.0 * (row @ text) for text in texts]
        naive = naive - torch.log(cosines[label].exp() / sum(each.exp() for each in cosines)) / len(rows)
    naive.backward()
    assert loss.item() == pytest.approx(naive.item(), rel=1e-5) and logits.shape == (5, 3)
    torch.testing.assert_close(coop.prompts.context.grad, context.grad, rtol=1e-4, atol=5e-6)


def test_a_class_without_images_is_told_or_refused(clip, capsys):
    coop = attached(module(clip), clip)
    coop._check(torch.tensor([0, 0, 2, -1]))
    assert "1 of 3 classes have no training image (prairie dog)" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"images of two classes or more, and .* show 1\."):
        coop._check(torch.tensor([0, 0, -1]))
    with pytest.raises(UserError, match=r"context of classes without training images \(prairie dog\)"):
        attached(module(clip, class_specific=True), clip)._check(torch.tensor([0, 0, 2, -1]))


# Runs


@pytest.fixture(scope="module")
def run(root):
    train.main(["--config", tiny_clip.config(root, "coop", COOP)])
    return root / "runs" / "coop"


def test_a_run_learns_what_plain_torch_learns(root, run, clip):
    """32 training images, 8 of each of 3 classes drawn; steps of 7, 7, 7 and 3."""
    kept = tiny_clip.checkpoint(run)
    assert kept["global_step"] == 4 * 4
    loaded = CoOp.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    batches = loaded_batches(root)
    prompts = LearntPrompts(clip, [["cat"], ["dog"], ["fox"]], 4, seed=42)
    optimizer = torch.optim.SGD(prompts.parameters(), 0.5, momentum=0.9, weight_decay=5e-4)
    for epoch in range(4):
        rate = 1e-5 if epoch < 1 else 0.25 * (1 + math.cos(math.pi * (epoch - 1) / 4))
        optimizer.param_groups[0]["lr"] = rate
        batches.epoch = epoch
        for rows, labels, _ in batches:
            optimizer.zero_grad()
            cross_entropy(loaded.logit_scale * rows @ prompts(clip).T, labels).backward()
            optimizer.step()
    torch.testing.assert_close(kept["prompts"]["prompts.context"], prompts.context.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loaded.reference().text_embeddings, prompts(clip).detach(), rtol=0, atol=1e-4)
    assert not torch.allclose(loaded.learnt, loaded.text_embeddings, atol=1e-2)
    assert not any("tower" in name or "model" in name for name in kept["state_dict"])


def loaded_batches(root):
    """The batches of the run, from its own data."""
    from clip_ood.config.loading import load_config
    from clip_ood.data.labelled import FeatureTable
    from clip_ood.experiments.benchmarks import load_benchmark
    from clip_ood.experiments.extraction import load_features
    from clip_ood.experiments.trainer import new_trainer
    from clip_ood.lightning_modules.batches import DeviceBatches

    config = load_config(str(root / "coop.yaml"))
    benchmark = load_benchmark(config)
    features, _ = load_features(config, benchmark, new_trainer({"logger": False}, config.trainer), root)
    part = benchmark.parts["train"]
    table = FeatureTable(part, features[part.images], benchmark.labels(part))
    targets = few_shot(table.labels, 8, 42)
    kept = (targets >= 0).nonzero().squeeze(1)
    return DeviceBatches(table[kept].embeddings, targets[kept], 7, 42)


def test_scores_are_those_of_the_learnt_texts_and_none_of_a_head(run):
    results = tiny_clip.results(run)
    scored = {row["detector"] for row in results["rows"]}
    assert "mcm" in scored and not scored & {"msp", "energy", "vim"}
    reasons = {each["detector"]: each["reason"] for each in results["omitted"]}
    assert reasons["msp"] == "needs logits: this run trains no head"
    assert results["trained_on"] == {"images": 24, "classes": 3, "fewest": 8, "most": 8}


def test_a_run_is_scored_without_its_text_tower(root, run, monkeypatch):
    def forbidden(spec, *_):
        raise AssertionError("the text tower was loaded")

    monkeypatch.setattr("clip_ood.experiments.models.create_backbone", forbidden)
    evaluation.main(["--run", str(run)])
    assert tiny_clip.results(root / "runs" / "coop-eval")["rows"] == tiny_clip.results(run)["rows"]


def test_a_run_with_val_logs_it_and_judges_images_by_the_learnt_texts(root, capsys):
    config = tiny_clip.config(
        root, "with_val", {"coop": {"epochs": 2, "start": "a photo of a", "class_specific": True}}
    )
    train.main(["--config", config, "--data.splits.val=0.3", "--trainer.logger=csv"])
    run = root / "runs" / "with_val"
    lines = list(csv.DictReader(next(run.rglob("metrics.csv")).open()))
    for tag in ("val/loss", "val/accuracy"):
        assert len([line for line in lines if line[tag]]) == 2 + 1  # and at the test
    capsys.readouterr()
    with pytest.raises(SystemExit):
        detect.main(["--run", str(run), "--detector=mcm", "--accept=0.8", str(root / "data" / "near")])
    judged = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    scores = pq.read_table(run / "scores.parquet").to_pandas().query("set == 'near'")
    assert len(judged) == 9
    assert [float(each["score"]) for each in judged] == pytest.approx(scores["mcm"].tolist(), abs=1e-5)


def test_a_resumed_run_ends_as_an_uninterrupted_one(root, run):
    config = tiny_clip.config(root, "resumed", COOP)
    train_until(2, CoOp, config)
    assert tiny_clip.checkpoint(root / "runs" / "resumed")["global_step"] == 2 * 4
    train.main(["--config", config, "--resume"])
    one, two = (tiny_clip.checkpoint(each) for each in (run, root / "runs" / "resumed"))
    assert torch.equal(one["prompts"]["prompts.context"], two["prompts"]["prompts.context"])
    assert torch.equal(one["state_dict"]["learnt"], two["state_dict"]["learnt"])
    assert tiny_clip.results(run)["rows"] == tiny_clip.results(root / "runs" / "resumed")["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_processes_learn_what_one_does(root, run, devices):
    """Also one more than there are classes."""
    config = tiny_clip.config(root, f"of_{devices}", COOP)
    several = [f"--trainer.devices={devices}", "--trainer.strategy=ddp"]
    command = [sys.executable, str(PROJECT / "train.py"), "--config", config, *several]
    process = forked.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    told = process.communicate(timeout=200)[0].decode()
    assert process.returncode == 0, told
    one, two = (tiny_clip.checkpoint(each) for each in (run, root / "runs" / f"of_{devices}"))
    assert one["global_step"] == two["global_step"]
    torch.testing.assert_close(
        two["prompts"]["prompts.context"], one["prompts"]["prompts.context"], rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(two["state_dict"]["learnt"], one["state_dict"]["learnt"], rtol=0, atol=1e-4)


def test_prompts_that_diverged_are_told():
    suite = DetectorSuite(
        Reference(class_names=("a", "b"), text_embeddings=torch.full((2, 3), torch.nan)), ["knn", "mcm"]
    )
    suite.update(Outputs(features=torch.eye(3), embeddings=torch.eye(3), indices=torch.arange(3)))
    suite.fit()
    assert [each.detector for each in suite.omitted] == ["mcm"] and "learnt prompts diverged" in suite.omitted[0].reason
