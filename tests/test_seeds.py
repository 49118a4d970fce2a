"""Runs over several seeds, and what TensorBoard shows of every kind of run."""

from __future__ import annotations

import csv
import re
from math import sqrt
from statistics import mean, stdev

import pytest
import tiny_clip
import torch
from scipy.stats import t as student
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import clip_ood.experiments.seeds
import eval as evaluation
import train

pytestmark = pytest.mark.slow

PROBE = {"linear_probe": {"epochs": 4, "batch_size": 16, "lr": 0.01}}
FINETUNE = {"finetune": {"epochs": 2, "warmup_epochs": 1, "batch_size": 16}}
METRICS = ("auroc", "fpr95", "fpr95_ood_positive", "aupr_in", "aupr_out", "f1", "best_f1")


@pytest.fixture(scope="module")
def seeded(root):
    train.main(["--config", tiny_clip.config(root, "probes", PROBE), "--seeds", "1", "2", "3"])
    return root / "runs" / "probes"


def keyed(results):
    return {(row["detector"], row["setting"], row["ood"]): row for row in results["rows"]}


def test_every_seed_is_a_run_of_its_own_with_another_split(root, seeded):
    train.main(["--config", tiny_clip.config(root, "alone", PROBE, seed=2)])
    alone, second = tiny_clip.results(root / "runs" / "alone"), tiny_clip.results(seeded / "seed-2")
    assert alone["rows"] == second["rows"] and second["seeds"] == [2]
    scored = [(seeded / f"seed-{seed}" / "scores.parquet").read_bytes() for seed in (1, 2, 3)]
    assert len(set(scored)) == 3


def test_rows_are_means_and_standard_deviations_over_seeds(seeded):
    of_seed = [tiny_clip.results(seeded / f"seed-{seed}") for seed in (1, 2, 3)]
    results = tiny_clip.results(seeded)
    assert results["seeds"] == [1, 2, 3] and results["run"] == "probes"
    assert keyed(results).keys() == keyed(of_seed[0]).keys() != set()
    for key, row in keyed(results).items():
        for metric in METRICS:
            values = [keyed(each)[key][metric] for each in of_seed]
            if None in values:  # f1 takes a threshold, and there are too few val images for one
                assert metric == "f1" and row["f1"] is None
                continue
            assert row[metric] == pytest.approx(mean(values))
            assert row["std"][metric] == pytest.approx(stdev(values), abs=1e-12)
            if metric == "best_f1":
                assert metric not in row["intervals"]
                continue
            half = student.ppf(0.975, 2) * stdev(values) * sqrt(1 / 3 + 14 / 32)  # 14 images tested, 32 to train on
            ends = [max(0, mean(values) - half), min(1, mean(values) + half)]
            assert row["intervals"][metric] == pytest.approx(ends, abs=1e-3)
    assert any(row["std"]["auroc"] > 0 for row in results["rows"])
    for accuracy in ("accuracy", "knn_accuracy"):
        assert results[accuracy] == pytest.approx(mean(each[accuracy] for each in of_seed))


def test_the_csv_holds_the_means_in_percent(seeded):
    with (seeded / "results.csv").open(newline="") as file:
        table = {(row["detector"], row["setting"], row["ood"]): row for row in csv.DictReader(file)}
    expected = keyed(tiny_clip.results(seeded))
    assert table.keys() == expected.keys()
    assert all(
        table[key][m] == ("" if row[m] is None else f"{100 * row[m]:.2f}")
        for key, row in expected.items()
        for m in METRICS
    )


def test_the_table_shows_the_spread_over_seeds(seeded, capsys):
    clip_ood.experiments.seeds.print_table(tiny_clip.results(seeded))
    shown = capsys.readouterr().out
    row = keyed(tiny_clip.results(seeded))["knn", "standard", "near"]
    assert f"{100 * row['auroc']:.1f} ± {100 * row['std']['auroc']:.1f} / {100 * row['fpr95']:.1f}" in shown
    assert "standard deviation over 3 seeds" in re.sub(r"\s+", " ", shown)


