"""Heads and what they are trained on, against naive loops: standardisation, pseudo-labels, schedule, batches, PLP."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.nn.functional import normalize

from clip_ood.config.schema import PLP as PLPSettings
from clip_ood.config.schema import LinearProbe as ProbeSettings
from clip_ood.data.benchmark import BANK, Part
from clip_ood.datamodules.evaluation_data import EvaluationData
from clip_ood.datamodules.feature_data import FeatureData
from clip_ood.experiments.models import joined
from clip_ood.features.rows import Rows
from clip_ood.features.stored_set import Features
from clip_ood.head import StandardisedLinear, mean_and_std
from clip_ood.lightning_modules import linear_probe
from clip_ood.lightning_modules.batches import DeviceBatches
from clip_ood.lightning_modules.linear_probe import LinearProbe, few_shot, warmup_cosine
from clip_ood.lightning_modules.plp import PLP
from clip_ood.outputs import Outputs
from clip_ood.texts.prompts import fill, prototypes
from clip_ood.texts.pseudo_labels import most_confident, pseudo_labels, pseudo_probabilities

ROWS, WIDTH, CLASSES = 23, 6, ("cat", "dog", "fox")
SPLIT = [0, 2, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 18, 19, 21, 22]  # 16 training rows
UNREADABLE = 9


def features(seed=0):
    """Features far from 0, of unlike scales, the last one constant."""
    values = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return values * torch.tensor([1e-3, 1, 1, 5, 100, 0]) + torch.tensor([1, 0, 50, -3, 1000, 0.7])


def embeddings():
    return normalize(torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1)), dim=1)


def texts():
    return normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(2)), dim=1)


def feature_data(labels=None, batch_size=5):
    """A benchmark of one image set of 23 rows in chunks of 10, one of them unreadable."""
    labels = [row % 3 for row in range(ROWS)] if labels is None else labels
    rest = [row for row in range(ROWS) if row not in SPLIT]
    parts = {
        name: Part(name, role, "", "id", rows)
        for name, role, rows in (("bank", "bank", SPLIT), ("id_test", "id", rest), ("train", "train", SPLIT))
    }
    benchmark = SimpleNamespace(
        parts=parts,
        evaluated=[parts["bank"], parts["id_test"]],
        labels=lambda part: [labels[row] for row in part.rows],
    )
    valid = torch.ones(ROWS, dtype=torch.bool)
    valid[UNREADABLE] = False
    stored = Features(Rows(features().split(10)), Rows(embeddings().split(10)), valid)
    return FeatureData(benchmark, {"id": stored}, batch_size)


def fit(module, data, epochs, *watchers):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=list(watchers),
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.fit(joined(module, data), datamodule=data)
    return module


def probe(**settings):
    return LinearProbe(ProbeSettings(**settings), WIDTH, 0, class_names=CLASSES)


def plp(min_confidence, scale=8.0, **settings):
    settings = PLPSettings(min_confidence=min_confidence, epochs=1, **settings)
    return PLP(settings, WIDTH, 0, class_names=CLASSES, text_embeddings=texts(), logit_scale=scale)


@pytest.mark.parametrize("block", [1, 4, 8192])
def test_mean_and_std_stream_over_chunks(block):
    rows = torch.tensor(SPLIT)
    mean, std = mean_and_std(Rows(features().split(10)), rows, block)
    expected = features()[rows].double()
    torch.testing.assert_close(mean.double(), expected.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.double(), expected.std(0, correction=0), rtol=1e-5, atol=0)


def test_folding_the_standardisation_changes_no_logit_and_a_constant_feature_stays_finite():
    head = StandardisedLinear(WIDTH, 3)
    head.standardise(*mean_and_std(Rows(features().split(10)), torch.arange(ROWS)))
    assert head.std[-1] == 1 and head(features()).isfinite().all()
    weight, bias = head.folded()
    torch.testing.assert_close(
        features() @ weight.T + bias, head(features()), rtol=1e-5, atol=1e-3
    )  # means of 1e3 stds
    values = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0))
    head.standardise(values.mean(0), values.std(0))
    weight, bias = head.folded()
    torch.testing.assert_close(values @ weight.T + bias, head(values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("min_confidence", [0, 0.6, 1.0])
def test_pseudo_labels_are_confident_softmaxes(min_confidence):
    found = pseudo_labels(embeddings(), texts(), 3.0, min_confidence)
    for image, label in zip(embeddings(), found.tolist(), strict=True):
        weights = [math.exp(3.0 * float(image @ text)) for text in texts()]
        best = max(range(3), key=weights.__getitem__)
        assert label == (best if weights[best] / sum(weights) >= min_confidence else -1)
    assert (found >= 0).any() == (min_confidence < 1)


def test_prototypes_are_normalised_means_of_normalised_prompts():
    prompts, names = ["a {}.", "the {}.", "{}s"], ["cat", "dog"]
    assert fill(prompts, names)[3] == "a dog."
    vectors = torch.randn(6, 4) * torch.arange(1, 7)[:, None]
    for index, prototype in enumerate(prototypes(vectors, 3)):
        of_class = [vector / vector.norm() for vector in vectors[3 * index : 3 * index + 3]]
        mean = sum(of_class) / 3
        torch.testing.assert_close(prototype, mean / mean.norm())


@pytest.mark.parametrize("steps", [1, 7, 100, 1234])
def test_the_schedule_warms_up_over_a_tenth_and_falls_to_zero(steps):
    factor = warmup_cosine(steps)
    rising = max(steps // 10, 1)
    values = [factor(step) for step in range(steps + 1)]
    assert values[rising - 1] == max(values) == 1 and values[0] == pytest.approx(1 / rising)
    assert values[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    falling = values[rising - 1 if steps == rising else rising :]
    assert falling == sorted(falling, reverse=True)
    assert steps == rising or values[-1] == pytest.approx(0, abs=1e-12)


class Watch(Callback):
    """Learning rates, optimizers and the batches' features of a fit."""

    def __init__(self):
        self.rates, self.batches = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.settings = trainer.optimizers[0].param_groups[0]
        self.kind = type(trainer.optimizers[0])
        self.rates.append(self.settings["lr"])
        self.batches.append((trainer.current_epoch, batch))


