"""Configs: shipped files, blocks, overrides, the way back from `dump`, mistakes named with what was meant, run folders."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from config_values import BASE, given
from pydantic import BaseModel

import train
from clip_ood.backbones.model_lists import models
from clip_ood.config.checks import check_folders
from clip_ood.config.help import explain, section_of
from clip_ood.config.loading import CONFIGS, dump, load_config, override, read, validate
from clip_ood.config.schema import Config
from clip_ood.errors import ConfigError, UserError
from clip_ood.runs.run_folder import choose_folder

HERE = CONFIGS
SHIPPED = sorted(HERE.glob("*.yaml"))


@pytest.fixture(autouse=True)
def demo_encoder(tmp_path_factory, monkeypatch):
    """A working directory in which the demo encoder's folder exists."""
    root = tmp_path_factory.mktemp("project")
    for encoder in ("demo_encoder", "demo_encoder_lite1", "demo_encoder_lite2"):
        (root / "data" / encoder).mkdir(parents=True)
        (root / "data" / encoder / "open_clip_config.json").write_text("{}")
    monkeypatch.chdir(root)
    return root


def by_name(path):
    return path.name


# Shipped files


@pytest.mark.parametrize("path", SHIPPED, ids=by_name)
def test_a_shipped_config_loads_and_comes_back_from_its_dump(path):
    config = load_config(path.name)
    again = validate(yaml.safe_load(dump(config)))
    assert again == config and again.method.name == config.method.name and config.name == path.stem


@pytest.mark.parametrize("path", SHIPPED, ids=by_name)
def test_the_header_says_purpose_command_expectation_and_hardware(path):
    header = re.match(r"(#.*\n)+", path.read_text()).group()
    assert re.match(r"# \S.*\.\n# Command:  python ", header)
    script, named = re.search(r"# Command:  python (train|eval)\.py --config (\S+)", header).groups()
    assert named == path.name and (script == "train" or not load_config(path.name).method.settings.trains)
    assert re.search(r"\n# Expect:   \S", header) and re.search(r"\n# Hardware: \S.* · Time: \S", header)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(HERE.glob("*/*.yaml")) if path.parent.name not in ("studies", "attacks")],
    ids=by_name,
)
def test_a_block_says_what_it_is_and_is_used(path):
    assert re.match(r"# \S.*\.", path.read_text())
    key = {"benchmarks": "data", "backbones": "backbone", "trainer": "trainer"}[path.parent.name]
    config = given(f"--{key}={path.parent.name}/{path.name}")
    assert getattr(config, key) != getattr(validate(BASE), key)


# Overrides and blocks


@pytest.mark.parametrize(
    "arguments, path, value",
    [
        (["--data.batch_size=7"], "data.batch_size", 7),
        (["--data.batch_size", "7"], "data.batch_size", 7),
        (["--seed=1", "--seed=2"], "seed", 2),
        (["--seed", "-3"], "seed", -3),
        (["--data.ood={a: x, b: y/z}"], "data.ood.b.folder", Path("y/z")),
        (["--data.ood.a=x", "--data.ood.b.folder=y", "--data.ood.b.group=far"], "data.ood.b.group", "far"),
        (["--detectors=[knn, {name: knn, k: 5}]"], "detectors", ["knn", {"name": "knn", "k": 5}]),
        (["--data.id.class_names=[a, b]"], "data.id.class_names", ["a", "b"]),
        (["--data.id.class_names=names.txt"], "data.id.class_names", Path("names.txt")),
        (["--data.id.class_names=imagenet"], "data.id.class_names", "imagenet"),
        (["--method={plp: {lr: 1e-4}}"], "method.plp.lr", 1e-4),
        (["--backbone=backbones/vit_h14.yaml", "--backbone.precision=fp32"], "backbone.precision", "fp32"),
        (["--backbone=backbones/vit_h14.yaml"], "backbone.model", "ViT-H-14"),
        (["--trainer=trainer/gpus.yaml", "--trainer.devices=4"], "trainer.devices", 4),
        (["--trainer.devices=[0, 1]"], "trainer.devices", [0, 1]),
        (["--name=2024"], "name", "2024"),
        (["--data.root=~/images"], "data.root", Path.home() / "images"),
        (["--data.ood.a=~/a"], "data.ood.a.folder", Path.home() / "a"),
        (["--evaluation.figures=false"], "evaluation.figures", False),
    ],
)
def test_an_override_sets_one_key(arguments, path, value):
    found = given(*arguments)
    for key in path.split("."):
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value