def test_resuming_runs_only_the_seeds_that_are_not_finished(root, seeded, monkeypatch):
    name, run, ran = tiny_clip.config(root, "broken_off", PROBE), clip_ood.experiments.seeds.run, []

    def counting(config, *rest):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(config.seed)
        return run(config, *rest)

    monkeypatch.setattr(clip_ood.experiments.seeds, "run", counting)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--config", name, "--seeds", "1", "2", "3"])
    assert ran == [1, 2] and not (root / "runs" / "broken_off" / "results.json").exists()
    ran.clear()
    train.main(["--config", name, "--seeds", "1", "2", "3", "--resume"])
    assert ran == [3]
    assert tiny_clip.results(root / "runs" / "broken_off")["rows"] == tiny_clip.results(seeded)["rows"]


def test_heads_of_all_seeds_evaluated_again_give_the_same_table(root, seeded):
    evaluation.main(["--run", str(seeded)])
    assert tiny_clip.results(root / "runs" / "probes-eval")["rows"] == tiny_clip.results(seeded)["rows"]


def test_fine_tuning_starts_each_seed_from_the_head_of_that_seed(root, seeded, monkeypatch):
    import clip_ood.experiments.models

    heads, original = {}, clip_ood.experiments.models.initial_head

    def watched(start, seed, *rest):
        heads[seed] = original(start, seed, *rest)
        return heads[seed]

    monkeypatch.setattr(clip_ood.experiments.models, "initial_head", watched)
    method = {"finetune": FINETUNE["finetune"] | {"head": str(seeded)}}
    train.main(["--config", tiny_clip.config(root, "lp_ft", method), "--seeds", "1", "3"])
    for seed, (weight, _) in heads.items():
        state = tiny_clip.checkpoint(seeded / f"seed-{seed}")["state_dict"]
        torch.testing.assert_close(weight, state["head.linear.weight"] / state["head.std"])
    assert heads.keys() == {1, 3}
    with pytest.raises(ValueError, match="neither random, nor text, nor a finished run with a head"):
        train.main(["--config", tiny_clip.config(root, "lp_ft", method), "--seeds", "4", "5"])


@pytest.mark.parametrize(
    "seeds, message", [(["1", "2", "1"], "seeds: 1 stands there twice; each must be another draw"), (["3", "3"], "3")]
)
def test_a_seed_that_stands_there_twice_is_refused(root, seeds, message):
    with pytest.raises(ValueError, match=message):
        train.main(["--config", tiny_clip.config(root, "twice", PROBE), "--seeds", *seeds])
    assert not (root / "runs" / "twice").exists()


# TensorBoard


@pytest.fixture(scope="module")
def boards(root):
    keys = {
        "evaluation": {"figures": True, "report": False, "every_n_epochs": 2},
        "data": {"root": f"{root}/data", "id": "id", "ood": {"near": "near"}, "splits": {"val": 0.2, "test": 0.3}},
    }
    evaluation.main(["--config", tiny_clip.config(root, "board_zero_shot", {"zero_shot": {}}, **keys)])
    train.main(["--config", tiny_clip.config(root, "board_probe", PROBE, **keys)])
    train.main(["--config", tiny_clip.config(root, "board_finetune", FINETUNE, **keys)])
    return {name: board(root / "runs" / f"board_{name}") for name in ("zero_shot", "probe", "finetune")}


def board(run):
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def test_runs_of_every_kind_have_the_same_tags(boards):
    scalars = {name: set(each.Tags()["scalars"]) for name, each in boards.items()}
    figures = {name: set(each.Tags()["images"]) for name, each in boards.items()}
    assert scalars["probe"] == scalars["finetune"]
    assert scalars["zero_shot"] < scalars["probe"]
    training = {"train/loss", "train/accuracy", "train/images_per_second", "train/peak_memory_gib"}
    assert training | {"ood/mean/msp/auroc"} <= scalars["probe"] - scalars["zero_shot"]
    assert {"ood/near/knn/auroc", "ood/mean/knn/auroc", "id/accuracy", "val/accuracy"} <= scalars["zero_shot"]
    assert {tag.rpartition("/")[2] for tag in scalars["probe"] if tag.startswith("ood/")} == {"auroc"}  # few cards
    assert figures == {name: {"ood/near/histograms", "ood/near/curves"} for name in boards}


