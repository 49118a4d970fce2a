"""Corrupted ID test images as OOD sets: their place in a benchmark and in the store, whole runs, configs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
import yaml
from PIL import Image

import clip_ood.data.corruptions as corruptions
import clip_ood.experiments.extraction as extraction
import train
from clip_ood.config.help import explain
from clip_ood.config.loading import dump, validate
from clip_ood.data.corruptions import CORRUPTIONS, Corruption
from clip_ood.data.readers.arrays import Arrays
from clip_ood.errors import ConfigError
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.features.identity import pairs
from clip_ood.metrics import ood_metrics


def fill(root, **counts):
    generator = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder.replace("__", "/")).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder.replace("__", "/") / f"{index}.png")
    return root


BLUR, NOISE = {"corruption": "gaussian_blur", "severity": 3}, {"corruption": "gaussian_noise", "severity": 5}


def config(root, **data):
    data = {"root": str(root), "id": "id", "ood": {}} | data
    backbone = {"library": "timm", "model": "test_vit"}
    return validate({"name": "x", "data": data, "backbone": backbone, "method": {"zero_shot": {}}})


def test_corrupted_sets_are_the_test_images_under_their_own_names(tmp_path):
    fill(tmp_path, id__cat=10, id__dog=10, near=2)
    ood = {"near": "near", "blur": BLUR, "noise": NOISE | {"group": "noise"}}
    found = load_benchmark(config(tmp_path, ood=ood))
    assert list(found.parts) == ["bank", "id_test", "ood/near", "ood/blur", "ood/noise", "train", "val"]
    tested, of_test = found.images["id"], found.parts["id_test"].rows
    for name, group in (("blur", "shift"), ("noise", "noise")):
        part, images = found.parts[f"ood/{name}"], found.images[f"ood/{name}"]
        assert (part.role, part.group, part.rows, found.labels(part)) == ("ood", group, list(range(6)), [-1] * 6)
        assert images.names == tuple(tested.names[row] for row in of_test)
        corrupt = Corruption(ood[name]["corruption"], ood[name]["severity"])
        for row, name_of in enumerate(images.names):
            assert images.read(row) == corrupt(tested.read(of_test[row]), name_of)


def test_a_published_test_set_of_arrays_is_corrupted_as_files_are(tmp_path):
    fill(tmp_path, train__cat=4, train__dog=4, test__cat=3, test__dog=2)
    found = load_benchmark(config(tmp_path, id={"train": "train", "test": "test"}, ood={"blur": BLUR})).images
    assert found["ood/blur"].names == found["id.test"].names and len(found["ood/blur"]) == 5
    arrays = np.stack([np.asarray(found["id.test"].read(row)) for row in range(5)])
    reader = Arrays(arrays, found["ood/blur"].names)
    assert replace(found["ood/blur"], reader=reader).read(3) == found["ood/blur"].read(3)


def test_the_store_tells_clean_images_corruptions_severities_and_versions_apart(tmp_path, monkeypatch):
    fill(tmp_path, id__cat=3, id__dog=3)
    sets = {
        f"{name}{severity}": {"corruption": name, "severity": severity} for name in CORRUPTIONS for severity in (1, 2)
    }
    benchmark = load_benchmark(config(tmp_path, ood=sets))
    clean = benchmark.images["id"].subset(benchmark.parts["id_test"].rows)
    everything = [clean, *(benchmark.images[f"ood/{name}"] for name in sets)]
    never_read = lambda images: images.derived(images.stamps()[0])  # noqa: E731
    read = lambda images: pairs(images.load(row).identity for row in range(len(images)))  # noqa: E731
    for known_by in (never_read, read):
        keys = {tuple(key) for images in everything for key in known_by(images).tolist()}
        assert len(keys) == len(clean) * len(everything)
        with monkeypatch.context() as patch:
            patch.setattr(corruptions, "VERSION", corruptions.VERSION + 1)
            assert not {tuple(key) for key in known_by(benchmark.images["ood/jpeg1"]).tolist()} & keys


# Whole runs


def shifted(root, name):
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near", "blur": BLUR, "noise": NOISE}}
    return tiny_clip.config(root, name, {"zero_shot": {}}, data=data)


def test_a_run_has_rows_for_corrupted_sets_and_a_second_one_extracts_nothing(root, monkeypatch):
    train.main(["--config", shifted(root, "first")])
    rows = tiny_clip.results(root / "runs" / "first")["rows"]
    found = {(row["ood"], row["group"], row["n_id"], row["n_ood"]) for row in rows if row["ood"] != "mean"}
    assert found == {("near", "ood", 14, 9), ("blur", "shift", 14, 14), ("noise", "shift", 14, 14)}
    scores = pq.read_table(root / "runs" / "first" / "scores.parquet").to_pylist()
    by_set = {name: {row["path"]: row for row in scores if row["set"] == name} for name in ("id_test", "blur", "noise")}
    assert by_set["blur"].keys() == by_set["noise"].keys() == by_set["id_test"].keys() and len(by_set["blur"]) == 14
    assert all(row["role"] == "ood" and row["label"] is None and row["prediction"] for row in by_set["blur"].values())
    assert len({tuple(row["knn"] for row in rows.values()) for rows in by_set.values()}) == 3

    numbers = {name: [row["image"] for row in rows.values()] for name, rows in by_set.items()}
    assert numbers["blur"] == numbers["noise"] == numbers["id_test"] and len(set(numbers["blur"])) == 14
    assert not {row["image"] for row in scores if row["set"] == "near"} & set(numbers["blur"])
    inside, blurred = (torch.tensor([row["knn"] for row in by_set[name].values()]) for name in ("id_test", "blur"))
    paired, apart = (ood_metrics(inside, blurred, None, *which)["auroc"] for which in ([torch.arange(14)] * 2, []))
    (row,) = [each for each in rows if (each["detector"], each["ood"]) == ("knn", "blur")]
    assert row["intervals"]["auroc"] == pytest.approx([paired.low, paired.high])  # each image with its own blurred copy
    assert row["intervals"]["auroc"] != pytest.approx([apart.low, apart.high], abs=1e-4)

    def loaded(spec):
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr(extraction, "create_backbone", loaded)
    train.main(["--config", shifted(root, "second")])
    assert pq.read_table(root / "runs" / "second" / "scores.parquet").to_pylist() == scores


# Configs


def test_a_corruption_comes_back_from_the_dump_and_is_explained(tmp_path):
    found = config(tmp_path, ood={"blur": BLUR})
    assert validate(yaml.safe_load(dump(found))) == found
    text = "\n".join(explain())
    assert "--data.ood.NAME.corruption  (gaussian_noise | shot_noise |" in text
    assert "--data.ood.NAME.severity  (int | null) [null]" in text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"ood": {"a": {"corruption": "blur", "severity": 1}}}, "data.ood.a.corruption: .*'gaussian_blur'.*got 'blur'"),
        ({"ood": {"a": {"corruption": "jpeg"}}}, "data.ood.a: corruption and severity .1 to 5. go together"),
        ({"ood": {"a": {"folder": "x", "severity": 2}}}, "data.ood.a: corruption and severity .1 to 5. go together"),
        ({"ood": {"a": {"corruption": "jpeg", "severity": 0}}}, "data.ood.a.severity: .*greater than or equal to 1"),
        ({"ood": {"a": {"corruption": "jpeg", "severity": 6}}}, "data.ood.a.severity: .*less than or equal to 5"),
        ({"ood": {"a": BLUR | {"folder": "x"}}}, "data.ood.a: needs exactly one of .*corruption; got .*folder"),
        ({"ood": {"a": BLUR | {"per_class": 2}}}, "only severity and group are meant, not per_class"),
        (
            {"csid": {"a": BLUR}},
            "data.csid.a: a corruption makes an OOD set of the ID test images: name it under data.ood",
        ),
        ({"ood_val": BLUR}, "data.ood_val: a corruption makes an OOD set"),
        ({"id": {"images": BLUR}}, "data.id.images: a corruption makes an OOD set"),
        ({"id": {"train": "x", "test": BLUR}}, "data.id.test: a corruption makes an OOD set"),
    ],
)
def test_a_corruption_that_cannot_be_meant_is_named(data, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **data)
