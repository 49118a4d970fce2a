"""Names of runs, studies, sets and detectors that mean something else on another system: right, or refused before anything is done."""

from __future__ import annotations

import shutil
from collections import Counter

import pyarrow.parquet as pq
import pytest
import tiny_clip
import yaml

import attack
import eval as evaluation
import study
import train
from clip_ood import load
from clip_ood.config.loading import validate
from clip_ood.detectors.names import read_specs
from clip_ood.errors import ConfigError
from clip_ood.naming import fault, folder_fault, one_text, twins
from clip_ood.runs.run_folder import choose_folder

pytestmark = pytest.mark.slow

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
SAME = [
    ("Demo", "demo"),
    (COMPOSED, DECOMPOSED),
    ("STRASSE", "straße"),
    ("a b", "a  b"),
    ("a\u200bb", "ab"),
    ("Ω", "ω"),
    ("a\u00a0b", "a b"),
]
NO_FOLDER = {
    "": "is empty or blank",
    "  ": "is empty or blank",
    "\u200b": "is empty or blank",
    "a/b": "holds a slash",
    "../up": "holds a slash",
    "/tmp/run": "holds a slash",
    "a\\b": "holds a slash",
    ".": "stands for another folder",
    "..": "stands for another folder",
    "...": "stands for another folder",
    "run.": "ends with a dot",
    "run ": "begins or ends with a blank",
    " run": "begins or ends with a blank",
    "two\nlines": "holds the end of a line",
    "tab\there": "control character",
    "line\u2028break": "holds the end of a line",
    "\x00": "control character",
    "con": "is a device on Windows",
    "NUL": "is a device on Windows",
    "aux.v2": "is a device on Windows",
    "com1": "is a device on Windows",
    "Lpt9.txt": "is a device on Windows",
    "con .x": "is a device on Windows",
    "x" * 201: "is 201 bytes long",
    "写" * 80: "is 240 bytes long",
    "\udcff": "no UTF-8",
}
FOLDERS = [
    "keep #2",
    "2026-11-26",
    "v1.5",
    "console",
    "nullable",
    "com10",
    "con-fusion",
    ".hidden",
    "-x",
    "写真",
    "x" * 200,
    "~",
]


# Names


@pytest.mark.parametrize("one, other", SAME)
def test_names_that_are_one_text_are_twins(one, other):
    assert one_text(one) == one_text(other) and twins(["x", one, other]) == (one, other)


@pytest.mark.parametrize("one, other", [("cat", "cats"), ("a-b", "a b"), ("é", "e"), ("m²", "m2"), ("a.b", "a,b")])
def test_other_names_are_not(one, other):
    assert twins([one, other]) is None


@pytest.mark.parametrize("name, reason", NO_FOLDER.items())
def test_a_name_that_is_no_folder_everywhere_says_why(name, reason):
    assert reason in folder_fault(name)


@pytest.mark.parametrize("name", FOLDERS)
def test_all_others_are(name):
    assert folder_fault(name) is None and fault(name) is None


# Runs


@pytest.mark.parametrize("name", [name for name in NO_FOLDER if "\x00" not in name and "\udcff" not in name and name])
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_run_takes_such_a_name(name, overwrite, root):
    path = tiny_clip.config(root, "refused", {"zero_shot": {}}, runs_root=f"{root}/none")
    with pytest.raises(ConfigError, match=r"^name: (.* must be |is empty)"):
        train.main(["--config", path, f"--name={name}", *["--overwrite"] * overwrite])
    assert not (root / "none").exists()


@pytest.mark.parametrize("was, now", SAME)
@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_run_is_not_begun_beside_its_twin(was, now, how, tmp_path):
    folder = choose_folder(tmp_path, was)
    (folder / "config.yaml").write_text("{}")
    (folder / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"differs from it in case or Unicode's form alone.*Choose another name"):
        choose_folder(tmp_path, now, **how)
    assert [path.name for path in tmp_path.iterdir()] == [was] and (folder / "results.json").is_file()


def test_the_number_of_a_second_run_has_no_twin_either(tmp_path):
    (tmp_path / "Demo-2").mkdir()
    (choose_folder(tmp_path, "demo") / "config.yaml").write_text("{}")
    (tmp_path / "demo" / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="Demo-2 is there, and 'demo-2' differs"):
        choose_folder(tmp_path, "demo")


