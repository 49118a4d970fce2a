"""data.decisions: what people decided changes the images of the next run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import tiny_clip
import yaml

import attack
import eval as evaluation
import study
import train
from clip_ood.config.loading import load_config
from clip_ood.errors import ConfigError
from clip_ood.experiments import seeds
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.embeddings import export_embeddings
from clip_ood.experiments.kept_decisions import kept_by
from clip_ood.experiments.resume import check_alike
from clip_ood.features.identity import identity_of
from clip_ood.review.decisions import Decision
from clip_ood.review.decisions_file import append
from clip_ood.runs.run_folder import choose_folder, replacing


@pytest.fixture
def root(tmp_path):
    return tiny_clip.make(tmp_path)


def decided(root: Path, *lines: Decision, name: str = "decisions.csv") -> Path:
    append(root / name, lines)
    return root / name


def image(root: Path, path: str) -> str:
    return identity_of((root / "data" / "id" / path).read_bytes()).hex()


def about(root: Path, path: str, decision: str, label: str = "") -> Decision:
    return Decision(decision, image(root, path), path, label)


def benchmark(root: Path, *options: str, **data):
    config = tiny_clip.config(root, "decided", {"zero_shot": {}})
    return load_benchmark(load_config(config, [f"--data.decisions={root / 'decisions.csv'}", *options]))


def rows(found, part: str) -> set[str]:
    part = found.parts[part]
    return {found.images[part.images].names[row] for row in part.rows}


def test_rejected_images_leave_all_id_parts_and_are_an_ood_set_and_no_other_image_moves(root):
    plain = load_benchmark(load_config(tiny_clip.config(root, "plain", {"zero_shot": {}}), ["--data.splits.val=0.2"]))
    out = {part: min(rows(plain, part)) for part in ("train", "val", "id_test")}
    decided(root, *(about(root, path, "reject") for path in out.values()))
    found = benchmark(root, "--data.splits.val=0.2")
    for part, path in out.items():
        assert rows(found, part) == rows(plain, part) - {path}
    assert rows(found, "bank") == rows(found, "train")
    assert rows(found, "ood/rejected") == set(out.values())
    assert found.parts["ood/rejected"].role == "ood" and set(found.labels(found.parts["ood/rejected"])) == {-1}
    assert found.decided.about() == {"rejected": 3, "relabelled": 0, "gone": 0}


def test_a_relabelled_image_has_its_new_class_and_keep_and_skip_change_nothing(root):
    decided(
        root,
        about(root, "cat/1.png", "relabel", "Dog"),
        about(root, "cat/2.png", "keep"),
        about(root, "cat/3.png", "skip"),
    )
    found = benchmark(root)
    images = found.images["id"]
    labels = {name: images.class_names[label] for name, label in zip(images.names, images.labels, strict=True)}
    assert labels.pop("cat/1.png") == "dog" and all(name.startswith(label) for name, label in labels.items())
    assert "ood/rejected" not in found.parts


def test_images_are_found_by_content_when_moved_and_all_of_their_copies(root):
    line = about(root, "cat/1.png", "reject")
    (root / "data/id/cat/1.png").rename(root / "data/id/cat/moved.png")
    shutil.copy(root / "data/id/cat/moved.png", root / "data/id/dog/copy.png")
    decided(root, line)
    assert rows(benchmark(root), "ood/rejected") == {"cat/moved.png", "dog/copy.png"}


def test_another_image_under_the_name_of_a_rejected_one_stays(root, capsys):
    decided(root, about(root, "cat/1.png", "reject"), Decision("keep", "0" * 32, "x.png"))
    shutil.copy(root / "data/near/0.png", root / "data/id/cat/1.png")
    assert "ood/rejected" not in benchmark(root).parts
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not among" in line]
    assert line.endswith("change nothing: 1 (the first: cat/1.png)")


def test_a_decision_may_name_a_path_alone(root):
    decided(root, Decision("reject", path="cat/1.png"))
    assert rows(benchmark(root), "ood/rejected") == {"cat/1.png"}


def test_rejected_images_of_several_published_sets_are_one_ood_set(root):
    shutil.copytree(root / "data/id", root / "data/tested")
    (root / "data/tested/cat/1.png").write_bytes((root / "data/near/1.png").read_bytes())
    (root / "data/near/1.png").unlink()
    tested = identity_of((root / "data/tested/cat/1.png").read_bytes()).hex()
    decided(root, Decision("reject", tested, "cat/1.png"), about(root, "dog/1.png", "reject"))
    for path in (root / "data/tested").rglob("*.png"):  # of which only one is rejected
        path.write_bytes(path.read_bytes() + (b"" if path.name == "1.png" and path.parent.name == "cat" else b"\0"))
    found = benchmark(root, "--data.id={train: id, test: tested}")
    assert rows(found, "ood/rejected") == {"cat/1.png", "dog/1.png"}
    images = found.images[found.parts["ood/rejected"].images]
    assert {images.content(row).hex() for row in range(2)} == {tested, image(root, "dog/1.png")}
    assert images.stamps().values.shape == (2, 2)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([("cat", "reject")], "of the class 'cat' every training image is rejected"),
        ([("cat", "reject"), ("dog", "reject"), ("fox", "reject")], "all 32 images of train are rejected"),
        ([("cat/1.png", "relabel", "dgo")], "a 'dgo', which is no class of the ID images. Did you mean dog"),
    ],
)
def test_decisions_that_leave_no_run_are_refused(root, lines, told):
    for place, *decision in lines:
        place = root / "data/id" / place
        for path in place.rglob("*.png") if place.is_dir() else [place]:
            decided(root, about(root, str(path.relative_to(root / "data/id")), *decision))
    with pytest.raises(ConfigError, match=told):
        benchmark(root)


def test_relabelling_a_flat_folder_is_refused(root):
    decided(root, Decision("relabel", path="0.png", label="cat"))
    with pytest.raises(ConfigError, match="have no classes"):
        benchmark(root, "--data.id=near", "--data.ood={}")


@pytest.mark.parametrize(
    ("content", "option", "told"),
    [
        (None, "--seed=1", "data.decisions: there is no file"),
        ("a,b\n", "--seed=1", "data.decisions: .* line 1"),
        ("path,decision\n", "--data.ood={rejected: near}", "call your own set otherwise"),
    ],
)
def test_wrong_files_are_told_before_images_are_read(root, content, option, told):
    if content is not None:
        (root / "decisions.csv").write_text(content)
    with pytest.raises(ConfigError, match=told):
        benchmark(root, option)


@pytest.mark.slow
def test_a_run_says_what_decisions_changed_and_goes_on_by_them(root, capsys):
    config = tiny_clip.config(root, "run", {"linear_probe": {"epochs": 1, "batch_size": 8}})
    path = decided(root, about(root, "cat/1.png", "reject"), about(root, "dog/1.png", "relabel", "cat"))
    train.main(["--config", config, f"--data.decisions={path}"])
    assert "1 image is rejected, 1 relabelled" in capsys.readouterr().out
    run = root / "runs/run"
    results = json.loads((run / "results.json").read_text())
    assert results["decisions"] == {"rejected": 1, "relabelled": 1, "gone": 0}
    assert {row["n_ood"] for row in results["rows"] if row["ood"] == "rejected"} == {1}
    scores = pq.read_table(run / "scores.parquet").to_pylist()
    assert [row["path"] for row in scores if row["set"] == "rejected"] == ["cat/1.png"]
    assert [row["set"] for row in scores if row["path"] == "cat/1.png"] == ["rejected"]
    (run / "results.json").unlink()
    append(path, [about(root, "fox/1.png", "keep")])
    train.main(["--config", config, f"--data.decisions={path}", "--resume"])  # nothing has changed
    (run / "results.json").unlink()
    append(path, [about(root, "fox/1.png", "reject")])
    capsys.readouterr()
    train.main(["--config", config, f"--data.decisions={path}", "--resume"])
    assert "has changed since this run was begun, which goes on with what it said then" in capsys.readouterr().out
    assert rejected(run) == {"cat/1.png"}
    path.unlink()
    evaluation.main(["--run", str(run)])
    assert rejected(root / "runs/run-eval") == {"cat/1.png"}
    export_embeddings(run, root / "embedded.parquet")
    assert pq.read_table(root / "embedded.parquet")["set"].to_pylist().count("rejected") == 1
    append(path, [about(root, "dog/3.png", "reject")])
    evaluation.main(["--run", str(run), "--name=other"])  # the run's own copy counts, not what is said now
    assert rejected(root / "runs/other") == {"cat/1.png"}


@pytest.mark.slow
def test_all_seeds_read_what_was_decided_when_the_first_one_began(root, monkeypatch):
    config = tiny_clip.config(root, "run", {"zero_shot": {}})
    path = decided(root, about(root, "cat/1.png", "reject"))
    runs = seeds.run

    def and_decide(*given):
        append(path, [about(root, "cat/3.png", "reject")])
        return runs(*given)

    monkeypatch.setattr(seeds, "run", and_decide)
    train.main(["--config", config, f"--data.decisions={path}", "--seeds=[0, 1]"])
    for seed in (0, 1):
        assert rejected(root / f"runs/run/seed-{seed}") == {"cat/1.png"}
    train.main(["--config", config, f"--data.decisions={path}", "--name=next"])
    assert rejected(root / "runs/next") == {"cat/1.png", "cat/3.png"}


@pytest.mark.slow
def test_all_runs_of_a_study_read_what_was_decided_when_it_began(root, monkeypatch):
    path = decided(root, about(root, "cat/1.png", "reject"))
    runs = seeds.run

    def and_decide(*given):
        append(path, [about(root, "cat/3.png", "reject")])
        return runs(*given)

    keys = {"config": tiny_clip.config(root, "base", {"zero_shot": {}}), "studies_root": f"{root}/studies"}
    axes = {"seed": {"seed": [1, 2]}}
    keys |= {"shows": "table", "axes": axes, "lines": {"1-NN": {"detector": "knn"}}}
    (root / "both.yaml").write_text(yaml.safe_dump(keys))
    with monkeypatch.context() as patch:
        patch.setattr(seeds, "run", and_decide)
        study.main(["--config", str(root / "both.yaml"), f"--data.decisions={path}"])
    for name in ("1--1-nn", "2--1-nn"):
        assert rejected(root / "studies/both" / name) == {"cat/1.png"}
    (root / "studies/both/2--1-nn/results.json").unlink()  # as if it had been stopped there
    study.main(["--config", str(root / "both.yaml"), f"--data.decisions={path}"])
    assert rejected(root / "studies/both/2--1-nn") == {"cat/1.png"}


@pytest.mark.slow
def test_all_runs_of_an_attack_go_by_what_the_attacked_run_has_kept(root):
    config = tiny_clip.config(root, "run", {"zero_shot": {}})
    path = decided(root, about(root, "cat/1.png", "reject"))
    train.main(["--config", config, f"--data.decisions={path}"])
    append(path, [about(root, "cat/3.png", "reject")])
    keys = {"ood": "near", "pairs": 4, "steps": 3, "lr": 0.02, "batch_size": 4, "runs_root": f"{root}/attacks"}
    (root / "on.yaml").write_text(yaml.safe_dump(keys | {"name": "on", "config": str(root / "runs/run")}))
    attack.main(["--config", str(root / "on.yaml")])
    assert rejected(root / "attacks/on/clean") == {"cat/1.png"}
    for run in (root / "attacks/on").glob("*/config.yaml"):
        assert (run.parent / "decided.csv").read_bytes() == (root / "runs/run/decided.csv").read_bytes()


def test_a_run_on_other_decisions_does_not_take_the_copy_of_the_scored_one(root):
    config = tiny_clip.config(root, "copied", {"zero_shot": {}})
    path = decided(root, about(root, "cat/1.png", "reject"))
    other = decided(root, about(root, "cat/3.png", "reject"), name="other.csv")
    train.main(["--config", config, f"--data.decisions={path}"])
    run = root / "runs/copied"
    found = [kept_by(run, load_config(config, [f"--data.decisions={each}"])) for each in (path, other)]
    assert found == [run / "decided.csv", None]


def test_processes_that_know_other_images_stop(root):
    plain = load_benchmark(load_config(tiny_clip.config(root, "plain", {"zero_shot": {}})))
    decided(root, about(root, "cat/1.png", "reject"))
    first = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda own: "another"))
    with pytest.raises(ConfigError, match="Two processes of this run know different images"):
        check_alike(plain, first)
    check_alike(plain, SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda own: own)))


def rejected(run: Path) -> set[str]:
    return {row["path"] for row in pq.read_table(run / "scores.parquet").to_pylist() if row["set"] == "rejected"}


def finished(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    (folder / "results.json").write_text("{}")
    return folder


def test_overwriting_a_run_keeps_its_decisions_whatever_becomes_of_the_new_one(tmp_path):
    folder = finished(tmp_path / "run")
    append(folder / "decisions.csv", [Decision("keep", path="a")])
    assert choose_folder(tmp_path, "run", overwrite=True) == folder
    append(folder / "decisions.csv", [Decision("keep", path="b")])  # meanwhile
    with pytest.raises(ZeroDivisionError), replacing(folder):
        raise ZeroDivisionError
    assert (folder / "decisions.csv").read_text().count("keep") == 2 and (folder / "results.json").is_file()
    choose_folder(tmp_path, "run", overwrite=True)
    with replacing(folder):
        finished(folder)
    assert (folder / "decisions.csv").read_text().count("keep") == 2


def test_overwriting_again_after_a_kill_keeps_decisions(tmp_path):
    folder = finished(tmp_path / "run")
    append(folder / "decisions.csv", [Decision("keep", path="a")])
    choose_folder(tmp_path, "run", overwrite=True)
    (folder / "config.yaml").write_text("{}")  # the new run is killed
    choose_folder(tmp_path, "run", overwrite=True)
    assert "keep" in (folder / "decisions.csv").read_text()
    shutil.rmtree(folder)  # killed between the two steps
    finished(tmp_path / ".run.replaced")
    append(tmp_path / ".run.replaced" / "decisions.csv", [Decision("keep", path="a")])
    choose_folder(tmp_path, "run", overwrite=True)
    assert "keep" in (folder / "decisions.csv").read_text()
