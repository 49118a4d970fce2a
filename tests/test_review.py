"""The review of a run without a browser: what is shown, written and refused."""

from __future__ import annotations

import io
import re
import shutil
import socket
import time
from pathlib import Path

import pytest
import review_runs
import tiny_clip
from fastapi.testclient import TestClient
from PIL import Image
from review_runs import GROUPS, NAMES
from scipy.stats import binomtest

from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.commands import review as command
from clip_ood.files.records import Damaged
from clip_ood.metrics.intervals import clopper_pearson
from clip_ood.review.decisions import Decision
from clip_ood.review.decisions_file import append, read_decisions
from clip_ood.serve.access import Access
from clip_ood.serve.drawn import Draw, rate_told
from clip_ood.serve.listening import access_at, listen
from clip_ood.serve.run_suspects import Unmatched, suspects_of


@pytest.fixture
def root(tmp_path):
    review_runs.make(tmp_path)
    return tmp_path


class Asking:
    """A client of the review of the run under `root`, with or without its token."""

    def __init__(self, root: Path) -> None:
        app, self.access = review_runs.application(root)
        self.client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        self.token = self.access.token

    def get(self, path: str, **headers: str):
        return self.client.get(path, headers={"x-token": self.token} | headers)

    def post(self, path: str, body, **headers: str):
        return self.client.post(path, json=body, headers={"x-token": self.token} | headers)

    def decide(self, rows: list[int], decision: str, label: str = ""):
        return self.post("/api/decisions", {"rows": rows, "decision": decision, "label": label})

    def items(self, view: str = "suspects", start: int = 0, count: int = 40):
        return self.get(f"/api/items?view={view}&start={start}&count={count}").json()


@pytest.fixture
def asking(root):
    return Asking(root)


def lines(root: Path) -> list[Decision]:
    return list(read_decisions(root / "run" / "decisions.csv").lines)


# What is shown


def test_suspects_come_in_pages_with_their_nearest_image(asking):
    found = asking.items(start=1, count=2)
    assert found["total"] == len(NAMES) and [each["row"] for each in found["items"]] == [1, 2]
    first = found["items"][0]
    assert (first["path"], first["label"], first["beside"], first["scores"]) == (
        "dog/0.png",
        "dog",
        {"row": 2, "is": "nearest", "path": "cat/=1+1.png", "label": "cat", "cosine": 0.5},
        [-0.9, -1.5],
    )
    assert first["decision"] is None and asking.items(start=10**6)["items"] == []


def test_names_are_shown_as_they_may_be(asking):
    assert [each["path"] for each in asking.items()["items"]][2:4] == ["cat/=1+1.png", "dog/caf\\udce9 <b>&.png"]


def test_groups_and_duplicates_have_sections(asking):
    groups = asking.items("groups")["items"]
    assert [each["row"] for each in groups] == [row for rows in GROUPS.values() for row in rows]
    assert [each["section"]["first"] for each in groups] == [0, 0, 0, 3, 3]
    assert groups[0]["section"]["title"] == "Group 1: 3 images, 0.5 apart from all others"
    assert asking.items("groups", start=4)["items"][0]["section"]["rows"] == list(GROUPS["2"])
    copies = asking.items("duplicates")["items"]
    assert [each["row"] for each in copies] == [0, 4, 6] and copies[0]["section"]["title"] == "3 copies of one image"


def test_a_duplicate_stands_beside_what_it_is_a_copy_of(asking):
    beside = [each["beside"] for each in asking.items("duplicates")["items"]]
    assert [(each["row"], each["is"]) for each in beside] == [
        (4, "its copy"), (0, "it is a copy of"), (0, "it is a copy of"),
    ]  # fmt: skip


def test_doubtful_labels_are_a_view_of_runs_that_have_checked_them(root, asking):
    assert asking.items("labels")["items"] == [] and "labels" not in asking.items()["progress"]["views"]
    review_runs.write_labels(root)
    asking = Asking(root)
    found = asking.items("labels")
    assert [each["row"] for each in found["items"]] == [5, 2]
    assert found["items"][0]["doubt"] == {
        "suggested": 0,
        "of_label": 0.125,
        "of_suggested": 0.75,
    }  # cat, of cat and dog
    asking.decide([5], "relabel", "cat")
    found = asking.items("labels", -1)
    assert found["start"] == 1 and found["progress"]["views"]["labels"] == {"images": 2, "left": 1}
    (root / "run" / "labels.csv").write_text((root / "run" / "labels.csv").read_text().replace(",dog,0", ",cow,0"))
    with pytest.raises(Unmatched, match=r"suggests classes that no image has \(cow\)"):
        suspects_of(root / "run")


