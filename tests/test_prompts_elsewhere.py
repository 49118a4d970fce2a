"""Learnt prompts and Tip-Adapter where methods are fitted again, attacked and compared: folds, held-out classes, attacks, tables."""

from __future__ import annotations

import shutil

import judged_run
import pytest
import tiny_clip
import yaml

import attack
import eval as evaluation
import train
from clip_ood.errors import UserError

OWN = {"epochs": 2, "batch_size": 8, "context": 4, "lr": 0.5, "per_class": 4}
METHODS = {
    "coop": OWN,
    "negprompt": OWN | {"start": None},
    "locoop": OWN | {"rank": 1},
    "tip_adapter": {"per_class": 4},
}
DETECTORS = {
    "coop": ["mcm", "knn"],
    "negprompt": ["negprompt", "knn"],
    "locoop": ["gl_mcm", "mcm", "knn"],
    "tip_adapter": ["msp", "max_logit", "mcm", "knn"],
}


@pytest.fixture(scope="module")
def four(root):
    """Four classes, of which two are held out at a time."""
    for name, source in (("a", "id/cat"), ("b", "id/dog"), ("c", "id/fox"), ("d", "near")):
        shutil.copytree(root / "data" / source, root / "data/four" / name)
    return root


def made(root, name, method, detectors=None, **keys):
    """The results of a run of a method that has no OOD sets of its own, and its folder."""
    given = tiny_clip.config(root, name, {method: METHODS[method]}, detectors=detectors or DETECTORS[method], **keys)
    (train if method != "tip_adapter" else evaluation).main(["--config", given])
    return root / "runs" / name


@pytest.mark.parametrize("method", METHODS)
def test_each_group_of_classes_is_held_out(four, method):
    keys = {"figures": False, "report": False, "hold_out_classes": 2}
    data = {"root": f"{four}/data", "id": "four", "ood": {}, "splits": {"val": 0, "test": 0.25}, "batch_size": 8}
    run = made(four, f"held_{method}", method, evaluation=keys, data=data)
    groups = tiny_clip.results(run)["held_out"]["groups"]
    assert sorted(name for group in groups for name in group["classes"]) == ["a", "b", "c", "d"]
    assert all(set(group["auroc"]) == set(DETECTORS[method]) for group in groups)


def test_a_rank_of_the_classes_that_are_left_is_refused_before_anything_is_encoded(four):
    keys = {"figures": False, "report": False, "hold_out_classes": 2}
    data = {"root": f"{four}/data", "id": "four", "ood": {}, "splits": {"val": 0, "test": 0.25}, "batch_size": 8}
    given = tiny_clip.config(
        four, "rank", {"locoop": OWN | {"rank": 2}}, data=data, evaluation=keys, features_root=f"{four}/other"
    )
    with pytest.raises(UserError, match=r"rank = 2: .* learnt for 2 classes"):
        train.main(["--config", given])
    assert not list((four / "other").glob("*/images/*"))


@pytest.mark.parametrize("method", METHODS)
def test_each_image_is_scored_by_a_fold_that_has_not_seen_it(four, method):
    keys = {"figures": False, "report": False, "cross_fit": 2}
    data = {
        "root": f"{four}/data",
        "id": "id",
        "ood": {"near": "near"},
        "splits": {"val": 0, "test": 0},
        "batch_size": 8,
    }
    run = made(four, f"crossed_{method}", method, evaluation=keys, data=data)
    assert len(judged_run.scores(run, "train")) == 46
    assert set(DETECTORS[method]) <= {row["detector"] for row in tiny_clip.results(run)["rows"]}


def test_they_stand_beside_each_other(four, capsys):
    runs = [
        made(four, f"beside_{method}", method, [*DETECTORS[method], "mcm"][-3:] if method == "negprompt" else None)
        for method in METHODS
    ]
    capsys.readouterr()
    evaluation.main(["--compare", *map(str, runs)])
    told = capsys.readouterr().out
    assert all(f"beside_{method}" in told for method in METHODS)


def attacked(root, name, method, score=None):
    experiment = tiny_clip.config(root, name, {method: METHODS[method]}, detectors=DETECTORS[method])
    content = {
        "name": name,
        "config": experiment,
        "runs_root": f"{root}/attacks",
        "ood": "near",
        "pairs": 4,
        "steps": 3,
    }
    content |= {"batch_size": 4} | ({} if score is None else {"score": score})
    path = root / f"{name}_attack.yaml"
    path.write_text(yaml.safe_dump(content))
    attack.main(["--config", str(path)])
    return root / "attacks" / name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "score"),
    [
        ("coop", None),
        ("coop", "mcm"),
        ("negprompt", None),
        ("negprompt", "negprompt"),
        ("locoop", None),
        ("locoop", "mcm"),
        ("tip_adapter", None),
        ("tip_adapter", "knn"),
    ],
)
def test_their_scores_can_be_attacked(four, method, score):
    folder = attacked(four, f"attacked_{method}_{score}", method, score)
    assert (folder / "results.json").is_file()


@pytest.mark.parametrize(
    ("method", "score", "message"),
    [
        ("locoop", "gl_mcm", "gl_mcm looks at layers or patches"),
        (
            "tip_adapter",
            "max_logit",
            r"needs the logits of a linear head to be attacked, and method\.tip_adapter has another",
        ),
    ],
)
def test_a_score_that_cannot_be_attacked_is_refused(four, method, score, message):
    with pytest.raises(UserError, match=message):
        attacked(four, f"refused_{method}", method, score)
