"""What is said of ranks and AUROCs of very few images: where they are printed, and in the report."""

from __future__ import annotations

import html
import re
import shutil
from itertools import combinations
from pathlib import Path

import pytest
import tiny_clip

import train
from clip_ood.runs.few_images import auroc_cautions, orders, ranks_caution

OWN = [
    "--data.splits={val: 0, test: 0}", "--evaluation.cross_fit=2", "--evaluation.report=true", "--detectors=[knn]",
]  # fmt: skip


@pytest.mark.parametrize(("n_id", "n_ood"), [(1, 1), (4, 2), (3, 3), (19, 1), (18, 1)])
def test_one_in_so_many_orders_has_an_auroc_of_100(n_id, n_ood):
    places = range(n_id + n_ood)
    faultless = [
        of_ood for of_ood in combinations(places, n_ood) if max(of_ood) < n_ood
    ]  # all OOD scores are the lowest
    assert len(faultless) == 1 and orders(n_id, n_ood) == len(list(combinations(places, n_ood)))
    assert bool(auroc_cautions([("x", n_id, n_ood)])) == (orders(n_id, n_ood) < 20)


def test_ranks_mean_something_from_twenty_images_on():
    assert ranks_caution(20) is None and "most suspect of 19 by chance once in 19" in ranks_caution(19)


def own_images(root: Path, names: list[str], *more: str) -> None:
    """Ranks a folder of these images of the tiny CLIP's."""
    for name in names:
        (root / "data/own" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "data/id" / name, root / "data/own" / name)
    config = tiny_clip.config(root, "few", {"zero_shot": {}})
    train.main(["--config", config, f"--data.id={root}/data/own", *OWN, *more])


def one_line(printed: str) -> str:
    """What was printed, without the ends of the lines that a terminal folds."""
    return " ".join(printed.split())


def words(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


@pytest.mark.slow
def test_two_images_are_ranked_and_the_ranks_are_said_to_say_little(tmp_path, capsys):
    root = tiny_clip.make(tmp_path)
    shutil.rmtree(root / "data/id/fox")
    own_images(root, ["cat/1.png", "dog/1.png"], "--data.ood={lone: lone}")
    said, page = one_line(capsys.readouterr().out), words((root / "runs/few/report.html").read_text())
    assert len((root / "runs/few/suspects.csv").read_text().splitlines()) == 3
    assert ranks_caution(2) in said and ranks_caution(2) in page
    (caution,) = auroc_cautions([("lone", 2, 1)])
    assert "once in 3 times" in caution and caution in said and caution in page


@pytest.mark.slow
def test_held_out_classes_of_two_images_are_said_to_say_little(tmp_path, capsys):
    root = tiny_clip.make(tmp_path)
    (root / "data/id/hen").mkdir()
    for number in range(2):
        shutil.copy(root / f"data/far/{number}.png", root / f"data/id/hen/{number}.png")
    own_images(
        root,
        [f"{name}/{number}.png" for name in (*tiny_clip.CLASSES, "hen") for number in range(2)],
        "--evaluation.hold_out_classes=2",
        "--data.ood={}",
    )
    said, page = one_line(capsys.readouterr().out), words((root / "runs/few/report.html").read_text())
    groups = tiny_clip.results(root / "runs/few")["held_out"]["groups"]
    cautions = auroc_cautions((", ".join(each["classes"]), each["n_id"], each["n_ood"]) for each in groups)
    assert len(cautions) == 2 and all(each in said and each in page for each in cautions)
    assert ranks_caution(8) in said and ranks_caution(8) in page