@pytest.mark.parametrize("name", ["zero_shot", "probe", "finetune"])
def test_scalars_are_the_results(root, boards, name):
    for row in tiny_clip.results(root / "runs" / f"board_{name}")["rows"]:
        last = boards[name].Scalars(f"ood/{row['ood']}/{row['detector']}/auroc")[-1].value
        assert last == pytest.approx(row["auroc"], abs=1e-6)


@pytest.mark.parametrize("name, epochs", [("probe", 4), ("finetune", 2)])
def test_training_and_id_val_are_logged_each_epoch_and_evaluations_as_asked(boards, name, epochs):
    events = boards[name].Scalars
    assert [len(events(tag)) for tag in ("train/loss", "train/images_per_second")] == [epochs, epochs]
    assert [len(events(tag)) for tag in ("val/loss", "val/accuracy")] == [epochs + 1, epochs + 1]  # and at the test
    assert all(event.value > 0 for event in events("train/images_per_second") + events("train/peak_memory_gib"))
    steps = [event.step for event in events("ood/mean/knn/auroc")]
    an_epoch = {"probe": 2, "finetune": 1}[name]  # 23 images in batches of 16, of which fine-tuning takes whole ones
    assert len(steps) == epochs // 2 + 1 and steps[-1] == epochs * an_epoch  # the last one at the end


@pytest.mark.parametrize("name", ["zero_shot", "probe", "finetune"])
def test_the_hparams_page_lists_settings_and_mean_aurocs(root, boards, name):
    summaries = boards[name].summary_metadata
    session = HParamsPluginData.FromString(summaries["_hparams_/session_start_info"].plugin_data.content)
    known = {key: value.string_value or value.number_value for key, value in session.session_start_info.hparams.items()}
    results = tiny_clip.results(root / "runs" / f"board_{name}")
    assert (known["method"], known["encoder"], known["seed"]) == (results["method"], results["encoder"], 42)
    assert ("batch_size" in known) == (name != "zero_shot")
    experiment = HParamsPluginData.FromString(summaries["_hparams_/experiment"].plugin_data.content).experiment
    metrics = {metric.name.tag for metric in experiment.metric_infos}
    assert metrics == {f"ood/mean/{row['detector']}/auroc" for row in results["rows"]}
    assert metrics <= set(boards[name].Tags()["scalars"])


def test_custom_charts_show_tags_that_are_there(boards):
    for events in boards.values():
        (event,) = events.Tensors("custom_scalars__config__")
        layout = Layout.FromString(event.tensor_proto.string_val[0])
        pages = {page.title: [tag for chart in page.chart for tag in chart.multiline.tag] for page in layout.category}
        assert list(pages) == ["training", "AUROC, mean", "AUROC, near"]
        drawn = {tag for page, tags in pages.items() if page != "training" for tag in tags}
        assert drawn == {tag for tag in events.Tags()["scalars"] if tag.startswith("ood/") and tag.endswith("/auroc")}
        assert set(pages["training"]) == {
            f"{part}/{name}" for part in ("train", "val") for name in ("loss", "accuracy")
        }


def test_keys_with_spaces_may_follow_the_seeds(root):
    train.main(["--config", tiny_clip.config(root, "two", PROBE), "--seeds", "1", "2", "--detectors=[knn, msp]"])
    results = tiny_clip.results(root / "runs" / "two")
    assert results["seeds"] == [1, 2] and {row["detector"] for row in results["rows"]} == {"knn", "msp"}
