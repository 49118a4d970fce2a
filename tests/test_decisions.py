"""decisions.csv: what counts, how it is read, and that nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from clip_ood.review.decisions import Decision, counting
from clip_ood.review.decisions_file import COLUMNS, NoDecisions, append, read_decisions

A, B = "0" * 31 + "a", "0" * 31 + "b"
HEAD = ",".join(COLUMNS) + "\n"


def word(lines: list[Decision], image: str, path: str = "") -> str | None:
    found = counting(lines).about(image, path)
    return found and found.decision


def test_the_last_decision_about_a_content_counts_wherever_its_file_lies():
    assert word([Decision("keep", A, "x.png"), Decision("reject", A, "moved/y.png")], A, "z.png") == "reject"


def test_undo_takes_back_one_decision_after_the_other():
    lines = [Decision("keep", A), Decision("reject", A)]
    undo = Decision("undo", A)
    assert [word([*lines, *[undo] * times], A) for times in range(4)] == ["reject", "keep", None, None]
    assert word([*lines, undo, undo, undo, Decision("skip", A)], A) == "skip"


def test_a_path_stands_for_the_content_that_other_lines_name_there():
    lines = [Decision("reject", path="x.png"), Decision("keep", A, "x.png"), Decision("undo", A, "x.png")]
    assert word(lines, A, "elsewhere.png") == "reject"
    assert word([Decision("reject", path="x.png")], B, "x.png") == "reject"
    assert word([Decision("reject", path="x.png")], B, "y.png") is None


def test_of_a_content_and_a_path_the_later_line_counts():
    first, second = Decision("reject", path="x.png"), Decision("keep", B, "y.png")
    assert word([first, second], B, "x.png") == "keep"
    assert word([second, first], B, "x.png") == "reject"


def test_a_draw_is_no_decision():
    assert word([Decision("drawn", A, among="9")], A) is None


ODD = [
    "a b,c.png",
    'q"uote.png',
    "=1+1.png",
    "two\nlines.png",
    "cr\r.png",
    "caf\udce9.png",
    "./=x.png",
    "é;x.png",
    " x.png ",
]


@pytest.mark.parametrize("name", ODD)
def test_every_name_comes_back(tmp_path, name):
    path = tmp_path / "decisions.csv"
    wanted = [Decision("reject", A, name, "", "2026-01-01T00:00:00Z", "=Ann"), Decision("relabel", "", name, "-cat")]
    append(path, wanted[:1])
    append(path, wanted[1:])
    assert read_decisions(path).lines == tuple(wanted)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + f"path,decision\r\nx.png,Reject\r\n{A.upper()},keep\r\n".encode().replace(b"path", b"image").replace(b"x.png", B.encode()),
        f"Image;Decision;remark\n{B};reject;fine\n\n{A};keep;\n".encode(),
        f"decision\timage\nreject\t{B}\nkeep\t{A}".encode("utf-16"),
    ],
    ids=["bom and line ends", "semicolons", "utf-16 with tabs"],
)  # fmt: skip
def test_what_spreadsheets_write_is_read(tmp_path, content):
    path = tmp_path / "decisions.csv"
    path.write_bytes(content)
    assert [(line.decision, line.image) for line in read_decisions(path).lines] == [("reject", B), ("keep", A)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a,b\nx,y\n", "line 1: 'a,b' names no columns of decisions"),
        ("path,decision,decision\n", "line 1: the column 'decision' stands twice"),
        ("path,decision\n\nx.png,rejekt\n", "line 3: 'rejekt' is no decision; .* Did you mean reject"),
        ("image,decision\n1.2E+31,keep\n", "line 2: '1.2E\\+31' is no image"),
        ("image,path,decision\n,,keep\n", "line 2: it says keep, and of no image"),
        ("path,decision,label\nx.png,relabel,\n", "line 2: relabel needs the new class"),
        ("path,decision\n\0", "holds NUL characters"),
    ],
)
def test_what_is_no_decision_is_told_with_its_line(tmp_path, content, told):
    path = tmp_path / "decisions.csv"
    path.write_text(content)
    with pytest.raises(NoDecisions, match=told):
        read_decisions(path)


LINE = f"t,{A},x.png,relabel,cats,me,\n"


@pytest.mark.parametrize("length", range(1, len(LINE)))
def test_a_line_without_its_end_is_told_and_the_next_one_is_whole(tmp_path, length):
    path = tmp_path / "decisions.csv"
    path.write_text(HEAD + f"t,{B},y.png,keep,,,\n" + LINE[:length])
    append(path, [Decision("skip", B, "z.png")])
    found = read_decisions(path)
    assert [line.decision for line in found.lines] in (["keep", "skip"], ["keep", "relabel", "skip"])
    assert all(line.label == "cats" for line in found.lines if line.decision == "relabel")
    assert found.cut == ((3,) if len(found.lines) == 2 else ())


def test_a_quote_that_lost_its_end_takes_no_other_line_with_it(tmp_path):
    path = tmp_path / "decisions.csv"
    path.write_text(HEAD + f't,{A},"two\nli')
    append(path, [Decision("skip", B, "z.png"), Decision("keep", B, 'a",b\nc.png')])
    found = read_decisions(path)
    assert [(line.decision, line.path) for line in found.lines] == [("skip", "z.png"), ("keep", 'a",b\nc.png')]
    assert found.cut == (2, 3)


def test_lines_are_added_in_the_way_of_a_file_that_a_person_made(tmp_path):
    path = tmp_path / "decisions.csv"
    path.write_text("label;decision;path;image\n;keep;x.png;")
    append(path, [Decision("relabel", A, "y.png", "cat", "t", "me")])
    assert path.read_text() == f"label;decision;path;image\n;keep;x.png;\ncat;relabel;y.png;{A}\n"


WRITER = """
import sys
from pathlib import Path
from clip_ood.review.decisions import Decision
from clip_ood.review.decisions_file import append
for number in range(int(sys.argv[2])):
    append(Path(sys.argv[1]), [Decision("keep", f"{number:032x}", "two\\nlines.png", by=sys.argv[3])])
    print(number, flush=True)
