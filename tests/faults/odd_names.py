"""Names that hold what a file name may hold: every command reads and writes them exactly, and sends none of it to the terminal."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from clip_ood.files.text_files import not_utf8
from clip_ood.files.written_names import TEXT, csv_rows, paths_of
from clip_ood.runs.files import read_scores
from faults import lab
from faults.process import run
from faults.trial import Trial

ODD = {
    "not UTF-8": "caf\udce9",
    "no character of UTF-8": "\udcff\udcfe\udc80",
    "a byte that begins a sequence of escape": "\udc9b2J",
    "an end of a line": "new\nline",
    "a tab": "tab\there",
    "a carriage return": "car\rriage",
    "next line": "next\x85line",
    "a separator of lines": "line\u2028line",
    "an escape sequence": "\x1b[2J\x1b]0;title\x07",
    "one of C1": "\x9b2Jc1",
    "a mark of direction": "\u202egpj.exe",
    "what cannot be seen": "a\u200bb\ufeff",
    "quotes": 'it\'s a "quote"',
    "a leading quote": "'=1+1",
    "a formula": "=1+1",
    "a formula behind a blank": " =1+1",
    "a formula behind a tab": "\t@sum",
    "a plus": "+1",
    "a dash": "-rf",
    "an at": "@x",
    "a formula in full width": "\uff1d1",
    "blanks around it": " blank ",
    "a comma and a semicolon": "a,b;c",
    "what Rich takes for markup": "[bold]:cat:[red]\\",
    "what HTML takes for markup": "<img src=x onerror=alert(1)>&amp;",
    "what Python takes for a field": "%s{0}{path}",
    "what a byte looks like": "\\xe9",
    "what shells expand": "$(x)`y`*?~#",
    "many bytes": "x" * 250,
    "many characters of two bytes": "é" * 125,
}
ELSEWHERE = [  # where a trial takes a name alone
    "not UTF-8",
    "a byte that begins a sequence of escape",
    "an end of a line",
    "a carriage return",
    "a separator of lines",
    "an escape sequence",
    "one of C1",
    "a mark of direction",
    "what cannot be seen",
    "quotes",
    "a formula",
    "a formula behind a tab",
    "a dash",
    "blanks around it",
    "what Rich takes for markup",
    "what shells expand",
    "many bytes",
]
STEER = [bytes([code]) for code in range(32) if code not in (9, 10)] + [b"\x7f"]
STEER += [chr(code).encode() for code in (*range(0x80, 0xA0), 0x202E, 0x2066, 0x2028)]


def trials() -> list[Trial]:
    whole: dict[str, Callable[[Path], None]] = {
        "images of odd names are trained on, scored and shown": _trained,
        "images of odd names are fine-tuned on": _fine_tuned,
        "images of odd names are scored as they are": _evaluated,
        "images of odd names are attacked, and their targets left out": _attacked,
        "images of odd names in a study whose lines are formulas": _studied,
        "a run compared, whose images have odd names": _compared,
        "damaged images of odd names are listed": _damaged,
        "predictions in a file that goes on": _judged_again,
        "odd names on standard input and in a list": _listed,
        "odd names in an environment of ASCII": _in_ascii,
    }
    whole |= {
        f"predictions on odd names as {suffix}": partial(_judged, suffix) for suffix in ("csv", "jsonl", "parquet")
    }
    samples = {"images of odd names are trained on, scored and shown", "predictions on odd names as csv"}
    found = [Trial(name, each, sample=name in samples) for name, each in whole.items()]
    for kind, (place, put) in itertools.product(ELSEWHERE, PLACES.items()):
        found.append(Trial(f"{place}: {kind}", partial(put, ODD[kind])))
    return found


# What every command is held to


def _survives(command: list[str], folder: Path, status: Iterable[int] = (0,), **environment: str) -> str:
    """What a command said, which ended well or (status 2) in one plain message. Raises: AssertionError."""
    log = folder / "log"
    ended = run(command, log, **environment)
    said = log.read_bytes()
    assert not ended.traceback, ended.said
    assert ended.status in status, ended.said
    sent = [byte for byte in STEER if byte in said]
    assert not sent, f"sent to the terminal: {sent} in {said!r}"
    if ended.status:
        assert ended.said.lstrip().startswith(("error: ", "usage: ")), ended.said
    return ended.said


def _fill(folder: Path, names: Iterable[str] = tuple(ODD.values())) -> list[str]:
    """Images of these names in a folder; their names."""
    drawn = sorted(lab.shared().glob("data/id/*/*.png"))
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{name}.png" for name in names]
    for name, image in zip(names, itertools.cycle(drawn), strict=False):
        shutil.copy(image, folder / name)
    return names


def _data(folder: Path) -> dict[str, object]:
    """Images of odd names in a class and among OOD images."""
    root = folder / "data"
    shutil.copytree(lab.shared() / "data", root)
    _fill(root / "id" / "cat")
    _fill(root / "odd")
    return {"root": str(root), "id": "id", "ood": {"odd": "odd", "near": "near"}, "splits": lab.SPLITS, "batch_size": 8}


def _scored(run_folder: Path) -> None:
    table = read_scores(run_folder / "scores.parquet", ["set", "path"])
    paths = [path for path, place in zip(paths_of(table), table["set"].to_pylist(), strict=True) if place == "odd"]
    assert sorted(paths) == sorted(f"{name}.png" for name in ODD.values())


# Whole commands on many names


def _trained(folder: Path) -> None:
    shown = {"figures": True, "report": True}
    config = lab.config(folder, "train", lab.PROBE, data=_data(folder), evaluation=shown)
    _survives(["train.py", "--config", config], folder)
    _scored(folder / "runs" / "train")
    page = (folder / "runs" / "train" / "report.html").read_bytes()
    assert not [byte for byte in STEER if byte in page] and page.decode()


def _fine_tuned(folder: Path) -> None:
    _survives(["train.py", "--config", lab.config(folder, "train", lab.FINETUNE, data=_data(folder))], folder)
    _scored(folder / "runs" / "train")


def _evaluated(folder: Path) -> None:
    _survives(["eval.py", "--config", lab.config(folder, "eval", {"zero_shot": {}}, data=_data(folder))], folder)
    _scored(folder / "runs" / "eval")


def _attacked(folder: Path) -> None:
    base = lab.config(folder, "base", {"zero_shot": {}}, data=_data(folder), detectors=["knn"])
    keys = {"name": "attack", "config": base, "ood": "odd", "pairs": len(ODD), "steps": 2, "lr": 0.02, "batch_size": 8}
    keys |= {"smoothness": 10.0, "defences": {"gaussian_noise": 1}, "runs_root": f"{folder}/runs"}
    (folder / "attack.yaml").write_text(yaml.safe_dump(keys))
    _survives(["attack.py", "--config", f"{folder}/attack.yaml"], folder)
    with (folder / "runs" / "attack" / "pairs.csv").open(**TEXT) as file:
        attacked = [row["ood_image"] for row in csv_rows(file)]
    assert sorted(attacked) == sorted(f"{name}.png" for name in ODD.values())


def _studied(folder: Path) -> None:
    base = lab.config(folder, "base", {"zero_shot": {}}, data=_data(folder), detectors=["knn"])
    lines = {"=1+1": {"detector": "knn"}}
    axes = {"@axis": {"-1": {"seed": "1"}}}
    keys = {"name": "study", "config": base, "studies_root": f"{folder}/studies", "shows": "table"}
    (folder / "study.yaml").write_text(yaml.safe_dump(keys | {"axes": axes, "lines": lines}))
    _survives(["study.py", "--config", f"{folder}/study.yaml"], folder)
    with (folder / "studies" / "study" / "study.csv").open(**TEXT) as file:
        assert {row["line"] for row in csv_rows(file)} == {"=1+1"}
    assert b"'=1+1" in (folder / "studies" / "study" / "study.csv").read_bytes()


def _compared(folder: Path) -> None:
    _evaluated(folder)
    runs = folder / "runs"
    for name in ("=1 \x1b[2J", "caf\udce9"):
        shutil.copytree(runs / "eval", runs / name)
    named = [str(runs / "=1 \x1b[2J"), str(runs / "caf\udce9")]
    _survives(["eval.py", "--compare", *named, "--html", f"{folder}/page.html"], folder)
    assert not [byte for byte in STEER if byte in (folder / "page.html").read_bytes()]


def _damaged(folder: Path) -> None:
    data = _data(folder) | {"max_unreadable": 0.9}
    names = [*ODD.values()][:20]
    for name in names:
        (folder / "data" / "odd" / f"{name}.png").write_bytes(b"no image")
    _survives(["eval.py", "--config", lab.config(folder, "eval", {"zero_shot": {}}, data=data)], folder)
    with (folder / "runs" / "eval" / "unreadable.csv").open(**TEXT) as file:
        assert sorted(row["path"] for row in csv_rows(file)) == sorted(f"{name}.png" for name in names)
    out = folder / "predictions.csv"
    command = ["detect.py", "--run", f"{lab.shared()}/runs/finished", f"{folder}/data/odd", "--out", str(out)]
    _survives([*command, "--max-unreadable", "0.9"], folder)
    with (folder / "predictions.csv.unreadable.csv").open(**TEXT) as file:
        paths = [row["path"] for row in csv_rows(file)]
    assert sorted(paths) == sorted(f"{folder}/data/odd/{name}.png" for name in names)


def _paths(out: Path) -> list[str]:
    if out.suffix == ".csv":
        with out.open(**TEXT) as file:
            return [row["path"] for row in csv_rows(file)]
    if out.suffix == ".jsonl":
        return [json.loads(line)["path"] for line in out.read_text().splitlines()]
    return paths_of(pq.read_table(out))


def _judge(folder: Path, *arguments: str) -> list[str]:
    return ["detect.py", "--run", f"{lab.shared()}/runs/finished", *arguments]


def _judged(suffix: str, folder: Path) -> None:
    names = _fill(folder / "photos")
    out = folder / f"predictions.{suffix}"
    aside = ["--accept", "0.5", "--copy-ood", f"{folder}/odd"]
    _survives(_judge(folder, f"{folder}/photos", "--out", str(out), *aside), folder)
    assert _paths(out) == sorted(f"{folder}/photos/{name}" for name in names)
    assert set(os.listdir(folder / "odd")) <= set(names) and os.listdir(folder / "odd")
    linked = ["--accept", "0.5", "--copy-ood", f"{folder}/links", "--link", "--overwrite"]
    _survives(_judge(folder, f"{folder}/photos", "--out", str(out), *linked), folder)
    assert set(os.listdir(folder / "links")) == set(os.listdir(folder / "odd"))


def _judged_again(folder: Path) -> None:
    names = _fill(folder / "photos", [*ODD.values()][:16])
    out, parts = folder / "predictions.parquet", folder / "kept"
    command = _judge(folder, f"{folder}/photos", "--out", str(out))
    _survives(command, folder)
    shutil.rmtree(parts, ignore_errors=True)
    again = out.read_bytes()
    out.unlink()
    _survives(command, folder)
    assert _paths(out) == sorted(f"{folder}/photos/{name}" for name in names) and out.read_bytes() == again


def _listed(folder: Path) -> None:
    names = _fill(folder / "photos")
    paths = [f"{folder}/photos/{name}" for name in names]
    listed, out = folder / "list.txt", folder / "predictions.jsonl"
    listed.write_bytes(b"".join(os.fsencode(path) + b"\0" for path in paths))
    _survives(_judge(folder, str(listed), "--out", str(out)), folder)
    assert _paths(out) == paths
    plain = [path for path in paths if not {"\n", "\r"} & set(path)]
    listed.write_bytes(b"".join(os.fsencode(path) + b"\n" for path in plain))
    _survives(_judge(folder, str(listed), "--out", str(out), "--overwrite"), folder)
    assert _paths(out) == plain
    by_name = [path for path in paths if not path.startswith("-")]
    _survives(_judge(folder, "--out", str(out), "--overwrite", "--", *by_name), folder)
    assert _paths(out) == by_name


def _in_ascii(folder: Path) -> None:
    names = _fill(folder / "photos")
    out = folder / "predictions.csv"
    command = _judge(folder, f"{folder}/photos", "--out", str(out))
    _survives(command, folder, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert sorted(_paths(out)) == sorted(f"{folder}/photos/{name}" for name in names)


# One name in one place


def _eval_of(folder: Path, **keys: object) -> list[str]:
    return ["eval.py", "--config", lab.config(folder, "eval", {"zero_shot": {}}, **keys)]


def _class(name: str, folder: Path) -> None:
    data = {"root": str(folder / "data"), "id": "id", "ood": {"near": "near"}, "splits": lab.SPLITS, "batch_size": 8}
    shutil.copytree(lab.shared() / "data", folder / "data")
    (folder / "data" / "id" / "cat").rename(folder / "data" / "id" / name)
    _survives(_eval_of(folder, data=data, detectors=["knn", "mcm"]), folder, (0, 2))


def _ood_folder(name: str, folder: Path) -> None:
    shutil.copytree(lab.shared() / "data", folder / "data")
    (folder / "data" / "near").rename(folder / "data" / name)
    data = [f"--data.root={folder}/data", f"--data.ood.near={name}", "--detectors=[knn]"]
    _survives([*_eval_of(folder), *data], folder, (0, 2))


def _set_name(name: str, folder: Path) -> None:
    data = {"root": f"{lab.shared()}/data", "id": "id", "ood": {name: "near"}, "splits": lab.SPLITS, "batch_size": 8}
    _survives(_eval_of(folder, data=data, detectors=["knn"]), folder, (0, 2))


def _runs(name: str, folder: Path) -> None:
    (folder / name).mkdir()
    _survives([*_eval_of(folder), f"--runs_root={folder / name}", "--detectors=[knn]"], folder, (0, 2))


def _features(name: str, folder: Path) -> None:
    (folder / name).mkdir()
    _survives([*_eval_of(folder), f"--features_root={folder / name}", "--detectors=[knn]"], folder, (0, 2))


def _encoder(name: str, folder: Path) -> None:
    shutil.copytree(lab.shared() / "clip", folder / name)
    _survives([*_eval_of(folder), f"--backbone.model=local-dir:{folder / name}", "--detectors=[knn]"], folder, (0, 2))


def _finished(name: str, folder: Path) -> None:
    """A run that was renamed: it judges, is scored again and goes beside another one."""
    shutil.copytree(lab.shared() / "runs" / "finished", folder / name)
    _fill(folder / "photos", ["a"])
    _survives(
        ["detect.py", "--run", f"{folder / name}", f"{folder}/photos", "--out", f"{folder}/v.csv"],
        folder,
        (2 if not_utf8(name) else 0,),
    )
    _survives(
        ["eval.py", "--run", f"{folder / name}", f"--runs_root={folder}/runs", "--detectors=[knn]"], folder, (0, 2)
    )
    _survives(["eval.py", "--compare", f"{folder / name}", f"{lab.shared()}/runs/finished"], folder)


def _run_name(name: str, folder: Path) -> None:
    _survives([*_eval_of(folder, detectors=["knn"]), f"--name={name}"], folder, (0, 2))


def _unknown(name: str, folder: Path) -> None:
    """What is nowhere: an argument, a key, a value, a file, a run; each refused."""
    _survives(["eval.py", name], folder, (2,))
    _survives(["eval.py", "--config", name], folder, (2,))
    _survives([*_eval_of(folder), f"--{name}=1"], folder, (2,))
    _survives([*_eval_of(folder), f"--data.id={folder}/{name}"], folder, (2,))
    _survives([*_eval_of(folder), f"--detectors=[{name}]"], folder, (2,))
    _survives(["eval.py", "--compare", f"{folder}/{name}", "x"], folder, (2,))
    _survives(["detect.py", "--run", f"{folder}/{name}", "x.png"], folder, (2,))
    _survives(["detect.py", "--run", "x", f"--{name}"], folder, (2,))


PLACES = {
    "a class folder": _class,
    "an OOD set's folder": _ood_folder,
    "an OOD set's name": _set_name,
    "the folder of all runs": _runs,
    "the folder of features": _features,
    "the folder of the encoder": _encoder,
    "the folder of a finished run": _finished,
    "a run's name": _run_name,
    "what is not there": _unknown,
}