def test_a_view_says_how_many_images_are_left(asking):
    asking.decide([0, 1], "skip")  # with two copies of the first
    views = asking.items()["progress"]["views"]
    assert views["suspects"] == {"images": 8, "left": 4} and views["groups"] == {"images": 5, "left": 3}
    assert views["duplicates"] == {"images": 3, "left": 0} and views["decided"]["images"] == 4


def test_pictures_are_jpeg_at_their_size_and_asked_for_by_row_alone(root, asking):
    Image.new("RGB", (3000, 1500), "red").save(root / "photos" / NAMES[0])
    review_runs.write_lists(root, NAMES, ())
    asking = Asking(root)
    for size, shape in {"small": (160, 80), "large": (1200, 600)}.items():
        answer = asking.get(f"/image/0/{size}")
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.format == "JPEG" and picture.size == shape
    assert (
        asking.client.get(
            "/image/0/large", headers={"x-token": asking.token, "if-none-match": answer.headers["etag"]}
        ).status_code
        == 304
    )


@pytest.mark.parametrize(
    "path",
    [
        "/image/8/small", "/image/-1/small", f"/image/{'9' * 5000}/small", "/image/0/huge", "/image/../../etc/passwd",
        "/image/%2e%2e%2f%2e%2e%2fetc%2fpasswd/small", "/run/decisions.csv", "/../photos/cat/0.png", "/image/cat%2F0.png/small",
        "/docs", "/openapi.json", "/review.css", "/api/items?count=201", "/api/items?count=0", f"/api/items?start={'9' * 99}",
        "/api/items?start=-2", "/api/items?view=everything",
    ],
)  # fmt: skip
def test_nothing_else_can_be_asked_for(asking, path):
    assert asking.get(path).status_code in (404, 422)


# What is written


def test_every_decision_is_written_at_once_and_shown(root, asking):
    asking.decide([0], "reject")
    asking.decide([1], "relabel", "cat")
    first, second = lines(root)
    assert (first.decision, first.path, first.image) == (
        "reject",
        NAMES[0],
        suspects_of(root / "run").images[0].image,
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", first.time) and (second.label, second.path) == ("cat", NAMES[1])
    found = asking.items()
    assert found["items"][1]["decision"]["label"] == "cat"
    assert asking.items(start=-1)["start"] == 2  # the first that is not decided
    asking.decide([1], "undo")
    assert [line.decision for line in lines(root)] == ["reject", "relabel", "undo"]
    assert asking.items()["items"][1]["decision"] is None


def test_a_decision_is_about_all_copies_of_a_content_and_odd_names_come_back(root, asking):
    progress = asking.decide([0, 3], "reject").json()["progress"]
    assert progress["of"] == {"reject": 4} and progress["decided"] == 4  # 0, 4 and 6 are one content
    assert lines(root)[1].path == NAMES[3]
    assert asking.items("decided")["items"][0]["row"] == 3


def test_two_reviewers_see_each_other_and_lose_nothing(root):
    one, other = Asking(root), Asking(root)
    one.items(), other.items()
    one.decide([1], "keep")
    assert other.items()["items"][1]["decision"]["decision"] == "keep"
    other.decide([2], "reject")
    append(root / "run" / "decisions.csv", [Decision("skip", path=NAMES[5])])  # a third, by hand
    assert [each["decision"] and each["decision"]["decision"] for each in one.items()["items"]] == [
        None, "keep", "reject", None, None, "skip", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["gone", "changed", "renamed"])
def test_an_image_that_is_another_one_by_now_is_told_and_gets_no_decision(root, asking, change):
    path = root / "photos" / NAMES[1]
    if change == "changed":
        shutil.copy(root / "photos" / NAMES[2], path)
    else:
        path.rename(path.with_name("other.png")) if change == "renamed" else path.unlink()
    told = asking.get("/image/1/large")
    assert told.status_code == 409 and told.json()["error"].endswith(
        ("score it.", "any more (No such file or directory).")
    )
    answer = asking.decide([1, 2], "reject").json()
    assert list(answer["refused"]) == ["1"] and [line.path for line in lines(root)] == [NAMES[2]]
    assert asking.decide([1], "undo").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"rows": [0], "decision": "drawn"}, {"rows": [], "decision": "keep"}, {"rows": [8], "decision": "keep"}, {"rows": [-1], "decision": "keep"},
        {"rows": [0] * 201, "decision": "keep"}, {"rows": ["0"], "decision": "keep"}, {"rows": [0], "decision": "relabel", "label": "cow"},
        {"rows": [0], "decision": "relabel"}, {"rows": [0], "decision": "keep", "label": "cat"}, {"rows": [0], "decision": "keep", "path": "x"},
        {"path": "/etc/passwd", "decision": "keep"}, [],
    ],
)  # fmt: skip
def test_what_is_no_decision_writes_nothing(root, asking, body):
    assert asking.post("/api/decisions", body).status_code in (404, 409, 422)
    assert not (root / "run" / "decisions.csv").exists()


