"""Studies: which runs they make, that finished ones stay, and what table, values and figure say."""

from __future__ import annotations

import csv
import re
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import yaml
from PIL import Image
from studies import load_study

import clip_ood.experiments.seeds
import study
from clip_ood.config.loading import load_config
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.study import figures
from clip_ood.experiments.study.fit import least_squares
from clip_ood.lightning_modules.linear_probe import LinearProbe
from clip_ood.metrics.ood import MEAN

PROBE = {"linear_probe": {"epochs": 2, "batch_size": 16}}
LINES = {
    "1-NN": {"detector": "knn", "changes": {"method": {"zero_shot": {}}}},
    "MCM": {"detector": "mcm", "changes": {"method": {"zero_shot": {}}}},
    "probe": {"detector": "msp"},
}


def written(root, name, **keys):
    path = root / f"{name}.yaml"
    keys = {"config": tiny_clip.config(root, "base", PROBE), "studies_root": f"{root}/studies"} | keys
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return str(path)


def cells(folder):
    """The Markdown table of a study: a dict a row."""
    lines = [line for line in (folder / f"{folder.name}.md").read_text().splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def found(folder):
    with (folder / f"{folder.name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def table(root):
    axes = {"seed": {"seed": [1, 2]}}
    study.main(["--config", written(root, "table", shows="table", axes=axes, lines=LINES)])
    return root / "studies" / "table"


def test_lines_of_equal_changes_share_a_run(root, table):
    runs = sorted(path.parent.name for path in table.glob("*/results.json"))
    assert runs == ["1--1-nn", "1--probe", "2--1-nn", "2--probe"]
    shared = tiny_clip.results(table / "1--1-nn")
    assert {row["detector"] for row in shared["rows"]} == {"knn", "mcm"}


def test_values_are_those_of_the_runs(table):
    for row in found(table):
        results = tiny_clip.results(table / row["run"])
        (theirs,) = [
            each
            for each in results["rows"]
            if (each["detector"], each["setting"], each["ood"]) == (row["detector"], "standard", row["ood"])
        ]
        assert row["auroc"] == f"{100 * theirs['auroc']:.2f}" and row["seed"] == row["run"][0]
    assert len(found(table)) == 2 * 3 * len({row["ood"] for row in found(table)})


def test_the_table_has_the_best_of_each_column_in_bold(table):
    rows = cells(table)
    assert [(row["seed"], row["score"]) for row in rows] == [(s, line) for line in LINES for s in "12"]
    for column in [name for name in rows[0] if name not in ("seed", "score", "accuracy")]:
        values = [float(row[column].strip("*").split("*")[0].split(" / ")[0]) for row in rows]
        bold = [row[column].startswith("**") for row in rows]
        assert bold == [value == max(values) for value in values]


def test_the_figure_shows_something(table):
    pixels = np.asarray(Image.open(table / "table.png").convert("L"))
    assert min(pixels.shape) > 200 and pixels.std() > 5


def test_finished_runs_are_not_run_again_and_others_are(root, table, monkeypatch):
    ran = []
    real = clip_ood.experiments.seeds.experiment
    monkeypatch.setattr(
        clip_ood.experiments.seeds,
        "experiment",
        lambda config, folder, **kept: ran.append(folder.name) or real(config, folder, **kept),
    )
    study.main(["--config", str(root / "table.yaml")])
    assert ran == []
    (table / "2--probe" / "results.json").unlink()  # as if it had been stopped there
    study.main(["--config", str(root / "table.yaml")])
    assert ran == ["2--probe"]


def test_another_score_of_a_finished_run_trains_no_head_again(root, monkeypatch):
    axes = {"images a class": {"2": {"method.*.per_class": 2}}}
    keys = {"shows": "curve", "axes": axes, "changes": {"seeds": [1, 2]}}
    study.main(["--config", written(root, "scores", lines={"probe": {"detector": "msp"}}, **keys)])
    folder = root / "studies" / "scores"
    heads = {path: path.read_bytes() for path in folder.rglob("last.ckpt")}
    before = cells(folder)
    monkeypatch.setattr(LinearProbe, "training_step", None)  # would fail
    lines = {"probe": {"detector": "msp"}, "energy": {"detector": "energy"}}
    study.main(["--config", written(root, "scores", lines=lines, **keys)])
    assert len(heads) == 2 and {path: path.read_bytes() for path in folder.rglob("last.ckpt")} == heads
    assert [{key: row[key] for key in old} for row, old in zip(cells(folder), before, strict=True)] == before
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+", row["energy"]) for row in cells(folder))


def test_other_settings_for_finished_runs_are_an_error(root, table):
    with pytest.raises(ConfigError, match=r"1--1-nn was begun with other settings .*batch_size.*--overwrite.*--name"):
        study.main(["--config", str(root / "table.yaml"), "--data.batch_size=5"])


def test_a_run_that_cannot_be_done_is_listed_and_holds_up_no_other(root, capsys):
    lines = {
        "PLP": {"detector": "msp", "changes": {"method": {"plp": {"epochs": 2}}}},
        "MCM": LINES["MCM"] | {"axes": []},
    }
    axes = {"min_confidence": {"method.plp.min_confidence": [0.0, 1.0]}}
    study.main(["--config", written(root, "threshold", shows="curve", axes=axes, lines=lines)])
    text = (root / "studies" / "threshold" / "threshold.md").read_text()
    assert re.search(r"Left out: 1.0--plp \(PLP: 0 of \d+ images have a pseudo-probability", text)
    (row,) = cells(root / "studies" / "threshold")
    assert row["min_confidence"] == "0.0" and float(row["labels passed"]) == 100 and float(row["MCM"]) > 0


def test_a_curve_says_how_many_labels_a_class_has(root):
    axes = {"images a class": {"1": {"method.*.per_class": 1}, "500": {"method.*.per_class": 500}}}
    study.main(["--config", written(root, "shots", shows="curve", axes=axes, lines={"probe": LINES["probe"]})])
    one, all_there = cells(root / "studies" / "shots")
    assert one["labels a class"] == "1" and 1 < int(all_there["labels a class"].split("–")[0]) < 500


def test_a_scatter_gives_r2_from_five_points_on(root):
    axes = {"encoder": {"backbone.random_seed": [1, 2, 3, 4, 5]}}
    changes = {"backbone": {"library": "timm", "model": "test_vit"}, "method": {"zero_shot": {}}}
    name = written(root, "scatter", shows="scatter", axes=axes, changes=changes, lines={"1-NN": {"detector": "knn"}})
    study.main(["--config", name])
    rows = cells(root / "studies" / "scatter")
    x, y = np.array([[float(row["ID k-NN accuracy"]), float(row["mean AUROC"])] for row in rows]).T
    text = (root / "studies" / "scatter" / "scatter.md").read_text()
    if x.std() > 0:
        expected = np.corrcoef(x, y)[0, 1] ** 2
        told = re.search(r"n = 5, R² = ([0-9.]+)", text)
        assert told and float(told[1].rstrip(".")) == pytest.approx(expected, abs=0.03)
    study.main(["--config", name, "--name=four", "--axes.encoder={backbone.random_seed: [1, 2, 3, 4]}"])
    assert "n = 4, too few" in (root / "studies" / "four" / "four.md").read_text()


def test_a_line_through_points_is_numpys():
    x, y = [0.1, 0.4, 0.5, 0.7, 0.9], [0.6, 0.7, 0.65, 0.9, 0.85]
    fit = least_squares(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert (fit.slope, fit.intercept) == pytest.approx((slope, intercept))
    assert fit.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert least_squares(x[:4], y[:4]) is None and least_squares([1.0] * 5, y) is None


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"shows": "pie"}, "shows: .*table"),
        ({"shows": "table", "lines": {}}, "lines"),
        ({"shows": "table", "lins": {}}, "no config key lins. Did you mean lines"),
        ({"shows": "curve"}, "curve needs one axis"),
        ({"shows": "shift"}, "corruptions"),
        ({"lines": {"a": {"detector": "knm"}}}, "nearest: knn"),
        (
            {"lines": {"a": {"detector": "knn", "axes": ["encoder"]}}},
            "lines.a names an axis that there is not: encoder",
        ),
        ({"lines": {"a": {"detector": "knn", "only": {"seed": ["3"]}}}, "axes": {"seed": {"seed": [1]}}}, "no '3'"),
        ({"axes": {"seed": {"one": 1, "two": 2}}}, "axes.seed.one must be a mapping"),
        ({"axes": {"a": {"data.sed": [1]}}}, "no config key data.sed"),
        ({"config": "nowhere.yaml"}, "no config 'nowhere.yaml'"),
    ],
)
def test_wrong_keys_are_named_before_anything_runs(root, keys, message):
    name = written(root, "wrong", **({"shows": "table", "lines": LINES} | keys))
    with pytest.raises(UserError, match=message):
        load_study(name)


