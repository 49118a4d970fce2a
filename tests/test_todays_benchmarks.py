"""Today's benchmarks: each block runs on a replica of its published layout; class lists are as long as published, and halves apart."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import replica
import replica_benchmarks as replicas
import tiny_clip
import yaml
from replica import CLASSES
from replica_benchmarks import names
from test_layouts import benchmark, block
from torchvision import datasets

import train
from clip_ood.config.class_lists import shipped
from clip_ood.config.loading import CONFIGS
from clip_ood.data.class_names import imagenet_names
from clip_ood.experiments.benchmarks import load_benchmark  # noqa: F401  (what test_layouts' benchmark calls)

NAMES = dict(zip(replica.WNIDS, imagenet_names(), strict=True))
FEW = {
    "ImageNet-10": names("mcm_imagenet10"),
    "ImageNet-20": names("mcm_imagenet20"),
    "ImageNet-100": names("mcm_imagenet100"),
}
LENGTHS = {
    "mcm_imagenet10": 10,
    "mcm_imagenet20": 20,
    "mcm_imagenet100": 100,
    "openood_imagenet200": 200,
    "cifar10": 10,
    "cifar100": 100,
    "ssb_cub_known": 100,
    "ssb_cub_easy": 32,
    "ssb_cub_hard": 68,
    "ssb_cars_known": 98,
    "ssb_cars_easy": 76,
    "ssb_cars_hard": 22,
    "ssb_aircraft_known": 50,
    "ssb_aircraft_easy": 20,
    "ssb_aircraft_hard": 30,
    "eoe_cub100": 100,
    "eoe_cars98": 98,
    "eoe_food50": 50,
    "eoe_pet18": 18,
}
SSB = ("known", "easy", "hard")


def halves(of):
    """Some classes of each half of a set of the Semantic Shift Benchmark."""
    return {half: names(f"ssb_{of}_{half}", 2) for half in SSB}


def of_eoe(of, others):
    return {"known": names(f"eoe_{of}", 3), "others": others}


def with_mcm(root):
    """Some classes of each of MCM's subsets in folders by wnid, and the four OOD sets."""
    shutil.rmtree(replica.imagenet(root) / "imagenet")
    return replicas.imagenet_classes(root, sorted({wnid for some in FEW.values() for wnid in some}))


