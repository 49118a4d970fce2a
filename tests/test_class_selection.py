"""Sets of some classes: of every reader, told apart by name or number, and what is wrong with a list of classes is named."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import replica
import replica_benchmarks as replicas
from replica import put
from test_layouts import benchmark

from clip_ood.config.checks import check_folders, layouts
from clip_ood.config.class_lists import classes_of
from clip_ood.config.loading import validate
from clip_ood.config.schema import ImageSet
from clip_ood.data.comparability import of_count
from clip_ood.data.listing import list_images
from clip_ood.errors import ConfigError, UserError


def listed(root, partial=False, labelled=True, **spec):
    return list_images("photos", ImageSet(**spec), root, labelled, 0, partial)


@pytest.fixture
def animals(tmp_path):
    """Two images each of four classes, in folders and as a list, shards and an .npz file with numbers."""
    for number, name in enumerate(("cat", "dog", "red_fox", "wolf")):
        for index in range(2):
            put(tmp_path / "animals" / name / f"{name}_{index}.png", 10 * number + index)
    lines = [
        f"{name}/{name}_{index}.png {number}"
        for number, name in enumerate(("cat", "dog", "red_fox", "wolf"))
        for index in (0, 1)
    ]
    (tmp_path / "animals.txt").write_text("\n".join(lines) + "\n")
    replica.shards(tmp_path / "shards", [0, 0, 1, 1, 2, 2, 3, 3])
    pixels = np.zeros((8, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "animals.npz", images=pixels, labels=np.repeat(np.arange(4), 2))
    return tmp_path


SOURCES = {
    "folder": {"folder": "animals"},
    "list": {"list": "animals.txt", "images_root": "animals"},
    "shards": {"shards": "shards/photos-{000..001}.tar"},
    "npz": {"reader": "npz", "path": "animals.npz"},
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("labelled", [True, False])
def test_classes_are_kept_and_dropped_whatever_the_source(source, labelled, animals):
    names = {} if source == "folder" else {"label_names": ["cat", "dog", "red fox", "wolf"]}
    whole = listed(animals, **SOURCES[source], **names)
    kept = listed(animals, labelled=labelled, **SOURCES[source], **names, keep_classes=["Red_Fox", "cat"])
    rest = listed(animals, labelled=labelled, **SOURCES[source], **names, drop_classes=["Red_Fox", "cat"])
    assert kept.class_names == ("cat", "red fox") and kept.labels == (0, 0, 1, 1)
    assert rest.class_names == ("dog", "wolf") and rest.labels == (0, 0, 1, 1)
    assert sorted([*kept.names, *rest.names]) == sorted(whole.names)


def test_numbers_without_names_are_classes_by_their_numbers(animals):
    images = listed(animals, **SOURCES["list"], keep_classes=["3", "0"])
    assert images.labels == (0, 0, 3, 3) and images.class_names is None


def test_counts_are_those_of_the_kept_classes_and_a_draw_comes_after(animals):
    images = listed(animals, folder="animals", keep_classes=["cat", "dog"], count=4, classes=2, per_class=1)
    assert images.labels == (0, 1)
    with pytest.raises(ConfigError, match="holds 4 images, and the set has 8"):
        listed(animals, folder="animals", keep_classes=["cat", "dog"], count=8)


def test_one_list_gives_known_and_unknown_classes_of_one_folder(animals):
    (animals / "known.txt").write_text("# those that we know\ncat\nred_fox\n")
    block = {
        "id": {"images": {"folder": "animals", "keep_classes": "known.txt"}},
        "ood": {"others": {"folder": "animals", "drop_classes": "known.txt"}},
    }
    found = benchmark(animals, block, splits={"val": 0.0, "test": 0.5})
    assert found.class_names == ("cat", "red fox") and len(found.parts["ood/others"].rows) == 4


def test_overlapping_selections_are_refused(animals):
    block = {
        "id": {"images": {"folder": "animals", "keep_classes": ["cat", "dog"]}},
        "ood": {"others": {"folder": "animals", "keep_classes": ["dog", "wolf"]}},
    }
    with pytest.raises(ConfigError, match=r"2 of 4 images of data\.ood\.others are images of data\.id"):
        benchmark(animals, block)
    block["ood"]["others"]["keep_classes"] = ["cat", "dog"]
    with pytest.raises(ConfigError, match="name the same images"):
        benchmark(animals, block)


# Lists of classes


def config(root, **ood):
    content = {"root": str(root), "id": "animals", "ood": {"others": ood}}
    backbone = {"library": "timm", "model": "test_vit"}
    return validate({"name": "x", "data": content, "backbone": backbone, "method": {"zero_shot": {}}})


@pytest.mark.parametrize(
    "value, message",
    [
        (
            "knwon.txt",
            r"data\.ood\.others\.keep_classes: there is no file .*knwon\.txt, and no published list of that name",
        ),
        ("ssb_cub_esay", r"Did you mean ssb_cub_easy"),
        ([], r"the list names no class"),
        (["cat", "Cat"], r"names the class 'Cat' twice"),
        (["cat", "cat"], r"names the class 'cat' twice"),
    ],
)
def test_a_wrong_list_is_told_before_anything_heavy_is_imported(value, message, animals):
    with pytest.raises(ConfigError, match=message):
        check_folders(config(animals, folder="animals2", keep_classes=value))


def test_files_may_have_comments_and_empty_lines(animals):
    (animals / "some.txt").write_text("# source: nowhere\n\nred_fox\n  cat  \n")
    assert classes_of(animals / "some.txt", animals, "x") == ("red fox", "cat")


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"keep_classes": ["a"], "drop_classes": ["b"]}, "either keep_classes or drop_classes"),
        ({"keep_classes": 3}, "takes a list of names"),
        ({"index": "x.txt", "labels": "y.txt"}, "labels and index each say what the classes are"),
        ({"split": "test"}, "split goes with catalog, torchvision, parquet or index"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(spec, message):
    with pytest.raises((UserError, ValueError), match=message):
        ImageSet(folder="x", **spec)


def test_a_selection_of_the_catalogue_is_not_selected_from_again():
    assert layouts(ImageSet(catalog="CUB", split="test", keep_classes=["Bobolink"]))[0].count is None
    with pytest.raises(ConfigError, match="CUB ssb_test is a selection of classes"):
        layouts(ImageSet(catalog="CUB", split="ssb_test", keep_classes=["Bobolink"]))


# What is not as it was published


def test_classes_that_were_renamed_on_disk_are_counted_and_named(animals, capsys):
    (animals / "animals" / "wolf").rename(animals / "animals" / "wolves")
    message = (
        r"of keep_classes, 1 of 2 classes is not there \(wolv\), and another is \(wolves\), perhaps renamed on disk"
    )
    with pytest.raises(ConfigError, match=message):
        listed(animals, folder="animals", keep_classes=["cat", "wolv"])
    assert listed(animals, partial=True, folder="animals", keep_classes=["cat", "wolv"]).class_names == ("cat",)
    assert "cannot be compared with published numbers (data.allow_partial)" in capsys.readouterr().out


def test_a_known_class_under_another_name_never_counts_as_unknown(animals):
    with pytest.raises(ConfigError, match="renamed on disk"):
        listed(animals, partial=True, folder="animals", drop_classes=["cat", "red foxes"])
    assert len(listed(animals, partial=True, folder="animals", drop_classes=["cat", "zebra"])) == 6


def test_nothing_left_and_no_classes_at_all_are_errors(animals):
    with pytest.raises(ConfigError, match="leaves no class of the 4"):
        listed(animals, folder="animals", drop_classes=["cat", "dog", "red fox", "wolf"])
    with pytest.raises(ConfigError, match="keep_classes needs classes"):
        listed(animals, folder="animals/cat", keep_classes=["cat"])


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"folder": "animals"}, r"its classes have names \(cat, …\)"),
        (SOURCES["list"], r"names 2 classes \(0 … 1\), and there is a label 3"),
    ],
)
def test_names_for_numbers_must_fit(spec, message, animals):
    with pytest.raises(ConfigError, match=message):
        listed(animals, **spec, label_names=["cat", "dog"])


def test_names_for_numbers_of_a_set_without_labels_are_refused_and_those_of_an_ood_set_are_used(animals):
    names = ["cat", "dog", "red fox", "wolf"]
    (animals / "paths.txt").write_text("animals/cat/cat_0.png\nanimals/dog/dog_0.png\n")
    with pytest.raises(ConfigError, match=r"label_names names label numbers, and it has no labels\. Leave the key out"):
        listed(animals, labelled=False, list="paths.txt", label_names=names)
    with pytest.raises(ConfigError, match=r"its classes have names \(cat, …\)"):
        listed(animals, labelled=False, folder="animals", label_names=names)
    assert listed(animals, labelled=False, **SOURCES["list"], label_names=names).class_names == tuple(names)


def test_another_version_of_a_list_is_told_with_both_numbers(animals, capsys):
    with pytest.raises(
        ConfigError, match=r"lists 8 images, and the published list has 9: it is another version of the list"
    ):
        listed(animals, **SOURCES["list"], count=9)
    assert len(listed(animals, partial=True, **SOURCES["list"], count=9)) == 8
    assert "lists 8 images, and the published list has 9" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="lists 8 images, and the published list has 7"):
        listed(animals, partial=True, **SOURCES["list"], count=7)


def test_images_that_a_list_names_and_are_gone_are_counted(animals, capsys):
    (animals / "animals" / "dog" / "dog_1.png").unlink()
    with pytest.raises(ConfigError, match=r"line 4: lists dog/dog_1\.png, .*; of 8 images, 1 \(12 %\) is missing"):
        listed(animals, **SOURCES["list"], count=8)
    assert len(listed(animals, partial=True, **SOURCES["list"], count=8)) == 7
    assert "of 8 images, 1 (12 %) is missing" in capsys.readouterr().out


def test_the_bound_on_an_auroc_holds_and_is_reached():
    rng = np.random.default_rng(0)
    known, ood = rng.normal(1, 1, 400), rng.normal(0, 1, 1000)
    auroc = lambda ood: (known[:, None] > ood[None]).mean()  # noqa: E731
    ood[:10] = known.max() + 1  # the worst case: each of the missing is ranked wrongly
    off = abs(auroc(ood) - auroc(ood[10:])) * 100
    told = float(re.search(r"at most ([\d.]+) points", of_count(990, 1000))[1])
    assert 0 < off <= told == 1


def test_a_covariate_shifted_class_that_is_not_trained_on_is_named_with_the_nearest(animals):
    shutil.copytree(animals / "animals", animals / "shifted")
    (animals / "shifted" / "wolf").rename(animals / "shifted" / "wolfs")
    block = {"id": "animals", "csid": {"shifted": "shifted"}}
    with pytest.raises(ConfigError, match=r"class 'wolfs' is not among the training classes\. .*wolf.*1 of 4 classes"):
        benchmark(animals, block)


# Lists of paths alone, indices, nested folders


def test_a_list_of_paths_alone_has_no_labels_and_does_not_mix(animals):
    (animals / "paths.txt").write_text("cat/cat_0.png\ndog/dog_1.png\n")
    images = listed(animals, list="paths.txt", images_root="animals")
    assert images.labels is None and images.names == ("cat/cat_0.png", "dog/dog_1.png")
    for lines in ("cat/cat_0.png\ndog/dog_1.png 1\n", "dog/dog_1.png 1\ncat/cat_0.png\n"):
        (animals / "paths.txt").write_text(lines)
        with pytest.raises(ConfigError, match=r"line 2: expected"):
            listed(animals, list="paths.txt", images_root="animals")


CUB = {"folder": "CUB_200_2011/images", "index": "CUB_200_2011/train_test_split.txt"}
BIRDS = {"folder": "waterbird_complete95_forest2water2", "index": "waterbird_complete95_forest2water2/metadata.csv"}
FOOD = {"folder": "food-101/images", "index": "food-101/meta/test.txt"}


@pytest.fixture
def indexed(tmp_path):
    replicas.cub(tmp_path, {"known": ["Bobolink", "Groove_billed_Ani"]})
    replicas.waterbirds(tmp_path)
    return replicas.food(tmp_path, {"known": ["apple pie", "sushi"]})


def test_an_index_gives_the_images_of_a_split_and_their_classes(indexed):
    images = listed(indexed, **CUB, split="test")
    assert images.class_names == ("Bobolink", "Groove billed Ani") and images.labels == (0, 0, 1, 1)
    assert [name.split("/")[0] for name in images.names] == ["001.Bobolink"] * 2 + ["002.Groove_billed_Ani"] * 2
    assert not set(images.names) & set(listed(indexed, **CUB, split="train").names)
    assert listed(indexed, **BIRDS, split="val").class_names == ("landbird", "waterbird")
    assert listed(indexed, **FOOD).class_names == ("apple pie", "sushi")


@pytest.mark.parametrize(
    "spec, file, line, text, message",
    [
        (
            CUB | {"split": "test"},
            "CUB_200_2011/train_test_split.txt",
            3,
            "99 0",
            r'line 3: expected "image 0" or "image 1"',
        ),
        (
            CUB | {"split": "test"},
            "CUB_200_2011/images.txt",
            2,
            "2 x.jpg",
            r'images\.txt, line 2: expected "1 001\.Class/image\.jpg"',
        ),
        (CUB, None, 0, "", "split takes test, train, and none is named"),
        (CUB | {"split": "val"}, None, 0, "", "split takes test, train, and not 'val'"),
        (FOOD | {"split": "test"}, None, 0, "", "lists a single split: leave the key split out"),
        (FOOD, "food-101/meta/test.txt", 1, "pie", r'line 1: expected "class/image" or "image class"'),
        (FOOD, "food-101/meta/test.txt", 2, "apple_pie/3", "line 2: lists apple_pie/3 a second time"),
        (
            FOOD,
            "food-101/meta/test.txt",
            2,
            "apple_pie/77",
            r"line 2: there is no apple_pie/77 in .*\. 1 \(25 %\) is missing",
        ),
        (BIRDS | {"split": "test"}, f"{BIRDS['index']}", 1, "a,b,c", "expected columns img_filename, y and split"),
        (
            BIRDS | {"split": "test"},
            f"{BIRDS['index']}",
            14,
            "1,x.jpg,2,2,0,y",
            "line 14: expected an image with y = 0 or 1",
        ),
        (
            BIRDS | {"split": "test"},
            f"{BIRDS['index']}",
            14,
            f"1,{'x' * 200_000},0,2,0",
            r"metadata\.csv is no table of images \(field larger",
        ),
        (
            CUB | {"split": "test"},
            "CUB_200_2011/images.txt",
            2,
            "1 001.Bobolink/x.jpg",
            r"images\.txt, line 2: lists image 1 a second time",
        ),
        (
            CUB | {"split": "test"},
            "CUB_200_2011/train_test_split.txt",
            2,
            "1 0",
            r"split\.txt, line 2: lists image 1 a second time",
        ),
        (
            CUB | {"split": "test"},
            "CUB_200_2011/train_test_split.txt",
            2,
            "",
            r"does not say which split image 2 of images\.txt belongs to \(1 of",
        ),
    ],
)
def test_a_wrong_index_is_named(spec, file, line, text, message, indexed):
    if file is not None:
        lines = (indexed / file).read_text().splitlines()
        lines[line - 1] = text
        (indexed / file).write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match=message):
        listed(indexed, **spec)


def test_an_index_takes_the_image_that_it_names_and_no_other_of_the_same_stem(tmp_path):
    for suffix in ("jpg", "png"):
        put(tmp_path / "photos" / "cat" / f"1.{suffix}")
    index = tmp_path / "index.txt"
    index.write_text("cat/1.jpg\n")
    assert listed(tmp_path, folder="photos", index="index.txt").names == ("cat/1.jpg",)
    index.write_text("cat/1\n")
    with pytest.raises(ConfigError, match=r"line 1: cat/1 may be cat/1\.jpg or cat/1\.png"):
        listed(tmp_path, folder="photos", index="index.txt", partial=True)


def test_an_index_that_is_not_there_is_named_before_anything_is_listed(indexed):
    with pytest.raises(ConfigError, match=r"there is no index .*none\.txt\.$"):
        check_folders(indexed_by(indexed, FOOD | {"index": "food-101/meta/none.txt"}))


def indexed_by(root, spec):
    content = {"root": str(root), "id": {"images": spec}, "ood": {}}
    return validate(
        {
            "name": "x",
            "data": content,
            "backbone": {"library": "timm", "model": "test_vit"},
            "method": {"zero_shot": {}},
        }
    )


def test_nested_folders_name_the_class_that_an_image_lies_in(tmp_path):
    for light in ("l1", "l5"):
        for name in ("red_fox", "cat"):
            put(tmp_path / "es" / light / "param_1" / name / "0.jpg")
    images = listed(tmp_path, folder="es", nested=True)
    assert images.class_names == ("cat", "red fox") and images.labels == (0, 1, 0, 1)
    put(tmp_path / "es" / "loose.jpg")
    with pytest.raises(ConfigError, match=r"loose\.jpg lies in no class folder"):
        listed(tmp_path, folder="es", nested=True)
    (tmp_path / "es" / "loose.jpg").unlink()
    put(tmp_path / "es" / "l1" / "stray.jpg")
    stray = r"es/l1/stray\.jpg lies beside class folders, as .*es/l1/param_1/\w+ \(key nested\)\. Move it into one"
    with pytest.raises(ConfigError, match=stray):
        listed(tmp_path, folder="es", nested=True)


def test_a_comment_may_be_indented(animals):
    (animals / "known.txt").write_text("\ufeffcat\r\n  # those that follow\r\n\tred_fox \r\n", encoding="utf-8")
    assert listed(animals, folder="animals", keep_classes="known.txt").class_names == ("cat", "red fox")


def test_the_way_out_of_a_wrong_list_of_classes_leads_out(animals):
    with pytest.raises(ValueError, match=r"stand in quotes, as \['1', 'no'\]"):
        ImageSet(folder="animals", keep_classes=[0, 1])
    with pytest.raises(ConfigError, match=r"another is \(wolf\), perhaps .*call them in drop_classes as") as told:
        listed(animals, folder="animals", drop_classes=["cat", "wolff"], partial=True)
    assert "allow_partial" not in str(told.value)