def test_a_study_is_no_experiment_and_the_other_way_round(root, table):
    with pytest.raises(ConfigError, match=r"is a study: python study\.py"):
        load_config(str(root / "table.yaml"))
    with pytest.raises(ConfigError, match=r"is one experiment: python train\.py"):
        load_study(str(root / "base.yaml"))


def test_a_star_stands_for_the_method_of_each_run(root, table):
    runs = load_study(str(root / "table.yaml"), ["--method.*.epochs=7"]).runs
    assert runs["1--probe"].method.settings.epochs == 7 and runs["1--1-nn"].method.name == "zero_shot"


def test_a_key_of_every_method_that_no_method_has_is_named(root):
    with pytest.raises(
        ConfigError, match=r"method\.\*\.epohcs: no method of this study has a key 'epohcs'\. Did you mean epochs"
    ):
        load_study(str(root / "table.yaml"), ["--method.*.epohcs=1"])


def test_what_a_study_varies_cannot_be_set_for_all_its_runs(root, table):
    with pytest.raises(ConfigError, match="--seed would set what the study table itself varies"):
        load_study(str(root / "table.yaml"), ["--seed=3"])
    with pytest.raises(ConfigError, match="--method would set"):
        load_study(str(root / "table.yaml"), ["--method={linear_probe: {}}"])