def test_an_override_leaves_its_neighbours(tmp_path):
    before, after = load_config("demo.yaml"), load_config("demo.yaml", ["--method.plp.epochs=3"])
    changed = after.model_dump()
    changed["method"]["plp"]["epochs"] = before.method.plp.epochs
    assert changed == before.model_dump() != after.model_dump()


@pytest.mark.parametrize(
    "key, meant",
    [
        ("id.class_names=[a, b]", {"id": {"images": {"folder": "photos"}, "class_names": ["a", "b"]}}),
        ("id.images.per_class=3", {"id": {"images": {"folder": "photos", "per_class": 3}}}),
        ("ood.cars.group=far", {"ood": {"cars": {"folder": "cars", "group": "far"}}}),
        ("id.images=others", {"id": {"images": {"folder": "others"}}}),
        ("ood.cars.list=cars.txt", {"ood": {"cars": {"list": "cars.txt"}}}),
    ],
)
def test_a_key_is_added_to_a_bare_path(key, meant):
    base = BASE | {"data": {"id": "photos", "ood": {"cars": "cars"}}}
    assert given(f"--data.{key}", base=base) == validate(base | {"data": base["data"] | meant})


def test_blocks_are_found_beside_the_config_and_dotted_keys_change_them(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "encoder.yaml").write_text("model: ViT-B-32\npretrained: openai\n")
    config = tmp_path / "mine" / "run.yaml"
    config.write_text(
        "data: benchmarks/demo.yaml\ndata.splits: {test: 0.5}\ndata.batch_size: 3\n"
        "backbone: encoder.yaml\nbackbone.precision: bf16\nmethod: {zero_shot: {}}\n"
    )
    found = load_config(str(config))
    assert (found.backbone.model, found.backbone.precision, found.name) == ("ViT-B-32", "bf16", "run")
    assert (found.data.batch_size, found.data.splits.test, found.data.splits.val) == (3, 0.5, 0.2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["seed=3"], "'seed=3' is no option"),
        (["--"], "'--' is no option"),
        (["--seed"], "--seed has no value"),
        (["--seed", "--data.root=x"], "--seed has no value"),
        (["--method={zero_shot:"], "--method: .* is no valid YAML"),
        (
            ["--backbone=backbones/vit_b61.yaml"],
            r"no config 'backbones/vit_b61\.yaml'.* Did you mean backbones/vit_b16",
        ),
    ],
)
def test_what_is_no_override_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        override(BASE, arguments)


