"""A review of a folder that changed since its run, and of several reviewers at once."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import review_runs
import tiny_clip
from fastapi.testclient import TestClient
from review_runs import NAMES

from clip_ood.errors import UserError
from clip_ood.experiments import reviewing
from clip_ood.review.decisions_file import read_decisions


class Reviewer:
    """One of several processes that review the run under `root`."""

    def __init__(self, root: Path) -> None:
        app, access = review_runs.application(root)
        self.client = TestClient(app, base_url="http://127.0.0.1", headers={"x-token": access.token})

    def decide(self, row: int, decision: str) -> int:
        return self.client.post("/api/decisions", json={"rows": [row], "decision": decision}).status_code

    def draw(self, n: int) -> dict:
        return self.client.post("/api/draw", json={"n": n}).json()

    def items(self, view: str) -> dict:
        return self.client.get(f"/api/items?view={view}").json()


def test_reviewers_at_once_lose_no_decision_and_agree_in_the_end(tmp_path):
    names = [f"cat/{number}.png" for number in range(60)]
    review_runs.make(tmp_path, names, ())
    reviewers = [Reviewer(tmp_path) for _ in range(4)]

    def review(number: int) -> list[int]:
        """Decides about each image once, and takes every third decision back."""
        who, found = reviewers[number], []
        for row in range(number, 60, 4):
            found.append(who.decide(row, ("keep", "reject", "skip", "keep")[number]))
            if row % 3 == 0:
                found.append(who.decide(row, "undo"))
        return found

    with ThreadPoolExecutor(4) as pool:
        statuses = [status for found in pool.map(review, range(4)) for status in found]
    assert set(statuses) == {200} and len(statuses) == 80
    decisions = read_decisions(tmp_path / "run" / "decisions.csv")
    assert not decisions.cut and len(decisions.lines) == 80
    wanted = {("keep", "reject", "skip", "keep")[row % 4]: 0 for row in range(4)}
    wanted |= Counter(("keep", "reject", "skip", "keep")[row % 4] for row in range(60) if row % 3)
    for who in reviewers:
        progress = who.items("suspects")["progress"]
        assert progress["of"] == wanted and progress["decided"] == 40


def test_two_draws_at_once_are_two_whole_draws(tmp_path):
    review_runs.make(tmp_path, [f"cat/{number}.png" for number in range(60)], ())
    with ThreadPoolExecutor(2) as pool:
        drawn = [*pool.map(lambda who: who.draw(10), [Reviewer(tmp_path), Reviewer(tmp_path)])]
    assert [each["n"] for each in drawn] == [10, 10]
    found = Reviewer(tmp_path).items("draw")
    assert found["total"] == 10  # the last one
    assert found["progress"]["told"]["draw"].startswith("0 of 10 drawn images are judged")


def change(folder: Path, what: str) -> None:
    first, second = (folder / name for name in NAMES[:2])  # of cat and dog
    if what == "removed":
        first.unlink()
    elif what == "added":
        shutil.copy(first, folder / "cat" / "added.png")
    elif what == "changed":
        shutil.copy(second, first)
    elif what == "a class is empty":
        for path in (folder / "cat").iterdir():
            path.unlink()
    elif what == "a class is gone":
        shutil.rmtree(folder / "cat")
    elif what == "a new class":
        (folder / "fox").mkdir()
        shutil.copy(first, folder / "fox")
    elif what == "an image beside the classes":
        shutil.copy(first, folder / "loose.png")
    elif what == "unreadable":
        first.write_bytes(b"no image")


@pytest.mark.parametrize(
    "what",
    [
        "removed",
        "added",
        "changed",
        "a class is empty",
        "a class is gone",
        "a new class",
        "unreadable",
        "an image beside the classes",
    ],
)
def test_a_folder_that_changed_is_still_reviewed(tmp_path, monkeypatch, what):
    root = tiny_clip.make(tmp_path)
    review_runs.make(root)
    config = Path(tiny_clip.config(root, "run", {"zero_shot": {}})).read_text()
    (root / "run" / "config.yaml").write_text(config.replace("id: id\n", f"id: {root}/photos\n") + "name: run\n")
    change(root / "photos", what)
    apps = []
    monkeypatch.setattr(reviewing, "serve", lambda app, at, host, access, say: (apps.append((app, access)), at.close()))
    reviewing.review(root / "run", None, "127.0.0.1", None, "")
    ((app, access),) = apps
    client = TestClient(app, base_url="http://127.0.0.1", headers={"x-token": access.token})
    assert client.get("/api/items").json()["total"] == len(NAMES)
    answer = client.post("/api/decisions", json={"rows": [0, 1], "decision": "reject"}).json()
    refused = [] if what in ("added", "a new class", "an image beside the classes") else ["0"]
    assert list(answer["refused"]) == refused
    lines = read_decisions(root / "run" / "decisions.csv").lines
    assert [line.path for line in lines] == ([NAMES[1]] if refused else list(NAMES[:2]))


def test_a_folder_that_is_gone_is_told(tmp_path):
    root = tiny_clip.make(tmp_path)
    review_runs.make(root)
    config = Path(tiny_clip.config(root, "run", {"zero_shot": {}})).read_text()
    (root / "run" / "config.yaml").write_text(config.replace("id: id\n", f"id: {root}/photos\n") + "name: run\n")
    shutil.rmtree(root / "photos")
    with pytest.raises(UserError, match="photos"):
        reviewing.review(root / "run", None, "127.0.0.1", None, "")
