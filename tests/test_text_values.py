"""What is typed or written for a key is text until the key's type says more, on the command line and in YAML files."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import train
from clip_ood.config.data_schema import Data
from clip_ood.config.detecting import trainer_of
from clip_ood.config.loading import CONFIGS, dump, load_config, override, read, validate
from clip_ood.config.yaml_text import as_yaml, parse
from clip_ood.errors import ConfigError
from clip_ood.experiments.attack.plan import load_attack
from clip_ood.experiments.study.plan import load_study
from clip_ood.runs.run_folder import choose_folder

PROJECT = CONFIGS.parent
BASE = {
    "name": "x",
    "data": {"id": "photos"},
    "backbone": {"library": "timm", "model": "test_vit"},
    "method": {"zero_shot": {}},
}
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


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A working directory in which the demo's encoders exist, and a finished run of the demo."""
    for encoder in ("demo_encoder", "demo_encoder_lite1", "demo_encoder_lite2", "demo_encoder_cls"):
        (tmp_path / "data" / encoder).mkdir(parents=True)
        (tmp_path / "data" / encoder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 384}}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    return tmp_path


def given(*arguments, base=BASE):
    return validate(override(base, list(arguments)))


def written(text, *arguments):
    """The config of a YAML file with these lines, on top of what every config needs."""
    needed = {"backbone": "{library: timm, model: test_vit}", "data": "{id: photos}", "method": "{zero_shot: {}}"}
    lines = [f"{key}: {value}" for key, value in needed.items() if not re.search(f"^{key}:", text, re.MULTILINE)]
    Path("run.yaml").write_text("\n".join([*lines, text]), encoding="utf-8")
    return load_config("run.yaml", list(arguments))