# Mistakes


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--sead=1", "no config key sead. Did you mean seed"),
        ("--data.idd=x", "no config key data.idd. Did you mean id"),
        ("--data.ood.near.foldr=x", "no config key data.ood.near.foldr. Did you mean folder"),
        ("--method.zero_shot.zzz=1", "no config key method.zero_shot.zzz"),
        ("--method={plp: {min_confidnce: 1}}", "no config key method.plp.min_confidnce. Did you mean min_confidence"),
        ("--seed=x", "seed: .*integer.*'x'"),
        ("--data.splits.val=1.5", "data.splits.val: .*less than or equal to 1.*1.5"),
        ("--data.splits={val: 0.5, test: 0.5}", "data.splits: val . test = 1 leaves no training images"),
        ("--method=plp", "method takes keys.*'plp'. Known here: zero_shot, linear_probe, .*plp"),
        ("--method={plp: {}, zero_shot: {}}", "method: needs exactly one of .*; got plp, zero_shot"),
        ("--data.id={}", "data.id: needs either images .* or train and test"),
        ("--data.id={train: a}", "data.id: needs both train and test"),
        ("--data.id={images: a, val: b}", "data.id: val comes from data.splits"),
        ("--data.ood.a={folder: x, list: y}", "data.ood.a: needs exactly one of catalog, folder, list, .*; got .*list"),
        ("--data.ood.a={list: y, labels: z}", "data.ood.a: labels goes with folder, not with list: leave out"),
        (
            "--data.ood.a={folder: y, split: val}",
            "data.ood.a: split goes with catalog, torchvision, parquet or index, not with folder",
        ),
        ("--data.ood.a={torchvision: SVHN, split: val}", "train or test, not 'val'"),
        ("--data.ood.a={catalog: NINKO}", "catalogue has no set 'NINKO'. Did you mean NINCO"),
        ("--data.ood.a={catalog: ImageNet-1k}", "no split 'test'; name one .*: train, val, openood_val, openood_test"),
        (
            "--data.ood.bank=x",
            "set names must be distinct, and none of bank, id_test, mean, ood_val, val, .*: rename bank",
        ),
        ("--data={id: a, ood: {x: b}, csid: {x: c}}", "set names must be distinct.*: rename x"),
        ("--data.prompts=['a photo']", "prompts: 'a photo' must hold {} once"),
        ("--data.prompts=[]", "data.prompts: .*at least 1 item"),
        ("--backbone={library: timm}", "config key backbone.model is missing"),
        ("--backbone.precision=fp8", "backbone.precision: .*'fp32', 'bf16' or 'fp16'.*'fp8'"),
        ("--backbone.model=test_vot", "timm has no model 'test_vot'. Did you mean .*test_vit"),
        ("--backbone={model: ViT-B-61}", "open_clip has no model 'ViT-B-61'. Did you mean ViT-B-16"),
        (
            "--backbone={model: ViT-B-16, pretrained: laion2b_s34b}",
            "ViT-B-16 .*'laion2b_s34b'. Did you mean laion2b_s3",
        ),
        ("--backbone={model: 'local-dir:gone'}", "gone holds no open_clip_config.json"),
        ("--detectors=[knnn]", "detectors: unknown name 'knnn'; nearest: knn"),
        ("--detectors=[knn, knn]", "column 'knn' is asked for 2 times"),
        ("--trainer.devcies=2", "Trainer has no key 'devcies' .*Did you mean devices"),
        ("--trainer.max_epochs=2", "trainer.max_epochs is not for configs: set method"),
        ("--name=..", "name: '..' must be the name of a folder below runs_root"),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(argument, message):
    with pytest.raises(UserError, match=message):
        given(argument)


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        given("--sead=1", "--data.rot=x", "--evaluation.resamples=-1")
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and all(any(key in line for line in lines) for key in ("sead", "data.rot", "resamples"))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x89PNG\r\n\x1a\n", "is no valid YAML"),
        (b"data: [", "is no valid YAML"),
        (b"- data\n- method\n", "must hold keys and values, not a list"),
        (b"data: run.yaml\n", "names itself as a block"),
    ],
)
def test_a_file_that_is_no_config_is_named(content, message, tmp_path):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"run\.yaml {message}"):
        read(tmp_path / "run.yaml")


def test_an_unknown_config_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no config 'demo\.yml'.*Did you mean demo\.yaml"):
        load_config("demo.yml")


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            {"folder": "near", "source": "example.org"},
            "Image set near: there is no folder data/near. Where .*example.org",
        ),
        ({"list": "near.txt"}, "Image set near: there is no image list data/near.txt"),
    ],
)
def test_a_missing_place_says_which_set_where_and_how_to_get_it(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "photos").mkdir(parents=True)
    config = validate(BASE | {"data": {"id": "photos", "ood": {"near": spec}}})
    with pytest.raises(ConfigError, match=message):
        check_folders(config)


