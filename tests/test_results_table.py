"""The table in a terminal: whatever its width, every figure and every name can be read."""

from __future__ import annotations

import io

import pytest

from clip_ood.detectors.names import read_specs
from clip_ood.errors import UserError
from clip_ood.runs.results_table import print_table
from clip_ood.terminal.console import Terminal

SETS = [
    "inaturalist",
    "sun",
    "places",
    "textures",
    "openimage_o",
    "ninco",
    "a set whose name is longer than a column is",
]
DETECTORS = ["knn", "mahalanobis", "mahalanobis_pp", "mahalanobis_logits", "a_detector_whose_name_is_quite_long"]


def results(seeds: int) -> dict:
    """Every figure is another one."""
    rows, figures = [], iter(range(1, 1000))
    for detector in DETECTORS:
        for name in [*SETS, "mean"]:
            auroc, fpr95 = (next(figures) / 1000 for _ in range(2))
            about = {"detector": detector, "setting": "standard", "ood": name, "n_ood": 1000, "n_id": 500}
            interval = {"auroc": [auroc - 0.001, auroc + 0.001]}
            spread = {"std": {"auroc": 0.01}} if seeds > 1 else {}
            rows.append(about | {"auroc": auroc, "fpr95": fpr95, "intervals": interval} | spread)
    about = {
        "run": "run",
        "method": "plp",
        "encoder": "an encoder",
        "seeds": list(range(seeds)),
        "rows": rows,
        "notes": [],
    }
    about |= {"accuracy": None, "knn_accuracy": None, "pseudo_labels": None, "sweep": None, "omitted": []}
    return about | {"bank": {"images": 9, "per_class": None}, "split": {"redrawn": True, "test": 2, "train": 5}}


@pytest.mark.parametrize("width", [60, 80, 120, 160, 400])
@pytest.mark.parametrize("seeds", [1, 3])
def test_no_figure_and_no_name_is_cut_off(width, seeds):
    file, content = io.StringIO(), results(seeds)
    print_table(content, Terminal(file=file, width=width, force_terminal=True, color_system=None))
    said = file.getvalue()
    assert "…" not in said and max(map(len, said.splitlines())) <= width
    for row in content["rows"]:
        figure = f"{100 * row['auroc']:.1f}"
        assert any(f" {figure} " in line and f"/ {100 * row['fpr95']:.1f} " in line for line in said.splitlines()), (
            figure
        )
    letters = "".join(said.split())
    assert all(letters.count("".join(name.split())) for name in DETECTORS)
    assert said.count("an encoder") == 1 and said.count("share") == 1  # title and caption
    assert all(word in said for name in SETS for word in name.split())


def test_tables_in_a_file_are_as_wide_as_in_a_wide_terminal():
    file = io.StringIO()
    print_table(results(1), Terminal(file=file, width=80))
    assert max(map(len, file.getvalue().splitlines())) > 120


@pytest.mark.parametrize(
    ("asked", "called"),
    [
        (["mahalanobis_pp"], ["mahalanobis_pp"]),
        ([{"name": "mahalanobis", "normalize": True}], ["mahalanobis_pp"]),
        (
            ["mahalanobis", {"name": "mahalanobis", "normalize": True}, "rmd_pp"],
            ["mahalanobis", "mahalanobis_pp", "rmd_pp"],
        ),
        ([{"name": "rmd_pp", "as": "mine"}], ["mine"]),
        ([{"name": "mahalanobis", "normalize": False}], ["mahalanobis"]),
    ],
)
def test_a_score_has_one_name(asked, called):
    specs = read_specs(asked)
    assert [spec.label for spec in specs] == called
    assert all(spec.name in ("mahalanobis", "rmd") for spec in specs)
    assert all(
        spec.parameters.get("normalize", False) == ("pp" in spec.label or spec.label == "mine") for spec in specs
    )


def test_a_name_that_says_more_is_not_contradicted():
    with pytest.raises(UserError, match="mahalanobis_pp sets normalize itself"):
        read_specs([{"name": "mahalanobis_pp", "normalize": False}])