def at(config, path):
    for key in path.split("."):
        config = config[key] if isinstance(config, dict) else getattr(config, key)
    return config


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
    if text == "null" and key in ("data.id.images", "data.ood.near.folder", "data.id.class_names", "backbone.label"):
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
    config = written(
        f"name: {text}\ndata:\n  root: {text}\n  id: {text}\n  ood: {{{text}: {text}, two: {{folder: x, group: g{text}}}}}"
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


def test_an_empty_name_of_a_place_is_an_error():
    for text in ("data.root: ''", "data.ood: {a: ''}"):
        with pytest.raises(ConfigError, match=r"is empty; the folder itself is \."):
            written(text)


def test_overwriting_a_run_with_an_odd_name_leaves_the_run_it_begins_with(project):
    for name in ("keep", "keep #2"):
        (project / "runs" / name).mkdir(parents=True)
        (project / "runs" / name / "config.yaml").write_text("{}")
    config = given("--name=keep #2")
    assert choose_folder(config.runs_root, config.name, overwrite=True) == Path("runs/keep #2")
    assert (project / "runs" / "keep" / "config.yaml").is_file() and not list((project / "runs" / "keep #2").iterdir())


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


# Keys, blocks


def test_text_with_braces_is_keys_where_it_is_a_mapping():
    config = given("--data.id={train: a b, test: 2023_07}", "--data.ood.near={list: near.txt, images_root: 010}")
    assert (config.data.id.train.folder, config.data.id.test.folder) == (Path("a b"), Path("2023_07"))
    assert (config.data.ood["near"].list, config.data.ood["near"].images_root) == (Path("near.txt"), Path("010"))


def test_a_yaml_file_is_a_block_where_keys_are_meant_and_text_elsewhere(project):
    (project / "set.yaml").write_text("folder: 2023_07\ngroup: 010\n")
    (project / "folder.yaml").mkdir()
    config = given("--data.ood.near=set.yaml", "--data.ood.far=folder.yaml", "--data.id.class_names=set.yaml")
    assert (config.data.ood["near"].folder, config.data.ood["near"].group) == (Path("2023_07"), "010")
    assert config.data.ood["far"].folder == Path("folder.yaml") and config.data.id.class_names == Path("set.yaml")
    config = written("name: set.yaml\ndata: {id: photos, ood: {far: folder.yaml}}\ndata.ood.near: set.yaml")
    assert config.name == "set.yaml" and config.data.ood["far"].folder == Path("folder.yaml")
    assert config.data.ood["near"].group == "010"


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


@pytest.mark.parametrize(
    "text", ["8", "010", "1_000", "1e-3", "1.5e-3", "yes", "~", "2024-01-05", "12:30", "a b", "0o7"]
)
def test_plain_scalars_without_a_schema_are_what_pyyaml_makes_of_them(text):
    assert as_yaml(parse(f"a: [{text}, '{text}']")) == yaml.safe_load(f"a: [{text}, '{text}']")


# Keys that stand twice


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: 1\ndata.ood: {}\nseed: 2", "the key 'seed' stands twice, in lines 4 and 6"),
        ("method:\n  plp:\n    lr: 1\n    epochs: 2\n    lr: 1", "the key 'lr' stands twice, in lines 5 and 7"),
        ("data.ood: {a: x, b: y, a: z}", "the key 'a' stands twice, in line 4, columns 12 and 24"),
        ("data.ood: {1: x, '1': y}", "the key '1' stands twice"),
        ("data.splits: {val: 0.1}\ndata: {id: photos}", "data would replace data.splits, which stands before it"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_both_lines(text, message):
    with pytest.raises(ConfigError, match=rf"^run\.yaml: {message}"):
        written(text)


def test_a_key_that_stands_twice_in_braces_or_is_replaced_is_named():
    with pytest.raises(ConfigError, match=r"--data.ood: the key 'a' stands twice, in line 1, columns 2 and 8"):
        given("--data.ood={a: x, a: y}")
    with pytest.raises(
        ConfigError, match=r"--data would replace --data.root, which stands before it; put --data first"
    ):
        given("--data.root=here", "--data={id: photos}")
    Path("study.yaml").write_text("config: demo.yaml\nshows: table\nlines: {a: {detector: knn}}\nshows: curve\n")
    with pytest.raises(ConfigError, match=r"^study\.yaml: the key 'shows' stands twice, in lines 2 and 4"):
        load_study("study.yaml")


def test_one_anchor_may_serve_many_mappings_and_each_may_differ():
    found = parse("a: &a {x: 1, y: 2}\nb: {c: &c {<<: *a, x: 3}}\nd: {<<: *c, y: 4}\n")
    assert found == {"a": {"x": "1", "y": "2"}, "b": {"c": {"x": "3", "y": "2"}}, "d": {"x": "3", "y": "4"}}


@pytest.mark.parametrize("text", ["? [a]\n: b", "seeds: {[a]: b}", "? {a: b}\n: c"])
def test_a_key_that_is_no_text_is_named(text):
    with pytest.raises(ConfigError, match=r"^run\.yaml is no valid YAML: a key must be text, line 4"):
        written(text)


# Studies and attacks


@pytest.fixture
def anywhere(monkeypatch):
    """Image sets need not be there."""
    monkeypatch.setattr("clip_ood.experiments.study.plan.check_folders", lambda config: None)
    monkeypatch.setattr("clip_ood.experiments.attack.plan.check_folders", lambda config: None)


STUDY = """
config: base.yaml
shows: table
changes: {name: 010, data.root: 2023_07, data.id: {images: 2024-01-05, class_names: [yes, no]}, trainer.devices: 010}
axes:
  rate: {method.*.lr: [1e-3, 0.5]}
  names:
    yes: {data.ood: {010: 12:30}}
    no: {data.negative_words: null, evaluation.bank_per_class: ~}
lines:
  1.10: {detector: knn, changes: {method: {linear_probe: {weight_decay: 1e-2}}}}
  MSP: {detector: {name: msp, as: 010}, only: {rate: 1e-3}}
"""


@pytest.fixture
def study(anywhere):
    Path("base.yaml").write_text(yaml.safe_dump(BASE | {"method": {"linear_probe": {}}}))
    Path("study.yaml").write_text(STUDY)
    return "study.yaml"


def test_a_studys_changes_follow_the_experiments_schema(study):
    plan = load_study(study, ["--data.prompts=a {} # 2", "--method.*.epochs=010", "--changes.data.splits.val=1e-1"])
    assert {point.line: point.detector for point in plan.points} == {"1.10": "knn", "MSP": "010"}
    assert {(point.labels["rate"], point.labels["names"]) for point in plan.points} == {
        (rate, name) for rate in ("1e-3", "0.5") for name in ("yes", "no")
    }
    runs = plan.runs
    assert set(runs) == {
        "1e-3--yes--1.10",
        "1e-3--no--1.10",
        "0.5--yes--1.10",
        "0.5--no--1.10",
        "1e-3--yes--msp",
        "1e-3--no--msp",
    }
    first = runs["1e-3--yes--1.10"]
    assert (first.data.root, first.data.id.images.folder) == (Path("2023_07"), Path("2024-01-05"))
    assert (first.data.id.class_names, first.data.prompts) == (["yes", "no"], ["a {} # 2"])
    assert first.data.ood["010"].folder == Path("12:30") and first.trainer["devices"] == 8
    probe = first.method.linear_probe
    assert (probe.lr, probe.weight_decay, probe.epochs, first.data.splits.val) == (0.001, 0.01, 10, 0.1)


def test_two_lines_of_a_study_never_share_a_folder_by_accident(study):
    Path(study).write_text(
        "config: base.yaml\nshows: table\nlines:\n  наш: {detector: knn, changes: {seed: 1}}\n  ваш: {detector: knn, changes: {seed: 2}}\n"
    )
    with pytest.raises(ConfigError, match=r"lines\.ваш: the folder of its run would be .* as that of another one"):
        load_study(study)


ATTACK = """
config: base.yaml
changes: {data.id: 2024-01-05, data.ood: {010: 12:30}, backbone.label: 1.10, trainer: {devices: 010}}
ood: 010
steps: 010
lr: 1e-3
curve: {smoothness: 5}
transfer: {1: other.yaml}
"""


def test_an_attacks_changes_follow_the_experiments_schema(anywhere):
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    Path("other.yaml").write_text("library: timm\nmodel: resnet18\nlabel: 010\n")
    Path("attack.yaml").write_text(ATTACK)
    plan = load_attack("attack.yaml", ["--name=keep #2", "--data.root=2023_07", "--transfer.two=other.yaml"])
    assert (plan.attack.name, plan.attack.ood, plan.attack.steps, plan.attack.lr) == ("keep #2", "010", 10, 0.001)
    assert plan.attack.curve.smoothness == [5.0] and plan.attack.transfer == {"1": "other.yaml", "two": "other.yaml"}
    config = plan.config
    assert (config.data.root, config.data.id.images.folder) == (Path("2023_07"), Path("2024-01-05"))
    assert (config.backbone.label, config.trainer, config.data.ood["010"].folder) == (
        "1.10",
        {"devices": 8},
        Path("12:30"),
    )
    Path("again.yaml").write_text(plan.dump())
    again = load_attack("again.yaml")
    assert again.config == config and again.dump() == plan.dump()


# The forms of the README and the docs


def commands():
    """script and arguments of every command with keys that README, docs, CI and the headers of configs show."""
    pages = "\n".join(page.read_text() for page in [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))])
    blocks = re.findall(r"^```(\S*)\n(.*?)^```$", pages, re.MULTILINE | re.DOTALL)
    readme = "\n".join(text for language, text in blocks if not language)
    ci = (PROJECT / ".ci" / "run").read_text()
    headers = "\n".join(path.read_text() for path in sorted((PROJECT / "configs").rglob("*.yaml")))
    scripts = "\n".join(import_module(name).__doc__ for name in ("train", "eval", "study", "attack"))
    text = re.sub(r"\\\n", " ", "\n".join([readme, ci, headers, scripts]))
    return dict.fromkeys(re.findall(r"^.*\b(train|eval|study|attack)\.py (--(?:config|run) .*)$", text, re.MULTILINE))


@pytest.mark.parametrize("script, line", commands(), ids=lambda each: each[:60])
def test_every_command_that_is_shown_is_understood(script, line, anywhere, capsys):
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/config.yaml").write_text(dump(load_config("demo.yaml")))
    import_module(script).main([*shlex.split(line, comments=True), "--print_config"])
    assert capsys.readouterr().out


def test_there_are_commands_to_understand():
    assert len(commands()) > 40


def test_a_benchmark_is_read_as_the_block_of_its_section(project):
    (project / "mine").mkdir()
    (project / "mine" / "ids.yaml").write_text("images: 2023_07\nclass_names: [010]\n")
    (project / "mine" / "set.yaml").write_text("id: ids.yaml\nood.near: 0123\n")
    assert Data.model_validate(read(project / "mine" / "set.yaml", Data)).id.images.folder == Path("2023_07")
    config = given("--data=mine/set.yaml")
    assert config.data.id.class_names == ["010"] and config.data.ood["near"].folder == Path("0123")