def test_a_mistake_is_answered_without_torch():
    models("open_clip")  # as an earlier command has asked
    program = """
import sys
import train
from clip_ood.command_line import guarded
for wrong in ("--data.idd=x", "--detectors=[knnn]", "--backbone.model=ViT-bigG14", "--trainer.devcies=1"):
    try:
        guarded(lambda: train.main(["--config", "own_images.yaml", wrong]))
    except SystemExit as end:
        print(end.code)
print(sorted({"torch", "torchvision", "lightning", "open_clip", "timm", "PIL"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=HERE.parent)
    assert run.stdout.split("\n") == ["2", "2", "2", "2", "[]", ""], run.stderr
    assert run.stderr.count("error: ") == 4 and "Traceback" not in run.stderr


# Help


def keys_of(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if inner := section_of(field.annotation):
            keys += keys_of(inner, f"{prefix}{name}" + (".NAME." if name in ("ood", "csid") else "."))
    return keys


def test_help_explains_every_key(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    text = capsys.readouterr().out
    shown = re.findall(r"^  --(\S+)  \(.*\n      (.*)$", text, re.MULTILINE)
    assert end.value.code == 0 and len(explain()) == 2 * len(shown)
    names = {re.sub(r"\.NAME$", "", name) for name, _ in shown}
    assert names == set(keys_of(Config)) and all(len(meaning) > 5 for _, meaning in shown)


# Run folders


def made(root, name, *files):
    (root / name).mkdir(parents=True)
    for file in files:
        (root / name / file).write_text("{}")


STARTED, FINISHED = ("config.yaml",), ("config.yaml", "results.json")


@pytest.mark.parametrize(
    "there, options, expected",
    [
        ({}, {}, "run"),
        ({"run": FINISHED}, {}, "run-2"),
        ({"run": FINISHED, "run-2": FINISHED}, {}, "run-3"),
        ({"run": STARTED}, {"resume": True}, "run"),
        ({"run": FINISHED, "run-2": STARTED}, {"resume": True}, "run-2"),
        ({"run": STARTED}, {"overwrite": True}, "run"),
        ({"run": FINISHED}, {"overwrite": True}, "run"),
        ({"run": ("photo.png",)}, {}, "run"),
    ],
)
def test_the_folder_of_a_run(there, options, expected, tmp_path):
    for name, files in there.items():
        made(tmp_path, name, *files)
    assert choose_folder(tmp_path, "run", **options) == tmp_path / expected
    assert (tmp_path / expected).is_dir()


def test_overwriting_removes_a_run_and_nothing_else(tmp_path):
    made(tmp_path, "run", *FINISHED)
    made(tmp_path, "photos", "photo.png")
    choose_folder(tmp_path, "run", overwrite=True)
    choose_folder(tmp_path, "photos", overwrite=True)
    assert not list((tmp_path / "run").iterdir()) and (tmp_path / "photos" / "photo.png").is_file()


@pytest.mark.parametrize(
    "there, options, message",
    [
        ({"run": STARTED}, {}, "unfinished run. Add --resume"),
        ({}, {"resume": True}, "no unfinished run .*run to resume"),
        ({"run": FINISHED}, {"resume": True}, "no unfinished run .*run to resume"),
    ],
)
def test_what_cannot_be_meant_by_a_run_folder(there, options, message, tmp_path):
    for name, files in there.items():
        made(tmp_path, name, *files)
    with pytest.raises(ConfigError, match=message):
        choose_folder(tmp_path, "run", **options)


@pytest.mark.parametrize("name", ["", "a/b", "/a", "a/"])
def test_a_run_name_is_a_plain_folder_name(name, tmp_path):
    with pytest.raises(ConfigError, match="must be a plain folder name"):
        choose_folder(tmp_path, name)


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_a_follower_takes_the_first_ones_folder_and_removes_nothing(rank, tmp_path, monkeypatch):
    monkeypatch.setenv(rank, "1")
    made(tmp_path, "run", *STARTED)
    assert choose_folder(tmp_path, "run") == choose_folder(tmp_path, "run", overwrite=True) == tmp_path / "run"
    assert (tmp_path / "run" / "config.yaml").is_file()