def test_a_file_that_someone_broke_is_told_with_its_line(root, asking):
    (root / "run" / "decisions.csv").write_text("path,decision\nx,rejekt\n")
    answer = asking.get("/api/items")
    assert answer.status_code == 409 and "line 2: 'rejekt' is no decision" in answer.json()["error"]


# Draws and rates


def test_a_draw_is_among_contents_that_nobody_has_decided_about(root, asking):
    asking.decide([0, 1], "keep")
    assert asking.post("/api/draw", {"n": 100}).json()["among"] == 4  # of 6 contents
    assert sorted(each["row"] for each in asking.items("draw")["items"]) == [2, 3, 5, 7]
    assert {line.among for line in lines(root) if line.decision == "drawn"} == {"4"}
    told = asking.items("draw")["progress"]["told"]
    assert told["draw"].startswith("0 of 4 drawn images are judged")
    assert (
        told["suspects"].startswith("Of the first 2 images reviewed, 0 were odd.")
        and "nothing follows" in told["suspects"]
    )
    again = Asking(root)  # after a restart
    again.decide([2, 3, 5], "keep")
    again.decide([7], "reject")
    told = again.items("draw")["progress"]["told"]
    assert told["draw"].startswith(
        "Of 4 images drawn at random among the 4 that nobody had reviewed, 1 were odd: 25.0 %"
    )
    assert told["suspects"].startswith("Of the first 2 images")  # those drawn do not count there
    assert again.post("/api/draw", {"n": 5}).status_code == 409
    suspects = root / "run" / "suspects.csv"  # the next run lists no image that was rejected
    suspects.write_bytes(b"".join(suspects.read_bytes().splitlines(keepends=True)[:-1]))
    (root / "run" / "groups.csv").unlink()
    assert Asking(root).items("draw")["progress"]["told"] == told


@pytest.mark.parametrize("n", [0, -1, 10**30, "30", 1.5])
def test_a_draw_of_no_number_is_refused(asking, n):
    assert asking.post("/api/draw", {"n": n}).status_code == 422


def test_the_rate_of_the_rest_is_clopper_and_pearsons():
    found = binomtest(2, 30).proportion_ci(0.95, "exact")
    assert f"{100 * found.low:.1f} to {100 * found.high:.1f} %" in rate_told(Draw(("x",) * 30, 1180), 30, 2)
    assert "nothing follows" in rate_told(Draw(("x",) * 30, 1180), 29, 2)
    for count, n in [(0, 1), (1, 1), (0, 10), (3, 20), (20, 20), (50, 1000), (999, 1000)]:
        found = binomtest(count, n).proportion_ci(0.95, "exact")
        assert clopper_pearson(count, n) == pytest.approx((found.low, found.high), abs=1e-9)


# Who may ask


def test_the_address_with_the_token_opens_the_page_and_sets_a_strict_cookie(asking):
    answer = asking.client.get(f"/?token={asking.token}")
    assert answer.status_code == 200 and "Review of" in answer.text
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert asking.client.get("/api/items").status_code == 200  # by the cookie
    beside = f'odd name="{{"a": 1}}; x=[é; {cookie.partition(";")[0]}; y=1'.encode(
        "latin-1"
    )  # of other applications on this machine
    asking.client.cookies.clear()
    assert asking.client.get("/api/items", headers={"cookie": beside}).status_code == 200
    asking.client.cookies.set(*cookie.partition(";")[0].split("=", 1))
    assert asking.client.post("/api/draw", json={"n": 1}).status_code == 403  # which is not enough for a change
    for path in ("/", "/image/0/small", "/review.js"):
        headers = asking.client.get(path).headers
        assert (
            "default-src 'none'" in headers["content-security-policy"]
            and headers["x-content-type-options"] == "nosniff"
        )
    assert asking.client.get("/").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/style.css", "/review.js", "/api/items", "/image/0/small", "/nothing"])
@pytest.mark.parametrize("token", ["", "x", "é", "none"])
def test_nothing_is_answered_without_the_token(root, path, token):
    asking = Asking(root)
    answer = asking.client.get(path, params={"token": token}) if token != "none" else asking.client.get(path)
    assert answer.status_code == 403 and "token" in answer.text and "set-cookie" not in answer.headers
    assert asking.client.get(path, headers={"x-token": asking.token[:-1]}).status_code == 403
    assert asking.client.get(path, headers={"cookie": f"clip_ood_80={asking.token}x"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": ""},
        {"host": "[::1"},
        {"host": "192.168.0.7"},
    ],
)
def test_another_name_for_this_machine_is_refused(asking, headers):
    assert asking.get("/", **headers).status_code == 421


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1:9999", "[::1]:80"])
def test_names_of_the_loopback_are_taken_whatever_the_port(asking, host):
    assert asking.get("/", host=host).status_code == 200


