"""What is said of a run's images before it is trained: images in several sets, too few to calibrate on."""

from __future__ import annotations

import shutil
import tarfile

import pytest
import tiny_clip

import eval as evaluation
import train

ZERO_SHOT = {"zero_shot": {}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny_clip.make(tmp_path_factory.mktemp("cautions"))
    data = root / "data"
    shutil.copytree(data / "id", data / "copy")
    for image in sorted((data / "id").rglob("*.png")):  # every picture twice, under another name
        (data / "twice" / image.parent.name).mkdir(parents=True, exist_ok=True)
        for name in ("a", "b"):
            shutil.copy(image, data / "twice" / image.parent.name / f"{name}-{image.name}")
    (data / "mixed").mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(data / "id" / "cat" / name, data / "mixed" / f"cat-{name}")
        shutil.copy(data / "near" / name, data / "mixed" / f"near-{name}")
    with tarfile.open(data / "near.tar", "w") as tar:
        for image in sorted((data / "near").iterdir()):
            tar.add(image, image.name)
    return root


def said(root, capsys, name, **data):
    """The line about shared images that a run prints, "" without one, and what its results.json says."""
    keys = {"root": f"{root}/data", "ood": {}, "splits": {"val": 0.2, "test": 0.3}, "batch_size": 8} | data
    capsys.readouterr()
    evaluation.main(["--config", tiny_clip.config(root, name, ZERO_SHOT, data=keys)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("The same images")]
    assert len(lines) in (0, 2)  # before the run, and below its table
    shared = tiny_clip.results(root / "runs" / name)["shared_images"]
    return "".join(lines[:1]), {(each["earlier"], each["later"]): (each["images"], each["total"]) for each in shared}


def test_an_ood_set_of_copies_of_the_id_images(root, capsys):
    line, shared = said(root, capsys, "copies", id="id", ood={"me": "copy"})
    assert shared == {("train", "ood/me"): (23, 46), ("val", "ood/me"): (9, 46), ("id_test", "ood/me"): (14, 46)}
    assert "23 of the 46 images of ood/me are also in train" in line and "remove the copies" in line


def test_test_images_that_were_trained_on(root, capsys):
    line, shared = said(root, capsys, "trained", id={"train": "id", "test": "copy"})
    assert shared == {("train", "id_test"): (37, 46), ("val", "id_test"): (9, 46)}
    assert "37 of the 46 images of id_test are also in train" in line


def test_every_picture_twice_under_other_names(root, capsys):
    line, shared = said(root, capsys, "twice", id="twice")
    assert {pair for pair in shared if len({*pair}) == 2} == {
        ("train", "val"),
        ("train", "id_test"),
        ("val", "id_test"),
    }
    assert sum(images for images, _ in shared.values()) >= 46 and line  # within one part, too


def test_single_images_of_id_among_ood_ones_and_of_a_shard(root, capsys):
    line, shared = said(
        root, capsys, "single", id="id", ood={"mixed": "mixed", "far": "far"}, ood_val={"shards": "near.tar"}
    )
    assert shared["ood_val", "ood/mixed"] == (2, 4)
    assert sum(images for (earlier, _), (images, _) in shared.items() if earlier != "ood_val") == 2
    assert all(later == "ood/mixed" for _, later in shared) and "ood/mixed" in line


def test_images_that_cannot_be_read_are_no_copies(root, capsys):
    for place in ("id/cat", "mixed"):
        (root / "data" / place / "empty.png").touch()
    try:
        _, shared = said(root, capsys, "unreadable", id="id", ood={"mixed": "mixed"})
        assert sum(images for images, _ in shared.values()) == 2
    finally:
        for place in ("id/cat", "mixed"):
            (root / "data" / place / "empty.png").unlink()


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        (["--data.splits.val=0.2"], ["takes 19 ID val images, and there are 9", "about 95 at", "accept=0.9 or lower"]),
        (["--data.splits.val=0"], ["there are 0", "hold some out"]),
        (["--evaluation.accept=0.99", "--data.splits.val=0.4"], ["accepts 99 %", "takes 99 ID val images"]),
        (["--evaluation.accept=0.9", "--data.splits.val=0.2"], []),
        (["--data.splits.val=0.5"], []),
        (["--data.splits.val=0", "--evaluation.save_detector=false"], []),
    ],
)
def test_too_few_images_to_calibrate_are_told_before_training(root, keys, parts, capsys, monkeypatch):
    from clip_ood.experiments import run

    def stop(*_):
        raise RuntimeError("here images would be read")

    monkeypatch.setattr(run, "load_features", stop)
    config = tiny_clip.config(root, "few", {"linear_probe": {"epochs": 1}})
    with pytest.raises(RuntimeError, match="would be read"):
        train.main(["--config", config, "--overwrite", *keys])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("detect.py will not")]
    assert len(lines) == bool(parts) and all(part in lines[0] for part in parts)