def test_a_shift_tells_detection_and_accuracy_by_severity(root):
    lines = {"1-NN": {"detector": "knn"}, "probe": {"detector": "msp"}}
    keys = {"shows": "shift", "corruptions": ["gaussian_blur", "contrast"], "severities": [1, 5], "lines": lines}
    study.main(["--config", written(root, "shift", **keys)])
    folder = root / "studies" / "shift"
    results = tiny_clip.results(folder / "1-nn")
    fpr95 = {(row["detector"], row["ood"]): row["fpr95"] for row in results["rows"]}
    scored = pq.read_table(folder / "1-nn" / "scores.parquet").to_pylist()
    truth = {row["path"]: row["label"] for row in scored if row["set"] == "id_test"}
    clean, *rows = cells(folder)
    assert clean["corruption"] == "none" and clean["accuracy"] == f"{100 * results['accuracy']:.1f}"
    assert [(row["corruption"], row["severity"]) for row in rows] == [
        (corruption, severity) for corruption in ("gaussian_blur", "contrast") for severity in "15"
    ]
    for row in rows:
        name = f"{row['corruption']}-{row['severity']}"
        assert row["1-NN"] == f"{100 * (1 - fpr95['knn', name]):.1f}"
        assert row["probe"] == f"{100 * (1 - fpr95['msp', name]):.1f}"
        right = [each["prediction"] == truth[each["path"]] for each in scored if each["set"] == name]
        assert len(right) == len(truth) and row["accuracy"] == f"{100 * sum(right) / len(right):.1f}"


@pytest.mark.parametrize(("lines", "axes"), [(3, 1), (20, 1), (20, 2)])
def test_a_figure_names_every_line_even_of_many(lines, axes):
    """Few lines have a mark each, and many a row each, so that no mark stands for two."""
    study = SimpleNamespace(axes=["encoder"], title="", name="")
    rows = [
        {"line": f"line {line}", "encoder": f"encoder {place}", "ood": MEAN, "auroc": 0.5 + line / 100}
        | {"auroc_std": None}
        for line in range(lines)
        for place in range(axes)
    ]
    figure = figures._results(SimpleNamespace(study=study), rows)
    (plot,) = figure.axes
    ticks = [label.get_text() for label in plot.get_yticklabels()]
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert {f"line {line}" for line in range(lines)} <= {*ticks, *named}
    assert len(named) == (lines if lines == 3 else 0 if axes == 1 else axes)