def test_a_run_of_the_longest_name_is_made_replaced_and_evaluated(root):
    name = "写" * 60 + "x" * 20  # 200 bytes
    path = tiny_clip.config(root, "long", {"zero_shot": {}})
    for more in ([], ["--overwrite"]):
        evaluation.main(["--config", path, f"--name={name}", *more])
    assert [each.name for each in (root / "runs").glob("*x*")] == [name] and not list((root / "runs").glob(".*"))
    evaluation.main(["--run", str(root / "runs" / name), "--name=short"])
    assert (root / "runs" / "short" / "results.json").is_file()


# Studies and attacks


def _study(root, name, labels, lines=None):
    base = tiny_clip.config(root, "base", {"zero_shot": {}})
    content = {
        "config": base,
        "shows": "table",
        "studies_root": f"{root}/studies",
        "axes": {"seed": {label: {"seed": number} for number, label in enumerate(labels)}},
        "lines": lines or {"knn": {"detector": "knn"}},
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "name, reason", [("nul", "device"), ("a.", "ends with a dot"), ("a/b", "slash"), ("x" * 201, "201")]
)
def test_no_study_takes_such_a_name(name, reason, root):
    with pytest.raises(ConfigError, match=f"^name: .*{reason}"):
        study.main(["--config", _study(root, "study", ["a"]), f"--name={name}"])
    assert not (root / "studies" / name).exists()


def test_a_study_is_not_begun_beside_its_twin(root):
    (root / "studies" / "Few").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"studies/Few is there, and 'few' differs"):
        study.main(["--config", _study(root, "few", ["a"])])


@pytest.mark.parametrize("labels", [["Yes", "yes"], [COMPOSED, DECOMPOSED, COMPOSED.upper()], ["a b", "a  b"]])
def test_labels_of_a_study_that_share_a_folder_are_refused(labels, root):
    with pytest.raises(ConfigError, match=r"the folder of its run would be .* as that of another one"):
        study.main(["--config", _study(root, "labels", labels)])


@pytest.mark.parametrize("label, reason", [("con", None), ("наш", None), ("long " * 50, r"\d+ bytes long")])
def test_labels_of_a_study_name_folders_that_can_be(label, reason, root):
    path = _study(root, "folders", [label])
    if reason is None:
        study.main(["--config", path, "--print_config"])
    else:
        with pytest.raises(ConfigError, match=reason):
            study.main(["--config", path])


def test_a_study_with_a_dot_in_its_name_writes_files_of_that_name(root):
    path = _study(root, "v1.5", ["a"])
    study.main(["--config", path, "--name=v1.5"])
    kept = {each.name for each in (root / "studies" / "v1.5").iterdir() if each.is_file()}
    assert kept == {"v1.5.md", "v1.5.csv", "v1.5.png"}
    study.main(["--config", path, "--name=v1.5", "--overwrite", "--print_config"])


@pytest.mark.parametrize(
    "transfer, message",
    [
        ({"../up": "backbones/demo.yaml"}, "transfer: '../up' must be a plain folder name"),
        ({"con.": "backbones/demo.yaml"}, "transfer: 'con.' must be a plain folder name"),
        ({"B16": "x.yaml", "b16": "y.yaml"}, "transfer: 'B16' and 'b16' are one name to some systems"),
    ],
)
def test_encoders_of_an_attack_are_names_of_folders(transfer, message, root):
    content = {"config": tiny_clip.config(root, "moved", {"zero_shot": {}}), "ood": "near", "transfer": transfer}
    (root / "odd_attack.yaml").write_text(yaml.safe_dump(content | {"runs_root": f"{root}/attacks"}))
    with pytest.raises(ConfigError, match=message):
        attack.main(["--config", str(root / "odd_attack.yaml")])
    assert not (root / "attacks").exists()


# Sets and detectors

SHOWN = ["con", "nul.", "写真 🐟", "a|b", "<i x>", "../up", "x" * 200, 'quo"te', "a, b", "#1", "=1+1", "[b]"]


def sets(**data):
    backbone = {"library": "timm", "model": "test_vit"}
    content = {"name": "x", "backbone": backbone, "method": {"zero_shot": {}}, "data": {"id": "id", **data}}
    return validate(content).data