def test_a_probe_trains_with_adam_at_the_scaled_rate_on_every_readable_row_each_epoch():
    watch, data = Watch(), feature_data()
    module = fit(probe(epochs=10, batch_size=4, lr=0.128, weight_decay=0.05), data, 10, watch)
    assert watch.kind is torch.optim.Adam and watch.settings["weight_decay"] == 0.05
    schedule = warmup_cosine(40)
    assert watch.rates == pytest.approx([0.128 * 4 / 256 * schedule(step) for step in range(40)])
    readable = [row for row in SPLIT if row != UNREADABLE]
    expected = sorted(features()[readable, 1].tolist())
    orders = []
    for epoch in range(10):
        seen = torch.cat([batch[0][:, 1] for number, batch in watch.batches if number == epoch]).tolist()
        assert sorted(seen) == expected
        orders.append(tuple(seen))
    assert len(set(orders)) == 10
    mean, std = mean_and_std(Rows(features().split(10)), torch.tensor(readable))
    assert torch.equal(module.head.mean, mean) and torch.equal(module.head.std[:-1], std[:-1])


def test_a_step_is_that_of_plain_torch():
    watch = Watch()
    module = probe(epochs=2, batch_size=4, lr=0.5)
    weight = module.head.linear.weight.detach().clone().requires_grad_()
    bias = module.head.linear.bias.detach().clone().requires_grad_()
    fit(module, feature_data(), 2, watch)
    optimizer = torch.optim.Adam([weight, bias], weight_decay=1e-3)
    for rate, (_, (batch, labels, _)) in zip(watch.rates, watch.batches, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        logits = (batch - module.head.mean) / module.head.std @ weight.T + bias
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    torch.testing.assert_close(module.head.linear.weight, weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(module.head.linear.bias, bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rows", "batch_size"), [(10, 4), (9, 4), (7, 7), (3, 8), (5, 1)])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_devices_share_the_same_global_batches(rows, batch_size, world):
    labels = torch.arange(rows)
    whole = [batch for batch, _, _ in DeviceBatches(labels[:, None], labels, batch_size, seed=3)]
    shares = [list(DeviceBatches(labels[:, None], labels, batch_size, 3, rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole)} == {math.ceil(rows / batch_size)}
    for step, expected in enumerate(whole):
        parts = [share[step] for share in shares]
        together = torch.cat([part[0] for part in parts])
        assert sorted(together.flatten().tolist()) == sorted(expected.flatten().tolist())
        assert all(torch.equal(part[0][:, 0], part[1]) and part[2] == len(expected) for part in parts)
        assert max(len(part[1]) for part in parts) - min(len(part[1]) for part in parts) <= 1


def test_the_order_of_batches_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        batches = DeviceBatches(torch.arange(50)[:, None], torch.arange(50), 8, seed)
        batches.epoch = epoch
        torch.rand(1)  # the global generator is not asked
        return tuple(torch.cat([labels for _, labels, _ in batches]).tolist())

    assert order(1, 0) == order(1, 0)
    assert len({order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)}) == 9


@pytest.mark.parametrize("per_class", [1, 3, 100])
def test_few_shot_keeps_so_many_of_each_class(per_class):
    labels = torch.tensor([0, 1, -1, 1, 0, 2, 0, 1, -1, 0, 0])
    kept = few_shot(labels, per_class, seed=0)
    assert (kept[kept >= 0] == labels[kept >= 0]).all()
    for label in range(3):
        assert (kept == label).sum() == min(per_class, int((labels == label).sum()))
    assert torch.equal(kept, few_shot(labels, per_class, seed=0))


def test_few_shot_draws_by_its_seed_and_leaves_all_rows_by_default():
    labels = torch.arange(100) % 2
    assert torch.equal(few_shot(labels, None, seed=0), labels)
    assert not torch.equal(few_shot(labels, 5, seed=0), few_shot(labels, 5, seed=1))


def test_plp_trains_on_passing_rows_and_reports_them():
    data = feature_data()
    rows = torch.tensor([row for row in SPLIT if row != UNREADABLE])
    probabilities = (8 * embeddings()[rows] @ texts().T).softmax(1)
    confidence, labels = probabilities.max(1)
    threshold = float(confidence.median())
    passed = confidence >= threshold
    watch = Watch()
    module = fit(plp(threshold, batch_size=100), data, 1, watch)
    assert passed.sum() == 8
    ((_, (batch, trained_on, _)),) = watch.batches
    pairs = {(row.item(), label) for row, label in zip(batch[:, 1], trained_on.tolist(), strict=True)}
    expected = features()[rows[passed], 1].tolist()
    assert pairs == set(zip(expected, labels[passed].tolist(), strict=True)) and len(batch) == 8
    assert module.report == {
        "images": 15,
        "passed": 8,
        "classes": labels[passed].unique().numel(),
        "starved": sum(int((labels[passed] == label).sum()) < 2 for label in range(len(texts()))),
        "accuracy": pytest.approx((labels[passed] == rows[passed] % 3).double().mean().item()),
    }
    bank = module.bank_outputs(data.tables["bank"][torch.arange(15)])
    assert torch.equal(bank.labels, labels.where(passed, -1))
    rows = data.tables["bank"][torch.arange(15)]
    assert torch.equal(module.validation_step(rows, 0, BANK).labels, bank.labels)
    test = data.tables["id_test"][torch.arange(7)]
    for seen in (module.outputs(test), module.test_step(test, 0, 1), module.validation_step(test, 0)):
        assert torch.equal(seen.labels, test.labels)  # of ID val as the only loader, too


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_most_confident_of_each_class_are_those_that_a_loop_finds(count):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(-1, 4, (60,), generator=generator)
    confidence = torch.randint(0, 9, (60,), generator=generator) / 8  # with ties
    kept = most_confident(labels, confidence, count)
    for label in range(4):
        rows = [row for row in range(60) if labels[row] == label]
        best = sorted(rows, key=lambda row: (-confidence[row].item(), row))[:count]
        assert (kept == label).nonzero().squeeze(1).tolist() == sorted(best)
    assert not ((kept >= 0) & (labels < 0)).any()


def test_plp_may_take_the_most_confident_images_of_each_class():
    data = feature_data()
    module = fit(plp(0.0, per_class=2, drawn="by_confidence", batch_size=100), data, 1)
    confidence, labels = pseudo_probabilities(embeddings(), texts(), 8.0)
    rows = data.tables["train"].rows
    confidence, labels, targets = confidence[rows], labels[rows], module.targets(data.tables["train"])
    for label in labels.unique():
        mine, kept = confidence[labels == label], confidence[targets == label]
        assert torch.equal(kept.sort(descending=True).values, mine.sort(descending=True).values[:2])
    assert module.trained_on["most"] == 2 and module.trained_on["images"] == int((targets >= 0).sum()) < len(rows)
    with pytest.raises(ValueError, match="by_confidence goes with per_class"):
        plp(0.0, drawn="by_confidence")


def test_plp_never_sees_true_labels():
    labelled, flat = (fit(plp(0.0), feature_data(labels), 1) for labels in (None, [-1] * ROWS))
    assert torch.equal(labelled.head.linear.weight, flat.head.linear.weight)
    assert flat.report["accuracy"] is None and flat.report["passed"] == 15


@pytest.mark.parametrize(
    ("min_confidence", "message"),
    [(1.0, r"0 of 15 images .* at least 1, in 0 classes"), ("highest", r"1 of 15 images .* in 1 classes")],
)
def test_plp_says_how_many_passed_and_what_to_change(min_confidence, message):
    if min_confidence == "highest":
        rows = [row for row in SPLIT if row != UNREADABLE]
        min_confidence = float((8 * embeddings()[rows] @ texts().T).softmax(1).max()) - 1e-6
    with pytest.raises(ValueError, match=message + r".*Lower method\.plp\.min_confidence"):
        fit(plp(min_confidence), feature_data(), 1)


def test_a_probe_of_one_class_says_so():
    with pytest.raises(ValueError, match=r"two classes or more, and the 15 readable training images show 1"):
        fit(probe(epochs=1), feature_data([0] * ROWS), 1)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_devices_score_each_readable_row_once(world, batch_size):
    data = feature_data(batch_size=batch_size)
    served = {0: [], 1: []}
    for rank in range(world):
        data.trainer = SimpleNamespace(world_size=world, global_rank=rank)
        for loader, batches in enumerate(data.test_dataloader()):
            assert len(batches) >= 1  # collective calls need every device in every set
            for batch in batches:
                assert isinstance(batch, Outputs) and len(batch) <= batch_size
                assert torch.equal(batch.features, features()[batch.indices])
                assert torch.equal(batch.labels, batch.indices % 3)
                served[loader] += batch.indices.tolist()
    assert sorted(served[0]) == [row for row in SPLIT if row != UNREADABLE]
    assert sorted(served[1]) == [row for row in range(ROWS) if row not in SPLIT]


def test_data_without_loaders_of_its_own_cannot_be_made():
    class Half(EvaluationData):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half(None, {}, 1)


@pytest.mark.parametrize(("small", "threads"), [(0, 3), (10**6, 1)])
def test_a_small_step_takes_one_thread_and_what_is_between_steps_all(monkeypatch, small, threads):
    monkeypatch.setattr(linear_probe, "SMALL", small)
    within, between = [], []

    class Watched(LinearProbe):
        def training_step(self, *args):
            within.append(torch.get_num_threads())
            return super().training_step(*args)

    class Between(Callback):
        def on_train_batch_end(self, *args):
            between.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fit(Watched(ProbeSettings(epochs=1), WIDTH, 0, class_names=CLASSES), feature_data(), 1, Between())
    finally:
        torch.set_num_threads(before)
    assert set(within) == {threads} and set(between) == {3}
