"""What is typed or written for a key is text until the key's type says more, on the command line and in YAML files."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import pytest
from config_values import BASE, at, given, written

from clip_ood.config.loading import dump, load_config, override
from clip_ood.errors import ConfigError
from clip_ood.runs.run_folder import choose_folder

pytestmark = pytest.mark.usefixtures("demo_encoders")

LINEAR = "method: {linear_probe: {}}\n"
ODD = [
    "photos #2",
    "#2",
    "2023_07",
    "2024-01-05",
    "0123",
    "0x1F",
    "1e3",
    "1.10",
    "12:30",
    "yes",
    "No",
    "off",
    "[2023] trip",
    "{2023} trip",
    "{a: b} #2",
    "{open",
    "trip: Rome",
    "@home",
    "*best",
    "&best",
    "!wow",
    "%x",
    "- a",
    "? a",
    "|",
    ">",
    "<<",
    "=",
    "a=b",
    "'quoted'",
    '"quoted"',
    " led and followed ",
    "two\nlines",
    "tab\there",
    "müll 写真",
    "-dash",
    "folder.yaml",
    ".inf",
]


# Text, paths and names


@pytest.mark.parametrize("text", [*ODD, "null", "~/photos"])
@pytest.mark.parametrize(
    "key, path",
    [
        ("data.id", "data.id.images.folder"),
        ("data.id.images", "data.id.images.folder"),
        ("data.ood.near", "data.ood.near.folder"),
        ("data.ood.near.folder", "data.ood.near.folder"),
        ("data.root", "data.root"),
        ("runs_root", "runs_root"),
        ("data.id.class_names", "data.id.class_names"),
        ("name", "name"),
        ("backbone.label", "backbone.label"),
    ],
)
def test_text_is_as_typed_and_survives_its_file(key, path, text):
    arguments = [f"--{key}={text}"]
    if key.endswith("near.folder"):
        arguments = ["--data.ood.near=x", *arguments]
    if text == "null" and key not in ("data.id", "data.ood.near", "name"):
        arguments[-1] = f"--{key}=./null"  # null is none there
    config = given(*arguments)
    expected = arguments[-1].partition("=")[2]
    found = at(config, path)
    if isinstance(found, Path):
        expected = Path(expected.replace("~", "/home/me"))
    assert found == expected
    Path("again.yaml").write_text(dump(config), encoding="utf-8")
    assert load_config("again.yaml") == config


@pytest.mark.parametrize("text", ["2023_07", "2024-01-05", "0123", "12:30", "yes", "1.10", "null", "1e3", "0x1F"])
def test_a_scalar_in_yaml_is_text_where_text_is_meant(text):
    root = "./null" if text == "null" else text  # null is none there
    config = written(
        f"name: {text}\ndata:\n  root: {root}\n  id: {text}\n  ood: {{{text}: {text}, two: {{folder: x, group: g{text}}}}}"
    )
    assert (config.name, config.data.root, config.data.id.images.folder) == (text, Path(text), Path(text))
    assert list(config.data.ood) == [text, "two"] and config.data.ood["two"].group == f"g{text}"
    assert config.data.ood[text].folder == Path(text)


def test_braces_on_the_command_line_hold_text_too():
    config = given("--data.ood={2023: 2023_07, yes: 1.10, 010: {folder: 0123, per_class: 010}}")
    folders = {name: images.folder.name for name, images in config.data.ood.items()}
    assert folders == {"2023": "2023_07", "yes": "1.10", "010": "0123"}
    assert config.data.ood["010"].per_class == 10


def test_class_names_are_names():
    names = ["yes", "no", "null", "~", "1.10", "010", "2023-01-05", "cat # 2", "quoted"]
    listed = "[yes, no, null, ~, 1.10, 010, 2023-01-05, 'cat # 2', \"quoted\"]"
    assert given(f"--data.id.class_names={listed}").data.id.class_names == names
    assert written(f"data: {{id: {{images: photos, class_names: {listed}}}}}").data.id.class_names == names


@pytest.mark.parametrize(
    "text, value",
    [("null", None), ("~", None), ("", None), ("'null'", "null"), ('"~"', "~"), ("./null", "./null")],
)
def test_none_is_a_null_without_quotes_where_none_is_allowed(text, value):
    config = written(f"backbone.label: {text}\ndata.max_negative_words: {text if value is None else 'null'}")
    assert config.backbone.label == value and config.data.max_negative_words is None


def test_null_alone_means_none_on_the_command_line():
    base = BASE | {"backbone": BASE["backbone"] | {"pretrained": "default", "label": "mine"}}
    config = given("--backbone.pretrained=null", "--backbone.label=~", "--detectors=null", base=base)
    assert (config.backbone.pretrained, config.backbone.label, config.detectors) == (None, "~", None)


@pytest.mark.parametrize("key", ["name", "data.id", "data.root", "data", "seeds", "trainer.devices", "backbone.label"])
def test_an_empty_value_is_an_error(key):
    for arguments in ([f"--{key}="], [f"--{key}", ""], [f"--{key}"]):
        with pytest.raises(ConfigError, match=f"--{key} has no value; write --{key}=VALUE"):
            override(BASE, arguments)


@pytest.mark.parametrize(
    "text, key",
    [
        ("name:", "name"),
        ("data.root:", "data.root"),
        ("data.ood: {a: }", "data.ood.a"),
        ("seeds:", "seeds"),
    ],
)
def test_nothing_in_yaml_is_no_text(text, key):
    with pytest.raises(ConfigError, match=f"^{key} has no value"):
        written(text)


@pytest.mark.parametrize("key", ["runs_root", "features_root", "data.root"])
def test_null_makes_no_folder_of_that_name(key):
    for wrong in (lambda: written(f"{key}: null\n"), lambda: written(f"{key}: NULL\n"), lambda: given(f"--{key}=null")):
        with pytest.raises(ConfigError, match=f"^{key} has no value"):
            wrong()
    assert reduce(getattr, key.split("."), given(f"--{key}=./null")) == Path("null")


def test_an_empty_name_of_a_place_is_an_error():
    for text in ("data.root: ''", "data.ood: {a: ''}"):
        with pytest.raises(ConfigError, match=r"is empty; the folder itself is \."):
            written(text)


def test_overwriting_a_run_with_an_odd_name_leaves_the_run_it_begins_with(tmp_path):
    for name in ("keep", "keep #2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("{}")
    config = given("--name=keep #2")
    assert choose_folder(config.runs_root, config.name, overwrite=True) == Path("runs/keep #2")
    assert (tmp_path / "runs" / "keep" / "config.yaml").is_file() and not list(
        (tmp_path / "runs" / "keep #2").iterdir()
    )


# Numbers and truth values


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("method.linear_probe.lr", "1e-3", 0.001),
        ("method.linear_probe.lr", "1.0e-3", 0.001),
        ("method.linear_probe.lr", "'0.5'", 0.5),
        ("method.linear_probe.epochs", "010", 10),
        ("method.linear_probe.epochs", "1_000", 1000),
        ("seed", "-3", -3),
        ("evaluation.figures", "no", False),
        ("evaluation.figures", "True", True),
        ("evaluation.figures", "off", False),
    ],
)
def test_a_number_or_truth_value_is_made_where_the_key_is_one(key, text, value):
    assert at(written(f"{LINEAR}{key}: {text}"), key) == value
    base = BASE | {"method": {"linear_probe": {}}}
    assert at(given(f"--{key}={text.strip(chr(39))}", base=base), key) == value


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--seed=0x1F", "seed: .*valid integer.*'0x1F'"),
        ("--seed=12:30", "seed: .*valid integer.*'12:30'"),
        ("--method={linear_probe: {lr: inf}}", "method.linear_probe.lr: .*finite number"),
        ("--evaluation.figures=maybe", "evaluation.figures: .*boolean.*'maybe'"),
        ("--seed=null", "seed: .*valid integer.*'null'"),
    ],
)
def test_what_is_no_number_is_named(argument, message):
    with pytest.raises(ConfigError, match=message):
        given(argument)
