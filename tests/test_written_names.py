"""Names of files in what is written and what is shown: exact in files, spelt out on a terminal."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import pty
import subprocess
import sys
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from faults.odd_names import ODD
from rich.table import Table
from rich.text import Text
from tiny_clip import PROJECT

from clip_ood.config.loading import dump, validate
from clip_ood.detect.prediction_files import COLUMNS, CSVFile, JSONLines, Parquet
from clip_ood.detectors.names import ABOUT, read_specs
from clip_ood.files.text_files import names_as_bytes, read_names
from clip_ood.files.written_names import (
    TEXT,
    cells,
    csv_rows,
    json_bytes,
    path_cell,
    path_columns,
    path_of,
    paths_of,
    text_cell,
    text_of,
)
from clip_ood.process.locks import alone
from clip_ood.process.stopping import Ending
from clip_ood.runs.files import read_scores
from clip_ood.runs.going_on import as_typed
from clip_ood.runs.results_files import write_json
from clip_ood.runs.results_table import print_table
from clip_ood.terminal.console import Terminal
from clip_ood.terminal.markdown import markdown_table
from clip_ood.terminal.shown import TURNED, one_line, say, shown

pytestmark = pytest.mark.slow

ESCAPE = "a\x1b[2Jb"
PREDICTION = {
    "is_ood": True,
    "score": -0.5,
    "p_value": 0.1,
    "predicted_class": "-x",
    "confidence": 0.9,
    "detector": "knn",
    "copy_of": None,
}
CELLS = [
    *ODD.values(),
    "x",
    "",
    "'",
    "''",
    "'=1",
    "''=1",
    "./=1",
    "././=1",
    "./a",
    "./",
    "=",
    "-0.5",
    "+",
    "a=b",
    "\ufeff=1",
]


# Files


@pytest.mark.parametrize("text", CELLS)
def test_a_cell_of_csv_is_no_formula_and_comes_back(text):
    for write, read in ((path_cell, path_of), (text_cell, text_of)):
        cell = write(text)
        assert read(cell) == text
        assert not cell.strip("\u200b\ufeff \t\r\n").startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20"))
        assert not cell.startswith(("\t", "\r", "\n"))
        assert cell == text or cell == ("./" if write is path_cell else "'") + text


def test_numbers_stay_numbers():
    assert cells({"path": "-a", "score": -0.5, "group": "", "set": None}, ["set", "group"]) == {
        "path": "./-a",
        "score": -0.5,
        "group": "",
        "set": None,
    }


def test_predictions_hold_exact_paths_in_every_format(tmp_path):
    names = [*ODD.values(), "\x7f"]
    text, lines, table = io.StringIO(newline=""), io.StringIO(), io.BytesIO()
    files = [CSVFile(text), JSONLines(lines), Parquet(table, exact=True)]
    for name in names:
        for file in files:
            file.write({"path": name} | PREDICTION)
    for file in files:
        file.close()
    text.seek(0)
    rows = list(csv_rows(text))
    assert [row["path"] for row in rows] == names
    assert {(row["predicted_class"], row["score"], row["is_ood"]) for row in rows} == {("-x", "-0.5", "true")}
    assert [json.loads(line)["path"] for line in lines.getvalue().splitlines()] == names
    assert lines.getvalue().replace("\n", "").isprintable()
    table.seek(0)
    found = pq.read_table(table)
    assert paths_of(found) == names and found.column_names == [*COLUMNS, "path_bytes"]
    odd = {name: os.fsencode(name) for name in names if "\udc80" <= max(name) <= "\udcff"}
    assert [value for value in found["path_bytes"].to_pylist() if value] == list(odd.values()) != []
    plain = tmp_path / "plain.parquet"
    with plain.open("wb") as out:
        file = Parquet(out)
        file.write({"path": "=1.png"} | PREDICTION)
        file.close()
    assert pq.read_table(plain).column_names == list(COLUMNS) and pq.read_table(plain)["path"][0].as_py() == "=1.png"


def test_two_names_that_look_alike_are_two(tmp_path):
    names = ["caf\udce9", "caf\\xe9"]
    path = tmp_path / os.fsdecode(b"odd\xff.parquet")
    with path.open("wb") as file:
        pq.write_table(pa.table(path_columns(names) | {"set": ["a", "b"]}), file)
    assert (
        paths_of(read_scores(path, ["set", "path"])) == names
        and len(set(pq.read_table(path.open("rb"))["path"].to_pylist())) == 1
    )
    assert list(path_columns(["é"])) == ["path"]


@pytest.mark.parametrize("name", ODD.values())
def test_json_and_yaml_give_a_name_back_and_hold_nothing_that_steers(name, tmp_path):
    write_json(tmp_path / "x.json", {"name": name, "é": name})
    content = (tmp_path / "x.json").read_bytes()
    assert json.loads(content) == {"name": name, "é": name} and "é" in content.decode()
    assert not [code for code in content.decode() if (ord(code) < 32 and code != "\n") or 126 < ord(code) < 160]
    backbone = {"library": "timm", "model": "test_vit"}
    text = dump(validate({"name": "x", "data": {"id": name}, "method": {"zero_shot": {}}, "backbone": backbone}))
    assert yaml.safe_load(text)["data"]["id"]["images"]["folder"] == name
    assert not TURNED & set(text)


def test_a_list_of_names_gives_them_back(tmp_path):
    for names in ([*ODD.values()], [name for name in ODD.values() if not {"\n", "\r"} & set(name)], ["\ufeffa", "b"]):
        (tmp_path / "list.txt").write_bytes(names_as_bytes(names))
        assert list(read_names(tmp_path / "list.txt")) == names


def test_csv_of_another_program_is_read_as_it_is(tmp_path):
    (tmp_path / "x.csv").write_text("path,reason\na.png,'quoted'\n./b.png,-\n")
    with (tmp_path / "x.csv").open(**TEXT) as file:
        assert list(csv_rows(file)) == [
            {"path": "a.png", "reason": "'quoted'"},
            {"path": "./b.png", "reason": "-"},
        ]


# What is shown


@pytest.mark.parametrize("name", ODD.values())
def test_nothing_that_is_shown_steers_a_terminal(name, capsys):
    for text in (shown(name), one_line(name)):
        assert text.encode() and all(each.isprintable() or each in "\n\t\u200b\ufeff" for each in text)
        assert not TURNED & set(text)
    assert one_line(name).count("\n") == 0
    say("is", name)
    assert capsys.readouterr().out == f"is {shown(name)}\n"
    assert one_line("été, שלום, 写真 👩‍👩‍👧") == "été, שלום, 写真 👩‍👩‍👧"


def test_rich_is_given_names_and_sends_its_own_codes_alone():
    stream = io.StringIO()
    console = Terminal(file=stream, force_terminal=True, width=100)
    table = Table(title=ESCAPE)
    table.add_column(ESCAPE)
    table.add_row(f"[bold]{ESCAPE}[/bold]")
    table.add_row(Text(ESCAPE))
    console.print(table)
    console.print(ESCAPE, ":cat:", markup=False)
    sent = stream.getvalue()
    assert "\x1b[2J" not in sent and sent.count("a\\x1b") == 5 and ":cat:" in sent
    assert "\x1b[1m" in sent  # bold is Rich's own


def test_the_table_of_a_run_shows_names(capsys):
    row = {"detector": ESCAPE, "setting": "standard", "ood": ESCAPE, "auroc": 0.8, "fpr95": 0.5, "n_id": 9, "n_ood": 9}
    results = {"run": ESCAPE, "method": "m", "encoder": ESCAPE, "seeds": [1], "sweep": None, "rows": []}
    results |= {"omitted": [{"detector": ESCAPE, "reason": ESCAPE}], "notes": [{"detector": ESCAPE, "note": ESCAPE}]}
    results |= {"accuracy": None, "knn_accuracy": None, "pseudo_labels": None, "bank": {"images": 1, "per_class": None}}
    rows = [row | {"intervals": {}}, row | {"ood": "mean", "intervals": {}}]
    print_table(results | {"rows": rows})
    assert "\x1b[2J" not in (said := capsys.readouterr().out) and said.count("a\\x1b[2Jb") >= 6


def test_a_table_in_markdown_keeps_its_lines():
    assert markdown_table(["a\nb"], [["x\r\x1by"]], names=1).splitlines() == ["| a\\nb |", "|---|", "| x\\r\\x1by |"]


REPORTS = {
    "an argument": "Parser().parse_args([name])",
    "an error": "guarded(lambda: (_ for _ in ()).throw(ConfigError(name)))",
    "a traceback": "guarded(lambda: 1 / {}[name])",
    "a warning": "guarded(lambda: warnings.warn(name))",
    "a log": "guarded(lambda: logging.warning('of %s', name))",
    "a log of Lightning": "guarded(lambda: rank_zero_warn(name))",
    "an exit": "guarded(lambda: sys.exit(shown(name)))",
}


@pytest.mark.parametrize("what", REPORTS)
def test_whatever_reports_a_name_shows_it(what):
    code = (
        "import logging, sys, warnings\n"
        "from clip_ood.process.streams import Parser\nfrom clip_ood.terminal.shown import shown\nfrom clip_ood.errors import ConfigError\n"
        "from clip_ood.command_line import guarded\n"
        + ("from lightning.pytorch.utilities.rank_zero import rank_zero_warn\n" if "Lightning" in what else "")
        + f"name = 'a\\x1b[2Jb\\u202ec'\n{REPORTS[what]}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True)
    assert b"\x1b" not in done.stdout + done.stderr and "\u202e".encode() not in done.stderr
    assert rb"\x1b[2Jb\u202e" in done.stderr


@pytest.mark.parametrize("to", ["file", "pipe", "terminal"])
def test_printed_predictions_are_exact_in_a_file_and_shown_to_a_terminal(to, tmp_path):
    code = (
        "import sys; from clip_ood.experiments.predictions import Printed; from clip_ood.detect.prediction_files import CSVFile\n"
        "sys.stdout.reconfigure(encoding='utf-8', errors='surrogateescape', newline='')\n"
        "file = CSVFile(Printed(sys.stdout)); prediction = " + repr(PREDICTION) + "\n"
        "[file.write({'path': name} | prediction) for name in ('a\\x1bb', 'caf\\udce9', 'two\\nlines')]; sys.stdout.flush()"
    )
    master, slave = pty.openpty() if to == "terminal" else (None, None)
    with (tmp_path / "out").open("wb") as file:
        where = {"file": file, "pipe": subprocess.PIPE, "terminal": slave}[to]
        done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, stdout=where, check=True)
    said = {"file": lambda: (tmp_path / "out").read_bytes(), "pipe": lambda: done.stdout}
    content = os.read(master, 9999) if to == "terminal" else said[to]()
    if to == "file":
        with (tmp_path / "out").open(**TEXT) as file:
            assert [row["path"] for row in csv_rows(file)] == ["a\x1bb", "caf\udce9", "two\nlines"]
        return
    assert b"\x1b" not in content and rb"a\x1bb" in content
    if to == "pipe":
        paths = [row[0] for row in csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))][1:]
        assert paths == ["a\\x1bb", "caf\udce9", "two\nlines"]
    else:
        assert rb"caf\udce9" in content and content.count(b"\n") == 4


def test_a_command_to_go_on_with_is_typed_as_it_was():
    command = ["printf", "%s", *ODD.values()]
    line = as_typed(command)
    assert one_line(line) == line and "\n" not in line
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout == b"".join(map(os.fsencode, ODD.values()))


@pytest.mark.parametrize("given", [["--token", "1f2e"], ["--token=1f2e"]])
def test_the_token_of_a_server_is_neither_written_nor_shown(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "clip_ood", "serve", *given, "--port", "8710"])
    with alone(tmp_path / "place", "wait"):
        note = (tmp_path / ".place.lock.json").read_text()
    Ending(why="Stopped.").tell()
    for text in (note, capsys.readouterr().err):
        assert "1f2e" not in text and "--token" in text and "--port 8710" in text


# Columns


@pytest.mark.parametrize("column", [*ABOUT, "Path", "LABEL", " set ".strip().title()])
def test_no_detector_takes_a_column_of_the_files(column):
    for spec in ({"name": "knn", "as": column}, f"my_scores.{column}", f"pytorch_ood.{column}"):
        with pytest.raises(ValueError, match=r"has a column .* of its own; take another name"):
            read_specs([spec])


def test_warnings_are_shown_by_the_hook_of_commands(capsys):
    from clip_ood.process.streams import usable_streams

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = sys.excepthook, logging.getLogRecordFactory()
        try:
            with usable_streams():
                warnings.warn(ESCAPE, stacklevel=1)
        finally:
            sys.excepthook, factory = before
            logging.setLogRecordFactory(factory)
    assert "\x1b" not in capsys.readouterr().err


def test_json_is_readable_but_for_what_steers():
    assert (
        json_bytes({"写真": "\x9b\x7f\udce9\u202e"}, indent=None).decode() == '{"写真": "\\u009b\\u007f\\udce9\u202e"}'
    )