REPLICAS = {  # block -> how its replica is made, images of each part but train and val
    "cifar10_openood": (
        lambda root: replicas.cifar(root, "cifar10"),
        {"id_test": 20, "cifar100": 6, "tinyimagenet": 5, "mnist": 4, "svhn": 3, "textures": 2, "places365": 7},
    ),
    "cifar100_openood": (
        lambda root: replicas.cifar(root, "cifar100"),
        {"id_test": 20, "cifar10": 6, "tinyimagenet": 5, "mnist": 4, "svhn": 3, "textures": 2, "places365": 7},
    ),
    "imagenet200_openood": (
        lambda root: replicas.imagenet200(replica.openood(root)),
        {
            "id_test": 8,
            "imagenet200_v2": 4,
            "imagenet200_c": 4,
            "imagenet200_r": 4,
            "ssb_hard": 6,
            "ninco": 5,
            "inaturalist": 4,
        }
        | {"textures": 3, "openimage_o": 2},
    ),
    "imagenet_ninco_clean": (
        lambda root: replicas.ninco_clean(replica.imagenet(root)),
        {
            "id_test": 32,
            "places": 1,
            "inaturalist": 2,
            "textures": 3,
            "openimage_o": 4,
            "imagenet_o": 5,
            "ssb_hard": 6,
            "ssb_easy": 7,
        }
        | {"species": 8, "cood": 9, "imagenet_400": 10, "openset_360": 11},
    ),
    "imagenet_ood": (
        lambda root: replicas.imagenet_ood(replica.imagenet(root)),
        {"id_test": 32, "imagenet_ood": 6},
    ),
    "imagenet_shifted": (
        lambda root: replicas.shifted(replicas.imagenet_ood(replica.imagenet(root)), CLASSES[:4]),
        {"id_test": 32, "imagenet_sketch": 4, "imagenet_a": 2, "imagenet_es": 8, "imagenet_es_auto": 4, "ninco": 4}
        | {"imagenet_ood": 6},
    ),
    "imagenet10": (with_mcm, {"id_test": 6, "imagenet20": 6}),
    "imagenet20": (with_mcm, {"id_test": 6, "imagenet10": 6}),
    "imagenet100": (with_mcm, {"id_test": 8, "inaturalist": 6, "sun": 5, "places": 4, "textures": 5}),
    "ssb_cub": (lambda root: replicas.cub(root, halves("cub")), {"id_test": 4, "easy": 4, "hard": 4}),
    "ssb_cars": (lambda root: replicas.cars(root, halves("cars")), {"id_test": 4, "easy": 4, "hard": 4}),
    "ssb_aircraft": (lambda root: replicas.aircraft(root, halves("aircraft")), {"id_test": 4, "easy": 4, "hard": 4}),
    "eoe_cub100": (
        lambda root: replicas.cub(root, of_eoe("cub100", ["Black footed Albatross", "Sooty Albatross"])),
        {"id_test": 6, "others": 4},
    ),
    "eoe_cars98": (
        lambda root: replicas.cars(root, of_eoe("cars98", ["Car one 2000", "Car two 2001"])),
        {"id_test": 6, "others": 4},
    ),
    "eoe_food50": (
        lambda root: replicas.food(root, of_eoe("food50", ["pizza", "ramen"])),
        {"id_test": 6, "others": 4},
    ),
    "eoe_pet18": (
        lambda root: replicas.pets(root, of_eoe("pet18", ["Abyssinian", "yorkshire terrier"])),
        {"id_test": 6, "others": 4},
    ),
    "waterbirds": (replicas.waterbirds, {"id_test": 6, "backgrounds": 5, "textures": 5, "svhn": 4}),
}


class TinySVHN:
    """Four images of house numbers, no download."""

    def __init__(self, root, split, download):
        self.data = np.arange(4 * 3 * 32 * 32, dtype=np.uint32).astype(np.uint8).reshape(4, 3, 32, 32)
        self.labels = [0, 1, 2, 3]


@pytest.fixture(autouse=True)
def svhn(monkeypatch):
    monkeypatch.setattr(datasets, "SVHN", TinySVHN)


# Class lists


def test_lists_are_as_long_as_published():
    assert {name: len(names(name, None)) for name in shipped()} == LENGTHS


def test_halves_that_stand_against_each_other_have_no_class_in_common():
    for of, count in (("cub", 200), ("cars", 196), ("aircraft", 100)):
        known, easy, hard = (set(names(f"ssb_{of}_{half}", None)) for half in SSB)
        assert len(known | easy | hard) == count == len(known) + len(easy) + len(hard)
    assert not set(names("mcm_imagenet10", None)) & set(names("mcm_imagenet20", None))


def test_imagenets_subsets_are_of_imagenet():
    for name in ("mcm_imagenet10", "mcm_imagenet20", "mcm_imagenet100", "openood_imagenet200"):
        assert set(names(name, None)) <= set(replica.WNIDS)
    assert names("openood_imagenet200", None) == sorted(names("openood_imagenet200", None))


def test_eoes_known_classes_are_of_the_same_sets_as_the_semantic_shift_benchmarks():
    for of, eoe in (("cub", "eoe_cub100"), ("cars", "eoe_cars98")):
        whole = {name for half in SSB for name in names(f"ssb_{of}_{half}", None)}
        assert set(names(eoe, None)) < whole


@pytest.mark.parametrize("name", LENGTHS)
def test_a_list_names_its_source(name):
    text = (CONFIGS.parent / "clip_ood" / "config" / "class_lists" / f"{name}.txt").read_text()
    assert "# Source: " in text and text.startswith("# ")


# Blocks on replicas