def test_a_page_of_another_site_changes_nothing(root, asking):
    body = {"rows": [0], "decision": "keep"}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:81", "http://["):
        assert asking.post("/api/decisions", body, origin=origin).status_code == 403
    assert asking.post("/api/decisions", body, origin="http://127.0.0.1").status_code == 200
    assert len(lines(root)) == 1


def test_on_all_addresses_a_number_is_taken_and_a_foreign_name_is_not():
    access = access_at("0.0.0.0", 1)
    assert (
        access.means_us("192.168.0.7:1")
        and access.means_us(socket.gethostname())
        and not access.means_us("evil.example")
    )
    assert Access(("Workstation.Local",)).means_us("workstation.local:1")  # as browsers write it
    assert not access_at("127.0.0.1", 1).means_us("192.168.0.7:1")
    assert Access().token != Access().token and Access().token not in repr(Access())


def test_a_port_that_is_taken_is_told_unless_none_was_asked_for():
    taken = listen("127.0.0.1", None)
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match="name another --port"):
        listen("127.0.0.1", port)
    other = listen("127.0.0.1", None)
    assert other.getsockname()[1] != port
    with pytest.raises(UserError, match="name an address of this machine"):
        listen("203.0.113.1", None)
    taken.close(), other.close()


# Many images, wrong files, the command


def test_a_hundred_thousand_images_are_listed_in_seconds_and_shown_at_once(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "run").mkdir()
    names = [f"{number}.png" for number in range(100_000)]
    contents = [f"{number:032x}" for number in range(100_000)]
    review_runs.write_lists(tmp_path, names, range(1, 100_000, 7), contents)
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / names[number])
    asking = Asking(tmp_path)
    asking.decide([0], "keep")
    append(tmp_path / "run" / "decisions.csv", [Decision("keep", image) for image in contents[:1000]])
    begun = time.monotonic()
    for view in ("suspects", "groups", "duplicates"):
        answer = asking.items(view, -1, 24)
        assert len(answer["items"]) in (5, 24)
    assert answer["total"] == 14_287 and time.monotonic() - begun < 10  # half a second where nothing else runs


def test_wrong_lists_are_told(root):
    groups, suspects = root / "run" / "groups.csv", root / "run" / "suspects.csv"
    groups.write_text("group,images,apart,path,image\n1,1,0.5,gone.png,\n")
    with pytest.raises(Unmatched, match=r"names images that suspects\.csv does not"):
        suspects_of(root / "run")
    suspects.write_text("rank,path\n1,x\n")
    with pytest.raises(Damaged, match=r"suspects\.csv is damaged"):
        suspects_of(root / "run")


def test_the_command_says_what_it_lacks(root, monkeypatch):
    run = root / "run"
    with pytest.raises(ConfigError, match="is no run"):
        command.main(["--run", str(root)])
    (run / "config.yaml").touch()
    (root / "none").mkdir()
    (root / "none" / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"has no suspects\.csv.*cross_fit"):
        command.main(["--run", str(root / "none")])
    with pytest.raises(ConfigError, match=r"--decisions: .* is no file"):
        command.main(["--run", str(run), "--decisions", str(root / "nowhere" / "x.csv")])
    for port in ("0", "65536", "x", "-1"):
        with pytest.raises(SystemExit):
            command.main(["--run", str(run), "--port", port])
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'clip-ood\[serve\]'"):
        command.main(["--run", str(run)])


def test_decisions_go_where_the_run_says(tmp_path, monkeypatch):
    from clip_ood.experiments import reviewing

    root = tiny_clip.make(tmp_path)
    config = Path(tiny_clip.config(root, "run", {"zero_shot": {}})).read_text()
    (root / "photos").symlink_to(root / "data/id")
    names = sorted(str(path.relative_to(root / "data/id")) for path in (root / "data/id").rglob("*.png"))[:8]
    (root / "run").mkdir()
    review_runs.write_lists(root, names, ())
    seen = []
    monkeypatch.setattr(reviewing, "serve", lambda app, at, host, access, say: (seen.append(app), at.close()))
    monkeypatch.setattr(reviewing, "Review", lambda suspects, file, check, by: (check(0), seen.append(file)))
    monkeypatch.setattr(reviewing, "review_routes", lambda *given: __import__("fastapi").APIRouter())
    own = root / "own.csv"
    own.write_text("path,decision\n")
    for more, given, wanted in (
        ("", None, root / "run" / "decisions.csv"),
        (f"  decisions: {own}\n", None, own),
        ("", own, own),
    ):
        (root / "run" / "config.yaml").write_text(config.replace("data:\n", f"data:\n{more}") + "name: run\n")
        reviewing.review(root / "run", given, "127.0.0.1", None, "")
        assert seen[0] == wanted
        seen.clear()
