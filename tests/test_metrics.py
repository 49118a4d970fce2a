"""Metrics against scikit-learn and naive loops over thresholds."""

import math
import subprocess
import sys

import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

import clip_ood.metrics as metrics
from clip_ood.metrics import (
    OODMetrics,
    ood_metrics,
    pr_curve,
    roc_curve,
    weighted_vote,
)


def scores(num_id, num_ood, scale=1.0, shift=0.0, decimals=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(num_id + num_ood, generator=generator, dtype=torch.float64)
    both[:num_id] += 1
    both = both * scale + shift
    both = both if decimals is None else both.round(decimals=decimals)
    return both[:num_id].to(dtype), both[num_id:].to(dtype)


CASES = {
    "plain": scores(120, 80),
    "near -1000, as Mahalanobis": scores(90, 110, scale=3, shift=-1000, dtype=torch.float32),
    "heavy ties": scores(150, 130, decimals=0),
    "multiples of 20": scores(100, 40, decimals=1),
    "all tied": (torch.zeros(20), torch.zeros(30)),
    "few ID": scores(3, 400, decimals=1),
    "few OOD": scores(400, 2),
    "one each": (torch.tensor([1.0]), torch.tensor([2.0])),
    "huge": scores(60, 60, scale=1e307),
    "huge float32": scores(60, 60, scale=1e37, dtype=torch.float32),
    "perfect": (torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])),
    "all wrong": (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])),
    "half precision": scores(80, 70, dtype=torch.float16),
}
case = pytest.mark.parametrize(("id_scores", "ood_scores"), CASES.values(), ids=CASES.keys())


def naive(id_scores, ood_scores):
    """The definitions, one threshold after the other."""
    s_id, s_ood = id_scores.double(), ood_scores.double()
    label = torch.cat([torch.ones(len(s_id)), torch.zeros(len(s_ood))]).numpy()
    both = torch.cat([s_id, s_ood])
    descending = sorted(both.tolist(), reverse=True)
    fpr95 = next((s_ood >= t).sum() / len(s_ood) for t in descending if 100 * (s_id >= t).sum() >= 95 * len(s_id))
    positive_ood = next(
        (s_id <= t).sum() / len(s_id) for t in reversed(descending) if 100 * (s_ood <= t).sum() >= 95 * len(s_ood)
    )
    f1 = max(2 * (s_id >= t).sum() / ((s_id >= t).sum() + (s_ood >= t).sum() + len(s_id)) for t in descending)
    return {
        "auroc": roc_auc_score(label, both.numpy()),
        "fpr95": fpr95.item(),
        "fpr95_ood_positive": positive_ood.item(),
        "aupr_in": average_precision_score(label, both.numpy()),
        "aupr_out": average_precision_score(1 - label, -both.numpy()),
        "best_f1": f1.item(),
    }


def values(estimates):
    return {name: estimate.value for name, estimate in estimates.items()}


@case
def test_metrics_follow_their_definitions(id_scores, ood_scores):
    assert values(ood_metrics(id_scores, ood_scores)) == pytest.approx(naive(id_scores, ood_scores), abs=1e-6)


def test_known_values():
    found = values(ood_metrics(torch.tensor([4.0, 2.0]), torch.tensor([3.0, 1.0])))
    assert found == pytest.approx(
        {"auroc": 3 / 4, "fpr95": 0.5, "fpr95_ood_positive": 0.5, "aupr_in": 5 / 6, "aupr_out": 5 / 6, "best_f1": 4 / 5}
    )


def test_95_percent_is_exact():
    """19 of 20 are enough, 18 of 19 are not."""
    ood = torch.tensor([0.5])
    assert ood_metrics(torch.arange(20.0), ood)["fpr95"].value == 0
    assert ood_metrics(torch.arange(19.0), ood)["fpr95"].value == 1


@case
def test_curves_hold_the_metrics(id_scores, ood_scores):
    expected = naive(id_scores, ood_scores)
    fpr, tpr = roc_curve(id_scores, ood_scores)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert torch.trapezoid(tpr, fpr).item() == pytest.approx(expected["auroc"])
    recall, precision = pr_curve(id_scores, ood_scores)
    assert (recall.diff() * precision[1:]).sum().item() == pytest.approx(expected["aupr_in"])