@pytest.mark.parametrize("name", REPLICAS)
def test_a_blocks_replica_has_its_parts_and_classes(name, tmp_path):
    make, sizes = REPLICAS[name]
    found = benchmark(make(tmp_path), block(name), splits={"val": 0.4})
    there = {part.name: len(part.rows) for part in found.parts.values()}
    assert {part: count for part, count in there.items() if part not in ("bank", "train", "val")} == sizes
    assert there["train"] and there["val"]
    assert set(found.labels(found.parts["id_test"])) == set(range(len(found.class_names)))


def test_every_new_block_is_on_a_replica_and_in_the_docs():
    blocks = {path.stem for path in (CONFIGS / "benchmarks").glob("*.yaml")}
    page = (CONFIGS.parent / "docs" / "benchmarks.md").read_text()
    assert REPLICAS.keys() <= blocks and all(f"`{name}`" in page for name in blocks - {"demo", "cifar10_sample"})


def test_classes_are_called_as_their_publishers_call_them(tmp_path):
    expected = {
        "cifar10_openood": tuple(sorted(names("cifar10", None))),
        "imagenet10": tuple(NAMES[wnid] for wnid in sorted(FEW["ImageNet-10"])),
        "imagenet200_openood": tuple(NAMES[names("openood_imagenet200", None)[label]] for label in (0, 7, 132, 199)),
        "ssb_cub": tuple(sorted(halves("cub")["known"])),
        "eoe_pet18": tuple(sorted(name.lower() for name in of_eoe("pet18", [])["known"])),
        "waterbirds": ("landbird", "waterbird"),
    }
    for name, classes in expected.items():
        assert benchmark(REPLICAS[name][0](tmp_path / name), block(name)).class_names == classes


def test_shifted_labels_are_those_of_the_class_that_is_shown(tmp_path):
    found = benchmark(REPLICAS["imagenet_shifted"][0](tmp_path), block("imagenet_shifted"))
    for key in ("csid/imagenet_sketch", "csid/imagenet_a", "csid/imagenet_es", "csid/imagenet_es_auto"):
        images = found.images[key]
        assert [name.split("/")[-2] for name in images.names] == [sorted(CLASSES)[label] for label in images.labels]


def test_openoods_numbers_of_imagenet200_lead_to_the_images_classes(tmp_path):
    found = benchmark(REPLICAS["imagenet200_openood"][0](tmp_path), block("imagenet200_openood"))
    for key, place in (("id.train", 2), ("csid/imagenet200_r", 1)):
        images = found.images[key]
        shown = [NAMES[name.split("/")[place]] for name in images.names]
        assert [found.class_names[label] for label in images.labels] == shown
    v2 = found.images["csid/imagenet200_v2"]
    shown = [NAMES[replica.WNIDS[int(name.split("/")[1])]] for name in v2.names]
    assert [found.class_names[label] for label in v2.labels] == shown


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLICAS)
def test_a_blocks_replica_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, sizes = REPLICAS[name]
    make(tmp_path / "images")
    (tmp_path / "made").mkdir()
    tiny_clip.make(tmp_path / "made")
    run = {
        "name": name,
        "data": f"benchmarks/{name}.yaml",
        "backbone": {"model": f"local-dir:{tmp_path}/made/clip"},
        "method": {"zero_shot": {}},
        "detectors": ["knn", "mcm"],
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    train.main(["--config", "run.yaml", f"--data.root={tmp_path}/images", "--data.allow_partial=true"])
    results = json.loads((tmp_path / "runs" / name / "results.json").read_text())
    ood = {
        row["ood"]: row["n_ood"]
        for row in results["rows"]
        if row["ood"] != "mean" and row.get("setting", "standard") == "standard"
    }
    csid = {"imagenet_sketch", "imagenet_a", "imagenet_es", "imagenet_es_auto"} | {
        f"imagenet200_{each}" for each in ("v2", "c", "r")
    }
    assert ood == {part: count for part, count in sizes.items() if part != "id_test" and part not in csid}