"""


def writer(path, count: int, name: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, path, str(count), name], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_writers_lose_nothing(tmp_path):
    path = tmp_path / "decisions.csv"
    writers = [writer(path, 40, name) for name in ("one", "two")]
    assert [each.wait(60) for each in writers] == [0, 0]
    found = read_decisions(path)
    assert not found.cut and path.read_text().count("decision") == 1
    for name in ("one", "two"):
        assert [int(line.image, 16) for line in found.lines if line.by == name] == list(range(40))


@pytest.mark.slow
def test_what_was_told_is_there_after_a_kill(tmp_path):
    path, told = tmp_path / "decisions.csv", 0
    for number in range(5):
        running = writer(path, 10_000, str(number))
        running.stdout.readline()
        time.sleep(0.03 * number)
        os.kill(running.pid, signal.SIGKILL)
        told += 1 + len(running.stdout.read().split())
        running.wait()
    found = read_decisions(path)
    assert told <= len(found.lines) + len(found.cut) <= told + 5 and len(found.lines) >= told


def test_a_file_with_few_columns_gets_the_others_with_the_first_decision_that_is_added(tmp_path):
    path = tmp_path / "decisions.csv"
    path.write_text('path;decision;label;mood\n"a;\nb.png";reject;;bad\n=c.png;keep;;\nd.png;relabel;ca')
    before = read_decisions(path)
    append(path, [Decision("relabel", image="0" * 32, path="e.png", label="dog", by="Ann")])
    after = read_decisions(path)
    assert after.lines[:-1] == before.lines and len(after.cut) == len(before.cut) == 1
    assert (after.lines[-1].path, after.lines[-1].label, after.lines[-1].by) == ("e.png", "dog", "Ann")
    assert path.read_text().splitlines()[0] == "path;decision;label;mood;time;image;by;among"
    assert ";bad;" in path.read_text()
