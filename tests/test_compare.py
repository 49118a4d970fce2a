"""Runs side by side: paired intervals against the definition, bootstrap and scipy; tables and files of eval.py --compare."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

import eval as evaluation
import train
from clip_ood.metrics.influence import auroc_influence, average, standard_error
from clip_ood.metrics.paired import Difference, Line, auroc_difference, holm
from clip_ood.metrics.ranking import rank_scores

PROBE = {"linear_probe": {"epochs": 5, "batch_size": 16, "lr": 0.01}}
HALF_WIDTH = 1.959964


def draw(seed, count, shift=0.0, ties=False):
    """Two correlated scores of the same images."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(count, generator=generator, dtype=torch.float64) + shift
    pair = [common + torch.randn(count, generator=generator, dtype=torch.float64) * w for w in (0.5, 1.0)]
    return [scores.round() if ties else scores for scores in pair]


def wins(inside, outside):
    """(M, N): 1 where an ID image beats an OOD image, ½ for a tie."""
    difference = inside[:, None] - outside[None, :]
    return (difference > 0).double() + 0.5 * (difference == 0).double()


def place(inside, outside):
    """The influence on the AUROC averaged over OOD sets."""
    return average([auroc_influence(rank_scores(inside, each)) for each in outside])


@pytest.mark.parametrize("ties", [False, True])
def test_influences_are_shares_of_won_pairs(ties):
    inside, outside = draw(0, 30, 1, ties)[0], draw(1, 20, 0, ties)[0]
    found, pairs = auroc_influence(rank_scores(inside, outside)), wins(inside, outside)
    torch.testing.assert_close(found.of_id, pairs.mean(1) - pairs.mean())
    torch.testing.assert_close(found.of_ood[0], pairs.mean(0) - pairs.mean())
    labels = np.r_[np.ones(30), np.zeros(20)]
    auroc = roc_auc_score(labels, torch.cat([inside, outside]))
    assert found.value == pytest.approx(auroc)


def difference(first, second):
    """Of two scores of a single seed: (ID scores, OOD scores of each set)."""
    return auroc_difference([place(*first)], [place(*second)])


def brute_force(first, second):
    """Value and variance of a difference of mean AUROCs from DeLong's covariances, a pair of (score, set) at a time."""
    scores = [(1, second[0], x, k) for k, x in enumerate(second[1])]
    scores += [(-1, first[0], x, k) for k, x in enumerate(first[1])]
    sets, value, variance = len(first[1]), 0.0, 0.0
    for sign, inside, outside, k in scores:
        pairs = wins(inside, outside)
        value += sign * pairs.mean().item() / sets
        for other_sign, other_inside, other_outside, j in scores:
            others = wins(other_inside, other_outside)
            covariance = np.cov(pairs.mean(1), others.mean(1))[0, 1] / len(inside)
            if j == k:  # the same OOD images; those of two sets are independent
                covariance += np.cov(pairs.mean(0), others.mean(0))[0, 1] / len(outside)
            variance += sign * other_sign * covariance / sets**2
    return value, variance


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(20,), (20, 35, 8)])
def test_the_interval_is_delongs_for_paired_scores(sizes, ties):
    inside = draw(0, 30, 1.2, ties)
    outside = [draw(1 + k, size, 0.2 * k, ties) for k, size in enumerate(sizes)]
    first, second = ((inside[i], [pair[i] for pair in outside]) for i in (0, 1))
    found = difference(first, second)
    value, variance = brute_force(first, second)
    assert found.value == pytest.approx(value, abs=1e-12)
    margin = HALF_WIDTH * math.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((value - margin, value + margin), abs=1e-6)
    back = difference(second, first)
    assert (back.low, back.value, back.high) == pytest.approx((-found.high, -found.value, -found.low))


def test_against_a_constant_score_the_interval_is_that_of_one_auroc():
    inside, outside = draw(0, 40, 1)[0], draw(1, 25)[0]
    found = difference((torch.zeros(40), [torch.zeros(25)]), (inside, [outside]))
    error = standard_error([auroc_influence(rank_scores(inside, outside))])
    assert found.high - found.low == pytest.approx(2 * HALF_WIDTH * error, rel=1e-6)


