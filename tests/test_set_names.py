"""Image sets may be called as the project's own parts are: a name never changes which images are read."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import yaml

import attack
import eval as evaluation
from clip_ood.config.checks import check_folders
from clip_ood.config.data_schema import TAKEN
from clip_ood.config.loading import validate
from clip_ood.detectors.names import ABOUT, read_specs
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.report.charts import svg
from clip_ood.report.figures import figures
from clip_ood.runs.scores import ScoredSet

OWN = ["train", "id", "id.train", "id.val", "id.test", "test", "ood", "csid", "Mean", "ood/near", "csp classes", "None"]
SIZES = {"near": 9, "far": 7, "lone": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny_clip.make(tmp_path_factory.mktemp("names"))
    nouns, adjectives = ["sea star", "iron gate", "paper boat", "wool"], ["blue", "wet", "fast"]
    (root / "wordnet").mkdir()
    for file, words in (("index.noun", nouns), ("index.adj", adjectives)):
        (root / "wordnet" / file).write_text("".join(f"{word.replace(' ', '_')} x 1\n" for word in words))
    return root


def data(root, **sets):
    """The keys of `data`. A folder that several sets name stands for as many copies: one place may not be two sets."""
    sets = {"id": "id"} | sets
    used = Counter()

    def apart(value):
        if isinstance(value, dict):
            return {key: apart(each) for key, each in value.items()}
        used[value] += 1
        if used[value] == 1:
            return value
        copy = f"{value}-{used[value]}"
        if not (root / "data" / copy).exists():
            shutil.copytree(root / "data" / value, root / "data" / copy)
        return copy

    named = {key: apart(value) for key, value in sets.items() if key in ("id", "ood", "csid", "ood_val")}
    return {"root": f"{root}/data", "splits": {"val": 0.2, "test": 0.3}, "batch_size": 8} | sets | named


def listed(root, **sets):
    backbone = {"library": "timm", "model": "test_vit"}
    content = {"name": "x", "data": data(root, **sets), "backbone": backbone, "method": {"zero_shot": {}}}
    return load_benchmark(validate(content))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("published", [False, True])
def test_a_set_called_as_a_part_of_ours_leaves_all_parts_as_they_are(root, name, published):
    own = {"id": {"train": "id", "test": "id", "val": "id"}} if published else {}
    plain = listed(root, ood={"a": "near", "b": "far"}, csid={"c": "id"}, ood_val="lone", **own)
    found = listed(root, ood={name: "near", "b": "far"}, csid={"c": "id"}, ood_val="lone", **own)
    assert [(part.role, part.rows, found.images[part.images].names) for part in found.parts.values()] == [
        (part.role, part.rows, plain.images[part.images].names) for part in plain.parts.values()
    ]
    assert [part.name for part in found.evaluated] == [
        name if part.name == "a" else part.name for part in plain.evaluated
    ]
    assert found.reported[name].role == "ood" and len(found.reported[name].rows) == 9
    shifted = listed(root, ood={"b": "far"}, csid={name: "id", "c": "id"}, ood_val="lone", **own)
    assert shifted.reported[name].role == "csid" and len(shifted.reported[name].rows) == 46


def test_all_of_them_are_scored_on_their_own_images(root):
    ood = {name: ["near", "far", "lone"][place % 3] for place, name in enumerate(OWN)}
    words = {"negative_words": f"{root}/wordnet"}
    runs = {}
    for run, sets in (("own", ood), ("plain", {"a": "near", "b": "far", "c": "lone"})):
        content = data(root, ood=sets, csid={} if run == "plain" else {"val_csid": "id"}, **words)
        detectors = ["knn", "mcm", "csp"]
        path = tiny_clip.config(root, run, {"zero_shot": {}}, data=content, detectors=detectors)
        evaluation.main(["--config", path, "--evaluation.report=true"])
        runs[run] = root / "runs" / run
    expected = {row["ood"]: row for row in tiny_clip.results(runs["plain"])["rows"] if row["detector"] == "knn"}
    expected = {"near": expected["a"], "far": expected["b"], "lone": expected["c"]}
    rows = tiny_clip.results(runs["own"])["rows"]
    for name, folder in ood.items():
        (row,) = [r for r in rows if (r["detector"], r["setting"], r["ood"]) == ("knn", "standard", name)]
        assert (row["n_ood"], row["n_id"]) == (SIZES[folder], 14)
        assert row["auroc"] == expected[folder]["auroc"]
    assert len([r for r in rows if (r["detector"], r["setting"], r["ood"]) == ("knn", "standard", "mean")]) == 1
    scores = pq.read_table(runs["own"] / "scores.parquet").to_pylist()
    counts = Counter((row["set"], row["role"]) for row in scores)
    assert (
        counts["id_test", "id"] == 14 and {(name, "ood"): SIZES[f] for name, f in ood.items()}.items() <= counts.items()
    )
    assert tiny_clip.results(runs["own"])["bank"] == tiny_clip.results(runs["plain"])["bank"]


def test_an_attack_moves_the_images_of_a_set_called_id(root):
    content = data(root, ood={"id": "near"})
    experiment = tiny_clip.config(root, "moved", {"zero_shot": {}}, data=content, detectors=["knn"])
    keys = {
        "config": experiment,
        "runs_root": f"{root}/attacks",
        "ood": "id",
        "pairs": 4,
        "steps": 1,
        "batch_size": 4,
    }
    (root / "moved_attack.yaml").write_text(yaml.safe_dump(keys))
    attack.main(["--config", str(root / "moved_attack.yaml")])
    with (root / "attacks" / "moved_attack" / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    near = {path.name for path in (root / "data" / "near").iterdir()}
    assert len(pairs) == 4 and all(row["ood_image"] in near and "/" in row["target"] for row in pairs)


@pytest.mark.parametrize("role", ["ood", "csid"])
@pytest.mark.parametrize("name", TAKEN)
def test_what_results_call_their_own_is_refused(root, name, role):
    with pytest.raises(ConfigError, match=f"data: set names must be distinct, and none of .*: rename {name}$"):
        listed(root, **{"ood": {"a": "near"}, "csid": {}, role: {name: "near", "b": "far"}})


def test_one_name_for_two_sets_is_refused(root):
    with pytest.raises(ConfigError, match=r"set names must be distinct.*: rename twice$"):
        listed(root, ood={"twice": "near"}, csid={"twice": "id"})


def test_results_name_no_set_of_ours_that_could_be_given(root):
    found = listed(root, ood={"a": "near"}, csid={"b": "id"}, ood_val="lone")
    own = {part.name for part in found.reported.values()} - {"a", "b"}
    assert own == {"id_test", "val", "ood_val"} and own <= set(TAKEN)


def test_what_is_missing_is_told_by_the_name_it_was_given(root):
    backbone = {"library": "timm", "model": "test_vit"}
    content = {
        "name": "x",
        "data": data(root, ood={"train": "gone"}),
        "backbone": backbone,
        "method": {"zero_shot": {}},
    }
    with pytest.raises(ConfigError, match="Image set train: there is no folder"):
        check_folders(validate(content))


def test_unreadable_images_are_told_by_the_name_of_their_set(root):
    (root / "data" / "broken").mkdir()
    for number in range(2):
        (root / "data" / "broken" / f"{number}.png").write_bytes(b"no image")
    content = data(root, ood={"id": "broken"})
    path = tiny_clip.config(root, "broken", {"zero_shot": {}}, data=content)
    with pytest.raises(ValueError, match="Image set id: none of its images could be read"):
        evaluation.main(["--config", path])
    with (root / "runs" / "broken" / "unreadable.csv").open() as file:
        assert [row["set"] for row in csv.DictReader(file)] == ["id", "id"]


def test_a_class_whose_training_images_are_all_unreadable_is_named(root, tmp_path):
    shutil.copytree(root / "data" / "id", tmp_path / "id")
    (tmp_path / "id" / "owl").mkdir()
    for number in range(3):
        (tmp_path / "id" / "owl" / f"{number}.png").write_bytes(b"no image")
    content = data(root, ood={"near": "near"}) | {"id": str(tmp_path / "id")}
    path = tiny_clip.config(root, "owls", {"zero_shot": {}}, data=content)
    with pytest.raises(UserError, match="Image set id: none of the training images of class 'owl' could be read"):
        evaluation.main(["--config", path])


@pytest.mark.parametrize("name", ["$5 or $10", r"$\frac$"])
def test_a_name_with_dollars_is_drawn_and_is_no_formula(name):
    about = (["a", "b"], None, [None] * 2, [None] * 2, {"knn": np.array([0.0, 1.0])})
    drawn = figures([ScoredSet("id_test", "id", *about), ScoredSet(name, "ood", *about)])
    for _, figure in drawn:
        file = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            figure.savefig(file, format="svg")
        assert name in file.getvalue()
    assert name in svg(lambda axes: axes.set_title(name), "salt")


# Columns of scores.parquet, which stand beside the sets


@pytest.mark.parametrize("column", ABOUT)
def test_no_detector_takes_a_column_of_the_scores(column):
    with pytest.raises(ValueError, match=f"scores.parquet has a column '{column}' of its own"):
        read_specs([{"name": "knn", "as": column}])


def test_no_candidate_takes_the_place_of_another_detector():
    with pytest.raises(ValueError, match="column 'knn_k1' is asked for 2 times"):
        read_specs([{"name": "knn", "k": [1, 5]}, {"name": "knn", "k": 1}])
