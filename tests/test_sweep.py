"""A sweep's heads against probes trained alone and against naive loops; what chooses among them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.nn.functional import normalize

from clip_ood.config.loading import load_config
from clip_ood.config.schema import PLP as PLPSettings
from clip_ood.config.schema import LinearProbe as ProbeSettings
from clip_ood.data.benchmark import Part
from clip_ood.datamodules.feature_data import FeatureData
from clip_ood.errors import ConfigError
from clip_ood.experiments.models import joined
from clip_ood.features.rows import Rows
from clip_ood.features.stored_set import Features
from clip_ood.lightning_modules.linear_probe import LinearProbe
from clip_ood.lightning_modules.plp import PLP
from clip_ood.lightning_modules.probe_sweep import LinearProbeSweep, PLPSweep

WIDTH, CLASSES, SCALE = 6, ("cat", "dog", "fox"), 8.0
TRAIN, VAL, TEST = range(40), range(40, 60), range(60, 70)
LABELS = [(3 * row // 2) % 3 for row in range(70)]


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FEATURES = drawn(0, 70, WIDTH) * torch.tensor([1e-2, 1, 1, 5, 100, 0]) + torch.tensor([1, 0, 50, -3, 900, 0.7])
EMBEDDINGS, TEXTS = normalize(drawn(1, 70, 4), dim=1), normalize(drawn(2, 3, 4), dim=1)
PROBABILITIES = (SCALE * EMBEDDINGS.double() @ TEXTS.double().T).softmax(dim=1)


def feature_data(labels=LABELS, val=VAL):
    rows = {"bank": ("bank", TRAIN), "id_test": ("id", TEST), "train": ("train", TRAIN), "val": ("val", val)}
    parts = {name: Part(name, role, "", "id", list(of)) for name, (role, of) in rows.items()}
    benchmark = SimpleNamespace(
        parts=parts,
        evaluated=[parts["bank"], parts["id_test"]],
        labels=lambda part: [labels[row] for row in part.rows],
    )
    stored = Features(Rows(FEATURES.split(16)), Rows(EMBEDDINGS.split(16)), torch.ones(70, dtype=torch.bool))
    return FeatureData(benchmark, {"id": stored}, 8)


class Watch(Callback):
    """The batches of a fit and their learning rates, of the first head."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append((*batch[:2], trainer.optimizers[0].param_groups[0]["lr"]))


def fit(module, data=None, *watchers):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=module.settings.epochs,
        callbacks=list(watchers),
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    data = data or feature_data()
    trainer.fit(joined(module, data), datamodule=data)
    return module


def probe(**keys):
    settings = ProbeSettings(**({"epochs": 6, "batch_size": 16} | keys))
    return (LinearProbeSweep if settings.sweep else LinearProbe)(settings, WIDTH, 3, class_names=CLASSES)


def plp(**keys):
    settings = PLPSettings(**({"epochs": 6, "batch_size": 16} | keys))
    classes = {"class_names": CLASSES, "text_embeddings": TEXTS, "logit_scale": SCALE}
    return (PLPSweep if settings.sweep else PLP)(settings, WIDTH, 3, **classes)


def of_head(module, number):
    """Weight and bias of one head of a sweep."""
    rows = slice(3 * number, 3 * number + 3)
    return [parameter.detach()[rows] for parameter in module.heads.linear.parameters()]


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sweep", [{}, {"lr": [0.05]}])
@pytest.mark.parametrize("make", [probe, lambda **keys: plp(min_confidence=0.6, **keys)], ids=["probe", "plp"])
@pytest.mark.parametrize("per_class", [None, 4])
def test_a_sweep_of_one_head_is_the_ordinary_probe(make, sweep, per_class):
    swept, alone = fit(make(lr=0.05, per_class=per_class, sweep=sweep)), fit(make(lr=0.05, per_class=per_class))
    assert_same(swept.head.parameters(), alone.head.parameters())
    assert torch.equal(swept.head.mean, alone.head.mean) and torch.equal(swept.head.std, alone.head.std)
    assert not torch.equal(alone.head.linear.weight, make(lr=0.05).head.linear.weight)