def test_pr_curve_is_scikit_learns():
    id_scores, ood_scores = scores(40, 30, decimals=1)
    recall, precision = pr_curve(id_scores, ood_scores)
    label = [1] * 40 + [0] * 30
    expected_precision, expected_recall, _ = precision_recall_curve(label, torch.cat([id_scores, ood_scores]).numpy())
    assert recall.tolist() == pytest.approx(expected_recall[::-1].tolist())
    assert precision.tolist() == pytest.approx(expected_precision[::-1].tolist())


@pytest.mark.parametrize(
    ("id_scores", "ood_scores", "message"),
    [
        ([], [1.0], "0 ID and 1 OOD"),
        ([1.0], [], "AUROC needs both ID and OOD images: got 1 ID and 0 OOD"),
        ([1.0, math.nan, math.inf], [1.0], "2 of 3 ID scores"),
        ([1.0], [-math.inf], "1 of 1 OOD scores"),
        ([[1.0, 2.0]], [1.0], r"ID scores have shape \(1, 2\)"),
    ],
)
def test_bad_scores_are_errors(id_scores, ood_scores, message):
    with pytest.raises(ValueError, match=message):
        ood_metrics(torch.tensor(id_scores), torch.tensor(ood_scores))


@case
def test_torchmetrics_version_in_batches(id_scores, ood_scores):
    both = torch.cat([id_scores, ood_scores])
    is_id = torch.arange(len(both)) < len(id_scores)
    metric = OODMetrics()
    for rows in torch.randperm(len(both), generator=torch.Generator().manual_seed(0)).split(16):
        metric.update(both[rows], is_id[rows])
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found == values(ood_metrics(id_scores, ood_scores))
    metric.reset()
    metric.update(both, ~is_id)
    assert metric.compute()["auroc"].item() == pytest.approx(1 - found["auroc"])


def test_torchmetrics_version_errors():
    metric = OODMetrics()
    with pytest.raises(ValueError, match=r"\(2,\) and is_id \(1,\)"):
        metric.update(torch.ones(2), torch.ones(1))
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        metric.update(torch.ones(2), torch.tensor([-1, 1]))
    metric.reset()
    metric.update(torch.ones(2), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="2 ID and 0 OOD"):
        metric.compute()


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_weighted_vote_against_a_loop(temperature):
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(200, 7, generator=generator)
    labels = torch.randint(-1, 4, (200, 7), generator=generator)
    labels[0] = -1
    expected = []
    for row_cosines, row_labels in zip(cosines.tolist(), labels.tolist(), strict=True):
        votes = [0.0] * 4
        for cosine, label in zip(row_cosines, row_labels, strict=True):
            if label >= 0:
                votes[label] += math.exp(cosine / temperature)
        expected.append(votes.index(max(votes)) if max(votes) else -1)
    assert weighted_vote(cosines, labels, 4, temperature).tolist() == expected


def test_weighted_vote_needs_no_voter_near_the_best_neighbour():
    """Weights are relative to the best neighbour that votes: else all of them vanish beside the unlabelled one."""
    assert weighted_vote(torch.tensor([[1.0, -0.9, -1.0]]), torch.tensor([[-1, 2, 1]]), 3, 0.002).tolist() == [2]


def test_weighted_vote_errors():
    with pytest.raises(ValueError, match="neighbour label 3 is outside"):
        weighted_vote(torch.ones(1, 2), torch.tensor([[0, 3]]), 3)
    with pytest.raises(ValueError, match="temperature is 0"):
        weighted_vote(torch.ones(1, 2), torch.tensor([[0, 1]]), 3, temperature=0)
    with pytest.raises(ValueError, match=r"\(1, 2\) and neighbour_labels \(2, 1\)"):
        weighted_vote(torch.ones(1, 2), torch.tensor([[0], [1]]), 3)


def test_importing_the_package_imports_no_torch():
    code = "import sys, clip_ood.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert all(getattr(metrics, name) is not None for name in metrics.__all__)
    with pytest.raises(AttributeError, match="'auc'; it has"):
        _ = metrics.auc