def test_the_interval_is_near_that_of_a_paired_bootstrap():
    inside, outside = draw(0, 150, 1.0), [draw(1, 120), draw(2, 90, 0.5)]
    found = difference(*((inside[i], [pair[i] for pair in outside]) for i in (0, 1)))
    generator, differences = torch.Generator().manual_seed(0), []
    for _ in range(400):
        rows = torch.randint(150, (150,), generator=generator)
        columns = [torch.randint(len(pair[0]), (len(pair[0]),), generator=generator) for pair in outside]
        of_score = [
            np.mean([wins(inside[i][rows], pair[i][c]).mean() for pair, c in zip(outside, columns, strict=True)])
            for i in (0, 1)
        ]
        differences.append(of_score[1] - of_score[0])
    low, high = np.quantile(differences, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_an_order_is_claimed_only_where_the_test_finds_one():
    far, near = torch.arange(100.0) + 100, torch.arange(100.0)
    noise = draw(3, 100)
    better = difference((noise[0], [noise[1]]), (far, [near]))
    assert better.claimed and better.low > 0
    assert not difference((far, [near]), (far + 1, [near])).claimed
    single = difference((noise[0], [noise[1][:1]]), (far, [near[:1]]))
    assert single.low == -math.inf and not single.claimed


def test_holms_steps():
    """By hand: 4 × 0.005, 3 × 0.01, 2 × 0.03, and no less than the step before; the order of the lines stays."""
    p = [[0.01, 0.04], [0.03, 0.005]]
    lines = [Line("knn", str(k), [], [Difference(0.1, 0, 0.2, p=each) for each in row]) for k, row in enumerate(p)]
    found = [[each.corrected for each in line.differences] for line in holm(lines)]
    assert found == [pytest.approx([0.03, 0.06]), pytest.approx([0.06, 0.02])]
    assert [[each.claimed for each in line.differences] for line in holm(lines)] == [[True, False], [False, True]]


# Whole runs


def zero_shot(root, name, *options, **keys):
    evaluation.main(["--config", tiny_clip.config(root, name, {"zero_shot": {}}, **keys), *options])
    return root / "runs" / name


@pytest.fixture(scope="module")
def runs(root):
    train.main(["--config", tiny_clip.config(root, "probe", PROBE)])
    return zero_shot(root, "zero_shot"), root / "runs" / "probe"


@pytest.fixture(scope="module")
def seeded(root):
    """Both methods over three seeds, and zero-shot over a single one."""
    train.main(["--config", tiny_clip.config(root, "probes", PROBE), "--seeds", "1", "2", "3"])
    zero_shot(root, "single", "--seeds", "42")
    return zero_shot(root, "zero_shots", "--seeds", "3", "2", "4"), root / "runs" / "probes"


def compared(capsys, *specs):
    """Rows of the CSV file by (detector, set, run), and the cells of the Markdown table by (detector, set)."""
    capsys.readouterr()
    evaluation.main(["--compare", *map(str, specs)])
    markdown, table, _ = capsys.readouterr().out.strip().split("Written: ")[1].splitlines()[0].split(", ")
    with Path(table).open(newline="") as file:
        rows = {(row["detector"], row["ood"], row["run"]): row for row in csv.DictReader(file)}
    lines = [line for line in Path(markdown).read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {2 + 2 * len(specs) - 1}
    return rows, {(line[0], line[1]): line[2:] for line in cells[2:]}


def of(run, detector, ood):
    rows = tiny_clip.results(run)["rows"]
    return next(row["auroc"] for row in rows if (row["detector"], row["ood"]) == (detector, ood))


def test_tables_hold_the_runs_own_numbers_and_their_paired_differences(runs, capsys):
    rows, cells = compared(capsys, *runs)
    assert cells.keys() == {
        (d, s) for d in ("knn", "mcm", "mahalanobis", "rmd", "mahalanobis_pp") for s in ("near", "far", "lone", "mean")
    }
    for (detector, ood), (first, second, difference) in cells.items():
        a, b = rows[detector, ood, "zero_shot"], rows[detector, ood, "probe"]
        assert [a["auroc"], b["auroc"]] == [first, second] == [f"{100 * of(run, detector, ood):.2f}" for run in runs]
        assert (a["difference"], a["low"], a["high"]) == ("", "", "")
        numbers = re.fullmatch(r"([+-][\d.]+) \[([+-][\d.inf]+), ([+-][\d.inf]+)\]( \*)?", difference).groups()
        assert [float(x) for x in numbers[:3]] == [float(b[key]) for key in ("difference", "low", "high")]
        assert float(numbers[0]) == pytest.approx(float(second) - float(first), abs=0.011)
    for detector in ("knn", "mahalanobis", "rmd"):  # of the same features: the same to the last image
        assert float(rows[detector, "near", "probe"]["low"]) == 0 and "*" not in cells[detector, "near"][-1]


def test_claims_are_those_of_the_test_that_is_corrected_for_the_table(runs, capsys):
    rows, cells = compared(capsys, *runs)
    tested = [row for row in rows.values() if row["p"]]
    assert len(tested) == len(cells)
    ordered, highest = sorted(tested, key=lambda row: float(row["p"])), 0.0
    for place, row in enumerate(ordered):  # Holm's steps
        highest = max(highest, min(1.0, (len(ordered) - place) * float(row["p"])))
        assert float(row["p_holm"]) == pytest.approx(highest, rel=0.01)
        assert cells[row["detector"], row["ood"]][-1].endswith("*") == (float(row["p_holm"]) <= 0.05)
    rows, _ = compared(capsys, f"{runs[0]}:mcm", f"{runs[1]}:msp")
    row = rows["mcm / msp", "far", "probe:msp"]
    found = difference(
        *(
            (torch.from_numpy(np.array(x)), [torch.from_numpy(np.array(y))])
            for x, y in (scores(runs[0], "mcm"), scores(runs[1], "msp"))
        )
    )
    z = found.value / ((found.high - found.low) / 2 / HALF_WIDTH)
    assert float(row["p"]) == pytest.approx(2 * norm.sf(abs(z)), rel=0.01)


def test_a_paper_is_given_a_table_and_what_was_done(runs, capsys, tmp_path):
    _, cells = compared(capsys, *runs)
    stem = runs[0].parent / f"compare-{runs[0].name}-{runs[1].name}"
    latex, markdown = stem.with_suffix(".tex").read_text(), stem.with_suffix(".md").read_text()
    for told in (
        f"each of {len(cells)} differences to",
        "by DeLong's test",
        "Holm's method (1979)",
        "near 9",
        "far 7",
        "lone 1",
    ):
        assert told in latex and told in markdown
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(cells) and all(line.count("&") == 4 for line in lines)
    assert body.count(r"\textbf") == sum(each[-1].endswith("*") for each in cells.values())
    assert r"mahalanobis\_pp & near" in body


def test_one_detector_of_each_run(root, runs, capsys):
    (row,) = [r for (_, ood, run), r in compared(capsys, f"{runs[0]}:knn", f"{runs[1]}:msp")[0].items()
              if (ood, run) == ("far", "probe:msp")]  # fmt: skip
    assert row["detector"] == "knn / msp" and row["auroc"] == f"{100 * of(runs[1], 'msp', 'far'):.2f}"
    tables = [torch.from_numpy(np.array(column)) for column in scores(runs[0], "knn") + scores(runs[1], "msp")]
    found = difference((tables[0], [tables[1]]), (tables[2], [tables[3]]))
    expected = [100 * x for x in (found.value, found.low, found.high)]
    assert [float(row[key]) for key in ("difference", "low", "high")] == pytest.approx(expected, abs=0.006)


def scores(run, detector):
    table = pq.read_table(run / "scores.parquet").to_pylist()
    return [[row[detector] for row in table if row["set"] == name] for name in ("id_test", "far")]


def test_runs_over_seeds_are_paired_by_their_common_seeds(seeded, capsys):
    rows, _ = compared(capsys, f"{seeded[0]}:mcm", f"{seeded[1]}:msp")
    first, second = (
        [of(run / f"seed-{seed}", detector, "mean") for seed in (3, 2)]
        for run, detector in zip(seeded, ("mcm", "msp"), strict=True)
    )
    row = rows["mcm / msp", "mean", "probes:msp"]
    pairs = np.subtract(second, first)
    margin = student.ppf(0.975, 1) * pairs.std(ddof=1) * math.sqrt(1 / 2 + 14 / 32)  # 14 images tested, 32 to train on
    expected = [100 * x for x in (np.mean(second), pairs.mean(), pairs.mean() - margin, pairs.mean() + margin)]
    assert [float(row[key]) for key in ("auroc", "difference", "low", "high")] == pytest.approx(expected, abs=0.02)
    assert float(row["std"]) == pytest.approx(100 * pairs.std(ddof=1), abs=0.006) and row["seeds"] == "2"


def test_a_run_over_a_single_seed_is_compared_by_images(root, runs, seeded, capsys):
    rows, _ = compared(capsys, runs[0], root / "runs" / "single")
    assert rows["knn", "near", "single"]["difference"] == "0.00"


def test_what_cannot_be_paired_says_why(root, runs, seeded):
    def refused(message, *specs):
        with pytest.raises(ValueError, match=message):
            evaluation.main(["--compare", *map(str, specs)])

    unfinished = root / "runs" / "unfinished"
    shutil.copytree(runs[1], unfinished)
    (unfinished / "results.json").unlink()
    alone = zero_shot(root, "alone", "--data.ood={}")
    fewer = zero_shot(root, "fewer", data={"root": f"{root}/data", "id": "id", "ood": {"near": "near"}})
    other_seed = zero_shot(root, "other_seed", seed=1)
    single, several = runs[0], seeded[1]
    refused("unfinished is no finished run: there is no .*results.json", single, unfinished)
    refused("nowhere is no finished run", root / "nowhere", single)
    refused("alone was scored against no OOD set", single, alone)
    refused("other_seed was scored on other images .* the same data and the same seed", single, other_seed)
    refused(r"other images", single, fewer)
    refused("zero_shot has no detector 'knm'.* knn", f"{single}:knm", f"{runs[1]}:knn")
    refused("zero_shot has no detector 'msp'", f"{runs[1]}:msp", f"{single}:msp")
    refused("name a detector for each run .* or for none", f"{single}:knn", runs[1])
    refused("needs two runs or more", single)
    refused("zero_shot is named twice", single, runs[1], single.parent / ".." / "runs" / single.name)
    refused("probe:knn is named twice", *[f"{runs[1]}:knn"] * 2)
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near", "far": "far"}, "splits": {"test": 0.4}}
    others = zero_shot(root, "others", "--seeds", "2", "3", data=data)
    rows, lone = (tiny_clip.results(run)["rows"] for run in (others, several))
    detectors = {row["detector"] for row in rows}
    rows += [row for row in lone if row["ood"] == "lone" and row["detector"] in detectors]
    (others / "results.json").write_text(json.dumps(tiny_clip.results(others) | {"rows": rows}))
    refused("others was scored on other images", several, others)
    refused("several seeds can only be compared with each other; use --seeds for all", single, several)


def test_runs_that_share_too_few_seeds_or_no_detector_say_so(root, seeded, tmp_path):
    shutil.copytree(seeded[0], tmp_path / "lonely")
    (tmp_path / "lonely" / "results.json").write_text(json.dumps(tiny_clip.results(seeded[0]) | {"seeds": [7, 8]}))
    with pytest.raises(ValueError, match="share 0 seeds; intervals over seeds need two or more"):
        evaluation.main(["--compare", str(seeded[1]), str(tmp_path / "lonely")])
    zero_shot(root, "only_knn", "--detectors=[knn]")
    zero_shot(root, "only_mcm", "--detectors=[mcm]")
    with pytest.raises(ValueError, match="have no detector in common"):
        evaluation.main(["--compare", str(root / "runs" / "only_knn"), str(root / "runs" / "only_mcm")])