@pytest.mark.parametrize("role", ["ood", "csid"])
@pytest.mark.parametrize("name", [name for name in NO_FOLDER if fault(name)])
def test_no_set_takes_a_name_that_cannot_be_shown(role, name):
    with pytest.raises(ConfigError, match=r"^data(\.ood|\.csid)?: the name .*: call it otherwise"):
        sets(**{role: {name: "x", "other": "y"}})


@pytest.mark.parametrize("one, other", SAME)
@pytest.mark.parametrize("roles", [("ood", "ood"), ("csid", "csid"), ("ood", "csid")])
def test_two_sets_that_no_reader_could_tell_apart_are_refused(one, other, roles):
    data = {"ood": {}, "csid": {}}
    for role, name in zip(roles, (one, other), strict=True):
        data[role][name] = f"folder-{len(data[role])}-{role}"
    with pytest.raises(ConfigError, match=r"differ in case, blanks or Unicode's form alone.*rename one"):
        sets(**data)


@pytest.mark.parametrize("name", [name for name in NO_FOLDER if fault(name)])
def test_no_detector_takes_a_name_that_cannot_be_shown(name):
    with pytest.raises(ValueError, match=r"detectors: knn: 'as' is .*, expected the name of a column"):
        read_specs([{"name": "knn", "as": name}])


@pytest.mark.parametrize("one, other", SAME)
def test_two_detectors_that_no_reader_could_tell_apart_are_refused(one, other):
    with pytest.raises(ValueError, match="differ in case, blanks or Unicode's form alone; tell them apart with"):
        read_specs([{"name": "knn", "as": one}, {"name": "mcm", "as": other}])
    with pytest.raises(ValueError, match=r"scores.parquet has a column 'Path' of its own"):
        read_specs([{"name": "knn", "as": "Path"}])


COLUMNS = [name for name in SHOWN if "/" not in name]


@pytest.mark.parametrize("names, columns", [(SHOWN, COLUMNS[-1:]), (SHOWN[-1:], COLUMNS)], ids=["sets", "detectors"])
def test_all_other_names_of_sets_and_detectors_are_shown_as_they_are(names, columns, root, capsys):
    for number in range(len(names)):
        shutil.copytree(root / "data" / "far", root / "data" / f"copy-{number}", dirs_exist_ok=True)
    detectors = [{"name": "knn", "as": name} for name in columns]
    ood = {name: f"copy-{number}" for number, name in enumerate(names)}
    path = tiny_clip.config(
        root,
        "shown",
        {"zero_shot": {}},
        data={"root": f"{root}/data", "id": "id", "ood": ood, "batch_size": 8},
        detectors=detectors,
        evaluation={"figures": True, "report": True},
    )
    evaluation.main(["--config", path, "--overwrite"])
    assert "[b]" in capsys.readouterr().out
    scores = pq.read_table(root / "runs" / "shown" / "scores.parquet").to_pylist()
    assert Counter(row["set"] for row in scores if row["role"] == "ood") == dict.fromkeys(names, 7)
    assert set(columns) <= scores[0].keys() and load(root / "runs" / "shown", accept=0.5).column in columns
    rows = tiny_clip.results(root / "runs" / "shown")["rows"]
    wanted = {(name, column) for name in names for column in columns}
    assert wanted <= {(row["ood"], row["detector"]) for row in rows}
    page = (root / "runs" / "shown" / "report.html").read_text(encoding="utf-8")
    assert "<i x>" not in page and "&lt;i x&gt;" in page


def test_a_comparison_of_long_names_is_written_and_its_table_holds(root):
    path = tiny_clip.config(root, "c", {"zero_shot": {}}, detectors=[{"name": "knn", "as": "a|b"}])
    names = [letter * 120 for letter in "pq"]
    for name in names:
        evaluation.main(["--config", path, f"--name={name}"])
    for order in (names, names[::-1]):
        evaluation.main(["--compare", *(str(root / "runs" / name) for name in order)])
    written = sorted((root / "runs").glob("compare-*.md"))
    assert len(written) == 2 and all(each.with_suffix(".csv").is_file() for each in written)
    for each in written:
        header, rule, *rows = [line for line in each.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        assert rows and all(row.startswith(r"| a\|b |") for row in rows)
        assert {line.replace(r"\|", "").count("|") for line in (header, rule, *rows)} == {len(header.split("|")) - 1}
