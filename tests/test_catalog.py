"""The catalogue: published numbers, what is there and what is not, counts that must hold, and a whole benchmark's run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from subprocess import run

import pytest
import replica
import tiny_clip
import torch
import yaml
from replica import CLASSES, put

import train
from clip_ood.config.checks import check_folders, layouts
from clip_ood.config.loading import CONFIGS, load_config, validate
from clip_ood.config.schema import ImageSet
from clip_ood.config.sets import Entry, Split, catalogue, entry
from clip_ood.data.catalog.state import look
from clip_ood.errors import ConfigError
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.commands.catalog import main

pytestmark = pytest.mark.slow

PUBLISHED = {  # arXiv 2303.05828 and OpenOOD v1.5 (arXiv 2306.09301)
    "CIFAR10": {"train": 50_000, "test": 10_000},
    "CIFAR100": {"train": 50_000, "test": 10_000},
    "TinyImageNet": {"val": 10_000},
    "ImageNet-1k": {"train": 1_281_167, "val": 50_000, "openood_val": 5_000, "openood_test": 45_000},
    "iNaturalist": {"test": 10_000},
    "SUN": {"test": 10_000},
    "Places": {"test": 10_000},
    "Textures": {"full": 5_640, "openood": 5_160},
    "NINCO": {"test": 5_879},
    "ImageNet-O": {"test": 2_000},
    "SSB-hard": {"test": 49_000},
    "OpenImage-O": {"val": 1_763, "test": 15_869},
    "ImageNet-V2": {"test": 10_000},
    "ImageNet-C": {"test": 10_000},
    "ImageNet-R": {"test": 30_000},
    "SVHN": {"test": 26_032},
    "MNIST": {"test": 10_000},
    "Adversarial-CIFAR10": {"smooth": 1_000, "patchy": 1_000},  # our own: that of the paper
    "Places365": {"openood_cifar10": 35_195, "openood_cifar100": 33_773},
    "ImageNet-10": {"train": None, "val": 10 * 50},  # arXiv 2211.13445, of 50 validation images a class
    "ImageNet-20": {"train": None, "val": 20 * 50},
    "ImageNet-100": {"train": None, "val": 100 * 50},
    "ImageNet-200": {"val": 1_000, "test": 9_000, "v2": 2_000, "c": 2_000, "r": 30_000},
    "NINCO-Clean": {"places": 153, "textures": 288, "ssb_hard": 208},  # arXiv 2306.00826
    "ImageNet-OOD": {"test": 31_802},  # lines of the published list
    "ImageNet-Sketch": {"test": 50_889},
    "ImageNet-A": {"test": 7_500},
    "ImageNet-ES": {"test": 2 * 27 * 1_000, "auto_exposure": 2 * 5 * 1_000},  # lights, settings, originals
    "CUB": {"train": 5_994, "test": 5_794},
    "Cars": {"train": 8_144, "test": 8_041},
    "Aircraft": {"train": 6_667, "test": 3_333},
    "Food": {"train": 101 * 750, "test": 101 * 250},
    "Pets": {"train": 3_680, "test": 3_669},
    "WaterBirds": {"train": 4_795, "val": 1_199, "test": 5_794},  # arXiv 1911.08731
    "Places-Backgrounds": {"test": None},
}


def test_the_numbers_are_those_that_were_published():
    found = {name: {split: each.images for split, each in known.splits.items()} for name, known in catalogue().items()}
    assert found.keys() == PUBLISHED.keys()
    assert all(counts.items() <= found[name].items() for name, counts in PUBLISHED.items())


def test_what_overlaps_with_imagenet_is_told_of_each_ood_set_and_in_the_docs():
    benchmarks = [
        yaml.safe_load((CONFIGS / "benchmarks" / f"{name}.yaml").read_text())
        for name in ("imagenet", "imagenet_openood")
    ]
    names = {each["catalog"] for benchmark in benchmarks for each in benchmark["ood"].values()}
    rows = {
        row.split("|")[1].split(",")[0].strip(): row
        for row in (Path(__file__).parents[1] / "docs" / "sets.md").read_text().splitlines()
        if "|" in row
    }
    assert names == {known.name for known in catalogue().values() if known.overlap}
    for name in names:
        counts = re.findall(r"(?:^| )(\d{2,3}) (?=images|\(|show|that)", " ".join(entry(name).overlap.split()))
        assert all(re.search(rf"\b{count}\b", rows[name]) for count in counts) and "lacks" not in entry(name).about


def test_halves_and_parts_make_the_whole():
    known = {name: {split: each.images for split, each in of.splits.items()} for name, of in catalogue().items()}
    for name in ("CUB", "Cars", "Aircraft"):
        assert sum(known[name][f"ssb_{half}"] for half in ("test", "easy", "hard")) == known[name]["test"]
    for name in ("CUB", "Cars", "Food"):
        assert known[name]["eoe_test"] + known[name]["eoe_ood"] == known[name]["test"]
    assert sum(known["NINCO-Clean"].values()) == 2_715
    assert sum(known["WaterBirds"].values()) == known["CUB"]["train"] + known["CUB"]["test"] == 11_788


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_is_whole(name):
    known = entry(name)
    assert known.about and known.licence and known.source.startswith("http") and (known.files or known.how)
    for split in known.splits:
        assert all(spec.count == known.splits[split].images for spec in layouts(ImageSet(catalog=name, split=split)))
    for file in known.files:
        assert file.url.startswith("http") and file.name and re.fullmatch(r"[0-9a-f]{32}|", file.md5 or "")


def test_torchvision_knows_the_same_checksums():
    from torchvision import datasets

    known = {file.md5 for each in catalogue().values() for file in each.files}
    theirs = {datasets.CIFAR10.tgz_md5, datasets.CIFAR100.tgz_md5, datasets.DTD._MD5}
    theirs |= {md5 for _, md5 in datasets.MNIST.resources}
    theirs |= {datasets.SVHN.split_list[split][2] for split in ("train", "test")}
    theirs |= {datasets.Food101._MD5} | {md5 for _, md5 in datasets.OxfordIIITPet._RESOURCES}
    assert theirs <= known


# The table


def table(root, capsys, monkeypatch, columns=200):
    monkeypatch.setenv("COLUMNS", str(columns))
    main(["--root", str(root)])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["get", "NINCO"]])
def test_a_root_that_is_no_folder_or_that_nothing_can_be_written_to_is_told(command, tmp_path, capsys):
    (file := tmp_path / "file").touch()
    for root in (file, "s3://photos/sets"):
        with pytest.raises(ConfigError, match=f"--root: {root} is no folder of this machine"):
            main([*command, "--root", str(root)])
    if command:
        with pytest.raises(OSError, match="so no file can be written there: '/proc'"):
            main([*command, "--root", "/proc/x"])
    assert not capsys.readouterr().out


def test_the_table_says_what_is_there_and_how_to_get_the_rest(tmp_path, capsys, monkeypatch):
    for index in range(3):
        put(tmp_path / "NINCO" / "NINCO_OOD_classes" / "cup" / f"{index}.jpg")
        put(tmp_path / "placesbg" / "land" / f"{index}.jpg")
    (tmp_path / "SUN").mkdir()
    out = table(tmp_path, capsys, monkeypatch)
    lines = [line.rstrip() for line in out.splitlines()]
    sets = {line.split(" · ")[0]: line for line in lines if " · " in line and not line.startswith(" ")}
    assert sets.keys() == PUBLISHED.keys()
    assert sets["Textures"] == "Textures · 47 classes · far · 625 MB · research only"
    assert "NINCO · 64 classes · near · size ? · mixed, see its page" in lines

    def rows(name):
        start = lines.index(sets[name]) + 1
        return [line.split() for line in lines[start : start + len(entry(name).splits)]]

    assert rows("NINCO") == [["test", "5,879", "3", "incomplete"]]
    assert rows("iNaturalist") == [["test", "10,000", "–", "missing"]]
    assert rows("SUN") == [["test", "10,000", "0", "wrong"]]
    assert rows("Places-Backgrounds") == [["test", "?", "3", "there"]]
    assert "NINCO test: 3 of 5,879 images are there. 5,876 (99 %) are missing, as of a download that did not end" in out
    assert "SUN test: Image set SUN: " in out
    assert f"clip-ood catalog get Places --root={tmp_path}" in out
    assert re.search(r"ImageNet-1k \(.*\):\n    Accept the terms", out)


def test_splits_and_their_states_fit_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    lines = table(tmp_path, capsys, monkeypatch, columns=80).partition("Incomplete or missing")[0].splitlines()
    assert len([line for line in lines if line.endswith("missing")]) == sum(
        len(each.splits) for each in catalogue().values()
    )
    assert all(len(line.rstrip()) <= 80 for line in lines if line.startswith("  "))


def test_a_set_that_lacks_a_few_images_says_how_far_a_number_may_be_off(tmp_path, monkeypatch):
    for index in range(199):
        put(tmp_path / "NINCO" / "NINCO_OOD_classes" / "cup" / f"{index}.jpg")
    known = Entry("NINCO", "", "", "", {"test": Split(200, [{"folder": "NINCO/NINCO_OOD_classes"}])})
    monkeypatch.setattr("clip_ood.config.checks.entry", lambda name: known)
    state = look(known, "test", tmp_path)
    assert state.word == "incomplete" and "1 (0.5 %) is missing, as where a publisher removed images" in state.trouble
    assert "by at most 0.5 points" in state.trouble


def test_listing_downloads_nothing(tmp_path, capsys, monkeypatch):
    def no(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", no)
    (tmp_path / "cifar-10-batches-py").mkdir()  # of a download that was killed
    out = table(tmp_path, capsys, monkeypatch)
    assert "CIFAR10 test: " in out and "could not read CIFAR10" in out


def test_the_command_answers_a_wrong_name_and_a_set_that_it_does_not_download(tmp_path):
    for name, message in (("NINKO", "Did you mean NINCO"), ("ImageNet-1k", "is not downloaded from here.*Accept the")):
        command = [sys.executable, "-m", "clip_ood", "catalog", "get", name, "--root", str(tmp_path)]
        done = run(command, capture_output=True, text=True, cwd=CONFIGS.parent)
        assert done.returncode == 2 and re.search(f"error: .*{message}", done.stderr) and not done.stdout
    assert list(tmp_path.iterdir()) == []


# In a config


def config(root, **data):
    content = {"id": "id", "root": str(root), "ood": {"photos": {"catalog": "NINCO"}}} | data
    backbone = {"library": "timm", "model": "test_vit"}
    return validate({"name": "x", "data": content, "backbone": backbone, "method": {"zero_shot": {}}})


@pytest.fixture
def ten(tmp_path):
    for index in range(10):
        put(tmp_path / "id" / f"{index}.png", index)
        put(tmp_path / "NINCO" / "NINCO_OOD_classes" / "cup" / f"{index}.jpg")
    return tmp_path


def test_another_number_than_published_is_an_error_unless_it_is_allowed(ten, capsys):
    with pytest.raises(ConfigError, match=r"photos: .*NINCO_OOD_classes holds 10 images, .* 5,879\. .*allow_partial"):
        load_benchmark(config(ten))
    found = load_benchmark(config(ten, allow_partial=True))
    assert len(found.parts["ood/photos"].rows) == 10 and found.parts["ood/photos"].group == "near"
    assert "photos: 10 of 5,879 images" in capsys.readouterr().out


def test_more_images_than_published_are_never_allowed(ten, monkeypatch):
    small = Entry("NINCO", "", "", "", {"test": Split(9, [{"folder": "NINCO/NINCO_OOD_classes"}])})
    monkeypatch.setattr("clip_ood.config.checks.entry", lambda name: small)
    with pytest.raises(ConfigError, match="holds 10 images, and the set has 9"):
        load_benchmark(config(ten, allow_partial=True))


def test_another_number_of_classes_is_an_error_unless_it_is_allowed(tmp_path):
    for label in "ab":
        for index in range(4):
            put(tmp_path / "id" / label / f"{index}.png")
    spec = {"id": {"images": {"folder": "id", "classes": 3}}, "ood": {}}
    with pytest.raises(ConfigError, match="id holds 2 classes, and the set has 3"):
        load_benchmark(config(tmp_path, **spec))
    assert load_benchmark(config(tmp_path, allow_partial=True, **spec)).class_names == ("a", "b")


def test_a_config_may_group_a_set_otherwise_and_draw_from_it(ten):
    ood = {"photos": {"catalog": "NINCO", "group": "far", "per_class": 4}}
    found = load_benchmark(config(ten, ood=ood, allow_partial=True))
    assert found.parts["ood/photos"].group == "far" and len(found.parts["ood/photos"].rows) == 4


def test_a_set_that_is_missing_says_where_it_was_looked_for_and_how_to_get_it(tmp_path):
    (tmp_path / "id").mkdir()
    with pytest.raises(ConfigError) as error:
        check_folders(config(tmp_path))
    for words in ("photos", f"folder {tmp_path}/NINCO", "image list", f"catalog get NINCO --root={tmp_path}"):
        assert words in str(error.value)


@pytest.mark.parametrize("name", ["plp_vitg.yaml", "linear_probe_vith.yaml", "finetune_vith.yaml"])
def test_a_run_without_its_images_ends_at_once(name, tmp_path):
    with pytest.raises(ConfigError, match=r"id\.train: ImageNet-1k is not under .*Accept the terms"):
        train.main(["--config", name, f"--data.root={tmp_path}", f"--runs_root={tmp_path}/runs"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    sorted(
        path.stem for path in (CONFIGS / "benchmarks").glob("*.yaml") if path.stem not in ("demo", "cifar10_sample")
    ),
)
def test_a_benchmark_repeats_nothing_of_the_catalogue(name):
    content = yaml.safe_load((CONFIGS / "benchmarks" / f"{name}.yaml").read_text())
    parts = [part for part in content["id"].values() if isinstance(part, dict)]
    for spec in [*parts, *content["ood"].values(), *content.get("csid", {}).values()]:
        assert spec.keys() <= {"catalog", "split"} and layouts(ImageSet(**spec))


# The whole ImageNet benchmark


def test_a_replica_of_the_imagenet_benchmark_runs_as_the_shipped_config_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    replica.imagenet(tmp_path / "images")
    (tmp_path / "made").mkdir()
    tiny_clip.make(tmp_path / "made")
    weights = tmp_path / "made" / "clip" / "open_clip_pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    state["logit_scale"] = torch.tensor(9.0)  # e⁹: a random encoder as sure of its classes as a trained one
    torch.save(state, weights)
    encoder = {"model": f"local-dir:{tmp_path}/made/clip"}
    changes = [f"--backbone={json.dumps(encoder)}", f"--data.root={tmp_path}/images", "--data.allow_partial=true"]
    train.main(["--config", "plp_vitg.yaml", *changes])
    results = json.loads((tmp_path / "runs" / "plp_vitg" / "results.json").read_text())
    sizes = {row["ood"]: row["n_ood"] for row in results["rows"] if row["ood"] != "mean"}
    assert sizes == {"inaturalist": 6, "sun": 5, "places": 4, "textures": 5, "ninco": 4, "imagenet_o": 7}
    assert {row["n_id"] for row in results["rows"]} == {2 * len(CLASSES)} and results["accuracy"] is not None
    assert {row["detector"] for row in results["rows"]} >= {"knn", "mcm", "msp", "rmd_logits"}
    changed = load_config("plp_vitg.yaml", changes).model_dump(mode="json")
    assert changed["trainer"] == load_config("plp_vitg.yaml").trainer
