"""Lists, mappings and blocks on the command line and in YAML files, and values that no schema knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from config_values import BASE, at, given, written

import train
from clip_ood.config.data_schema import Data
from clip_ood.config.detect_options import trainer_of
from clip_ood.config.loading import dump, in_yaml, read, validate
from clip_ood.config.yaml_text import as_yaml, parse
from clip_ood.errors import ConfigError

pytestmark = pytest.mark.usefixtures("demo_encoders")


# Lists


@pytest.mark.parametrize(
    "argument, value",
    [
        ("seeds=[42,43]", [42, 43]),
        ("seeds=[42, 43]", [42, 43]),
        ("seeds=42", [42]),
        ("seeds=[]", []),
        ("detectors=knn", ["knn"]),
        ("detectors=[knn, mcm]", ["knn", "mcm"]),
        ("detectors={name: knn, k: 10}", [{"name": "knn", "k": 10}]),
        ("detectors=[{name: knn, as: 010}]", [{"name": "knn", "as": "010"}]),
        ("detectors=my_package.scores.Mine", ["my_package.scores.Mine"]),
        ("data.prompts=a photo of a {}.", ["a photo of a {}."]),
        ("data.prompts=[photo] of {} # 2", ["[photo] of {} # 2"]),
        ("data.prompts=['a {}', \"b {}\"]", ["a {}", "b {}"]),
        ("data.id.class_names=[cat]", ["cat"]),
        ("data.id.class_names=[cat] names", Path("[cat] names")),
        ("data.id.class_names=[1] names [2]", Path("[1] names [2]")),
    ],
)
def test_brackets_are_a_list_and_all_else_is_one_item(argument, value):
    assert at(given(f"--{argument}"), argument.partition("=")[0]) == value


def test_one_item_stands_for_a_list_in_yaml_too():
    config = written("method: {plp: {sweep: {lr: 1e-2}}}\nseeds: 3\ndetectors: knn\ndata.prompts: openai_7")
    assert (config.seeds, config.detectors, config.method.plp.sweep.lr) == ([3], ["knn"], [0.01])
    assert len(config.data.prompts) == 7 and given("--data.prompts=openai_7").data.prompts == config.data.prompts


@pytest.mark.parametrize(
    "arguments, seeds",
    [
        (["--seeds=[42,43]"], [42, 43]),
        (["--seeds", "42", "43"], [42, 43]),
        (["--seeds", "[42, 43]"], [42, 43]),
        (["--seeds=7"], [7]),
        (["--seeds", "-1", "2"], [-1, 2]),
        (["--seeds=[]"], []),
    ],
)
def test_seeds_can_be_set_as_every_key(arguments, seeds, capsys):
    Path("run.yaml").write_text(yaml.safe_dump(BASE | {"seeds": [1, 2]}))
    train.main(["--config", "run.yaml", *arguments, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["seeds"] == seeds


def test_later_keys_win_however_they_are_written(capsys):
    Path("run.yaml").write_text(yaml.safe_dump(BASE))
    for arguments in (["--seed=1", "--seed", "2"], ["--seed", "1", "--seed=2"]):
        train.main(["--config", "run.yaml", *arguments, "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["seed"] == 2


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--data.prompts=[a photo of a {}.]", r"--data.prompts: .* is no valid YAML \(.*\); put text .* in quotes"),
        ("--detectors=[knn, {name: knn k: 5}]", "--detectors: .* is no valid YAML"),
        ("--detectors=[[knn]]", r"detectors.0: a detector is a name, or keys as \{name: knn, k: 10\}"),
        ("--data.id.class_names=[[cat]]", r"data.id.class_names: takes a list of names, as \[cat, dog\], a text file"),
        ("--data.id.class_names=[a: b]", "data.id.class_names: takes a list of names"),
        ("--seeds=x", "seeds.0: .*valid integer.*'x'"),
        ("--data.ood=x", "data.ood takes keys, as --data.ood='{KEY: VALUE}', or a YAML file; got 'x'"),
        ("--trainer=x", "trainer takes keys, as --trainer='{KEY: VALUE}', or a YAML file; got 'x'"),
        ("--data.ood={a: b} # c", "--data.ood: .* is no valid YAML .*behind the braces"),
        ("--data.ood={a: b #c}", "--data.ood: .* is no valid YAML"),
        ("--data.ood.v1.10=x", r"no config key data.ood.v1.10. .*name with a dot .* --data.ood='\{NAME: …\}'"),
    ],
)
def test_a_value_of_the_wrong_form_is_answered_in_words(argument, message):
    with pytest.raises(ConfigError, match=message) as error:
        given(argument)
    assert len(str(error.value).splitlines()) == 1 and "function-" not in str(error.value)


# Keys and blocks


def test_text_with_braces_is_keys_where_it_is_a_mapping():
    config = given("--data.id={train: a b, test: 2023_07}", "--data.ood.near={list: near.txt, images_root: 010}")
    assert (config.data.id.train.folder, config.data.id.test.folder) == (Path("a b"), Path("2023_07"))
    assert (config.data.ood["near"].list, config.data.ood["near"].images_root) == (Path("near.txt"), Path("010"))


def test_a_yaml_file_is_a_block_where_keys_are_meant_and_text_elsewhere(tmp_path):
    (tmp_path / "set.yaml").write_text("folder: 2023_07\ngroup: 010\n")
    (tmp_path / "folder.yaml").mkdir()
    config = given("--data.ood.near=set.yaml", "--data.ood.far=folder.yaml", "--data.id.class_names=set.yaml")
    assert (config.data.ood["near"].folder, config.data.ood["near"].group) == (Path("2023_07"), "010")
    assert config.data.ood["far"].folder == Path("folder.yaml") and config.data.id.class_names == Path("set.yaml")
    config = written("name: set.yaml\ndata: {id: photos, ood: {far: folder.yaml}}\ndata.ood.near: set.yaml")
    assert config.name == "set.yaml" and config.data.ood["far"].folder == Path("folder.yaml")
    assert config.data.ood["near"].group == "010"


def test_a_benchmark_is_read_as_the_block_of_its_section(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "ids.yaml").write_text("images: 2023_07\nclass_names: [010]\n")
    (tmp_path / "mine" / "set.yaml").write_text("id: ids.yaml\nood.near: 0123\n")
    assert Data.model_validate(read(tmp_path / "mine" / "set.yaml", Data)).id.images.folder == Path("2023_07")
    config = given("--data=mine/set.yaml")
    assert config.data.id.class_names == ["010"] and config.data.ood["near"].folder == Path("0123")


@pytest.mark.parametrize("settings", ["", " null", " ~", " {}"])
@pytest.mark.parametrize("method", ["zero_shot", "linear_probe", "plp", "finetune"])
def test_an_empty_method_takes_its_defaults(method, settings):
    config = written(f"method:\n  {method}:{settings}\n")
    assert config.method == given(f"--method={{{method}: {{}}}}").method
    assert config.method == given(f"--method={{{method}:{settings}}}").method
    assert validate(parse(dump(config))) == config


# What no schema knows


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("devices", "8", 8),
        ("devices", "[0, 1]", [0, 1]),
        ("devices", "'8'", "8"),
        ("devices", "-1", -1),
        ("deterministic", "null", None),
        ("benchmark", "yes", True),
    ],
)
def test_the_trainers_values_are_yaml(key, text, value):
    assert given(f"--trainer.{key}={text}").trainer[key] == value
    for config in (written(f"trainer: {{{key}: {text}}}"), written(f"trainer: {{}}\ntrainer.{key}: {text}")):
        assert config.trainer[key] == value and type(config.trainer[key]) is type(value)
    assert trainer_of([f"--trainer.{key}={text}"])[key] == value


def test_a_detectors_parameters_are_yaml_and_its_names_text():
    listed = "[{name: vim, dim: 010, as: 010}, {name: knn, kth: yes, k: [1, '5']}]"
    expected = [{"name": "vim", "dim": 8, "as": "010"}, {"name": "knn", "kth": True, "k": [1, "5"]}]
    assert given("--data.ood_val=v", f"--detectors={listed}").detectors == expected
    config = written(f"data.ood_val: v\ndetectors: {listed}")
    assert config.detectors == expected and validate(parse(dump(config))) == config


def test_a_value_that_yaml_cannot_read_is_named():
    with pytest.raises(ConfigError, match=r"trainer: '2024-13-45' is no valid YAML value .*put text in quotes"):
        given("--trainer.profiler=2024-13-45")
    with pytest.raises(ConfigError, match=r"--trainer.profiler: .*is no valid YAML value"):
        given('--trainer.profiler="open')


@pytest.mark.parametrize("text", ["8", "010", "1_000", "1.5e-3", "yes", "~", "2024-01-05", "12:30", "a b", "0o7"])
def test_plain_scalars_without_a_schema_are_what_pyyaml_makes_of_them(text):
    assert as_yaml(parse(f"a: [{text}, '{text}']")) == yaml.safe_load(f"a: [{text}, '{text}']")


@pytest.mark.parametrize("text", ["1e-3", "1E3", "-2e+1", ".5e1", "1.e2"])
def test_a_number_with_a_power_of_ten_is_one_without_a_schema_too(text):
    assert as_yaml(parse(f"a: [{text}, '{text}']")) == {"a": [float(text), text]}
    assert as_yaml(parse(in_yaml({"a": [float(text), text]}))) == {"a": [float(text), text]}