def test_each_head_is_the_probe_of_its_settings_trained_alone():
    values = {"lr": [0.3, 0.01, 0.05], "weight_decay": [0, 0.2]}
    swept = fit(probe(sweep=values))
    for number, (lr, decay) in enumerate(itertools.product(*values.values())):
        assert_same(of_head(swept, number), fit(probe(lr=lr, weight_decay=decay)).head.parameters())
        assert swept.sweep[number]["lr"] == lr and swept.sweep[number]["weight_decay"] == decay


def test_thresholds_are_masks_of_the_loss_over_one_stream():
    thresholds, rates = [0.9, 0.5, 0.7], [0.3, 0.02]
    watch = Watch()
    swept = fit(plp(sweep={"lr": rates, "min_confidence": thresholds}), None, watch)
    confidence, pseudo = PROBABILITIES.max(dim=1)
    passing = confidence[: len(TRAIN)] >= 0.5
    seen = torch.cat([features[:, 1] for features, *_ in watch.batches[: -(-int(passing.sum()) // 16)]])
    assert sorted(seen.tolist()) == sorted(FEATURES[: len(TRAIN)][passing, 1].tolist())
    row_of = {value: row for row, value in enumerate(FEATURES[:, 1].tolist())}
    for number, (rate, threshold) in enumerate(itertools.product(rates, thresholds)):
        weight, bias = (p.detach().clone().requires_grad_() for p in plp().head.linear.parameters())
        adam = torch.optim.Adam([weight, bias], weight_decay=1e-3)
        for features, _, first_rate in watch.batches:
            rows = torch.tensor([row_of[value] for value in features[:, 1].tolist()])
            rows = rows[confidence[rows] >= threshold]
            z = (FEATURES[rows] - swept.head.mean) / swept.head.std @ weight.T + bias
            loss = -z.log_softmax(dim=1)[torch.arange(len(rows)), pseudo[rows]].mean()
            adam.param_groups[0]["lr"] = first_rate * rate / rates[0]
            adam.zero_grad()
            loss.backward()
            adam.step()
        torch.testing.assert_close(of_head(swept, number)[0], weight.detach(), rtol=1e-3, atol=1e-5)


def naive_choice(module, labels):
    """The head with most hits on the labelled val rows, then the lowest mean NLL: (head, hits, NLLs), in float64."""
    hits, nlls = [], []
    for number in range(len(module.candidates)):
        weight, bias = (each.double() for each in of_head(module, number))
        judged = [row for row in VAL if labels[row] >= 0]
        hit = nll = 0
        for row in judged:
            z = weight @ ((FEATURES[row].double() - module.head.mean) / module.head.std) + bias
            hit += int(z.argmax()) == labels[row]
            nll -= float(z.log_softmax(dim=0)[labels[row]])
        hits.append(hit / len(judged))
        nlls.append(nll / len(judged))
    return max(range(len(hits)), key=lambda h: (hits[h], -nlls[h])), hits, nlls


def assert_chosen(module, labels):
    best, hits, nlls = naive_choice(module, labels)
    assert [head["val_accuracy"] for head in module.sweep] == pytest.approx(hits)
    assert [head["val_nll"] for head in module.sweep] == pytest.approx(nlls, rel=1e-4)
    assert [head["chosen"] for head in module.sweep] == [number == best for number in range(len(hits))]
    assert_same(module.head.parameters(), of_head(module, best))
    assert module.settings == module.candidates[best]
    return hits


def test_the_head_with_most_hits_on_val_is_kept_and_ties_go_to_the_lower_nll():
    swept = fit(probe(sweep={"lr": [1e-6, 1e-5, 0.1, 0.5, 3.0], "weight_decay": [0, 1e-4]}))
    hits = assert_chosen(swept, LABELS)
    assert hits.count(max(hits)) > 1 and len(set(hits)) > 1


@pytest.mark.parametrize("thresholds", [[0.5], [0.8, 0.4], [0.0, 0.9]])
def test_plp_is_chosen_by_the_pseudo_labels_above_the_lowest_threshold(thresholds):
    swept = fit(plp(sweep={"lr": [1e-4, 0.05, 1.0], "min_confidence": thresholds}))
    confidence, pseudo = PROBABILITIES.max(dim=1)
    assert_chosen(swept, pseudo.where(confidence >= min(thresholds), -1).tolist())


def test_true_labels_have_no_say_in_plp():
    order = torch.randperm(70, generator=torch.Generator().manual_seed(5)).tolist()
    sweep = {"lr": [1e-4, 0.05, 1.0], "weight_decay": [0, 0.1], "min_confidence": [0.4, 0.8]}
    modules = [
        fit(plp(sweep=sweep), feature_data(labels)) for labels in (LABELS, [LABELS[i] for i in order], [-1] * 70)
    ]
    for module in modules[1:]:
        assert module.sweep == modules[0].sweep
        assert torch.equal(module.head.linear.weight, modules[0].head.linear.weight)


def test_a_head_that_diverges_harms_no_other_and_is_not_chosen():
    swept = fit(probe(sweep={"lr": [1e38, 0.05]}))
    assert [head["val_nll"] is None for head in swept.sweep] == [True, False] and swept.sweep[1]["chosen"]
    assert_same(swept.head.parameters(), fit(probe(lr=0.05)).head.parameters())
    with pytest.raises(ValueError, match=r"Every head of the sweep has diverged: lower"):
        fit(probe(sweep={"lr": [1e38, 2e38]}))


def test_the_pseudo_label_report_is_that_of_the_chosen_threshold():
    swept, data = plp(sweep={"min_confidence": [0.4, 0.9]}), feature_data()
    fit(swept, data)
    swept.on_test_start()
    chosen = swept.settings.min_confidence
    assert swept.report["passed"] == (PROBABILITIES[: len(TRAIN)].max(dim=1).values >= chosen).sum()
    bank = swept.bank_outputs(data.tables["bank"][torch.arange(len(TRAIN))])
    assert (bank.labels >= 0).sum() == swept.report["passed"]


def test_a_threshold_that_nothing_passes_is_named():
    with pytest.raises(ValueError, match=r"0 of 40 images have a pseudo-probability of at least 1,"):
        fit(plp(sweep={"min_confidence": [0.5, 1.0]}))


def test_a_val_without_labels_says_what_to_change():
    labels = [-1 if row in VAL else label for row, label in enumerate(LABELS)]
    with pytest.raises(ValueError, match=r"none of its 20 readable images has a label .* Raise data\.splits\.val"):
        fit(probe(sweep={}), feature_data(labels))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{plp: {sweep: {lr: []}}}", r"method\.plp\.sweep\.lr: must hold at least 1 item"),
        ("{plp: {sweep: {lr: [1e-3, 0.001]}}}", r"method\.plp\.sweep: lr lists 0\.001 twice"),
        ("{plp: {sweep: {min_confidence: [0.5, 1.5]}}}", r"sweep\.min_confidence\.1: .* less than or equal to 1"),
        ("{linear_probe: {sweep: {min_confidence: [0.5]}}}", r"no config key method\.linear_probe\.sweep\.min_conf"),
        ("{plp: {sweep: {weight_dekay: [0]}}}", r"sweep\.weight_dekay\. Did you mean weight_decay\?"),
    ],
)
def test_a_wrong_sweep_is_answered_before_anything_is_loaded(method, message):
    with pytest.raises(ConfigError, match=message):
        load_config("demo.yaml", [f"--method={method}"])
