"""A review by its keys in headless Chromium, on a desk and on a phone, in light and dark."""

from __future__ import annotations

import re
import threading
import time

import pytest
import review_runs
import uvicorn
from chromium import CONTRAST, DESK, PHONE
from review_runs import GROUPS, NAMES

from clip_ood.review.decisions_file import read_decisions
from clip_ood.serve.application import create_app
from clip_ood.serve.listening import access_at, listen
from clip_ood.serve.review_pages import review_routes

pytestmark = pytest.mark.browser


class Served:
    """The review of the run under `root` at an address of its own, until `end`."""

    def __init__(self, root) -> None:
        self.file, at = root / "run" / "decisions.csv", listen("127.0.0.1", None)
        access = access_at("127.0.0.1", at.getsockname()[1])
        review, images = review_runs.reviewed(root)
        app = create_app(access, [review_routes(review, images, "run", access)])
        self.server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [at]})
        self.thread.start()
        self.origin = f"http://127.0.0.1:{at.getsockname()[1]}"
        self.address = f"{self.origin}/?token={access.token}"

    def decided(self) -> list[tuple[str, str, str]]:
        """What the file says: decision, path, label."""
        return (
            [(line.decision, line.path, line.label) for line in read_decisions(self.file).lines]
            if self.file.exists()
            else []
        )

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join()


class Reviewing:
    """A page of a review, and what it said and asked for."""

    def __init__(self, browser, served, scheme="light", viewport=DESK, first=NAMES[0]) -> None:
        self.served = served
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, has_touch=viewport is PHONE)
        self.page = self.context.new_page()
        self.said, self.requests = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(served.address)
        self.shows(first)

    def shows(self, path: str) -> None:
        """Waits until this image is shown, with its picture."""
        self.until(lambda: self.path() == path.replace("\udce9", "\\udce9"), path)
        loaded = (
            "(image => image.complete && image.naturalWidth > 0 && !image.hidden)(document.getElementById('image'))"
        )
        self.until(lambda: self.page.evaluate(loaded), path)

    def path(self) -> str:
        return self.page.locator("#path").text_content()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def until(self, holds, what: object = "") -> None:
        end = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < end, (what, self.said, self.text("body"))
            self.page.wait_for_timeout(20)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def writes(self, *wanted: tuple[str, str, str]) -> None:
        self.until(lambda: self.served.decided() == list(wanted), self.served.decided())


def pages(browser, root):
    """Yields a function that opens pages of one review; all are closed after the test."""
    served, opened = Served(root), []

    def open_page(**how):
        opened.append(Reviewing(browser, served, **how))
        return opened[-1]

    yield open_page
    for each in opened:
        each.context.close()
    served.end()


@pytest.fixture
def reviewing(browser, tmp_path):
    review_runs.make(tmp_path)
    yield from pages(browser, tmp_path)


@pytest.fixture
def labelled(browser, tmp_path):
    """A review of a run with doubtful labels."""
    review_runs.make(tmp_path)
    review_runs.write_labels(tmp_path)
    yield from pages(browser, tmp_path)


def test_keys_decide_and_every_decision_is_written_at_once(reviewing):
    at = reviewing()
    at.press("r")
    at.shows(NAMES[1])
    at.writes(("reject", NAMES[0], ""))
    at.press("k", "s", "ArrowRight", "ArrowLeft", "ArrowLeft")  # faster than answers come
    at.until(lambda: at.path() == NAMES[2] and at.text("#mark") == "skipped")
    first = [("reject", NAMES[0], ""), ("keep", NAMES[1], ""), ("skip", NAMES[2], "")]
    at.writes(*first)
    assert "5 of 8 decided" in at.text("#count")  # with two copies of the first
    at.press("u")
    at.until(lambda: at.page.locator("#mark").is_hidden())
    at.press("u")
    at.shows(NAMES[1])
    at.writes(*first, ("undo", NAMES[2], ""), ("undo", NAMES[1], ""))
    assert at.said == []
    assert all(url.startswith((at.served.origin, "data:")) for url in at.requests)
    assert "token" not in at.page.url


def test_relabelling_is_typing_the_beginning_of_a_class(reviewing):
    at = reviewing()
    at.press("l")
    at.until(lambda: at.page.locator("#classes").is_visible())
    at.page.keyboard.type("do")
    at.press("Enter")
    at.shows(NAMES[1])
    at.writes(("relabel", NAMES[0], "dog"))
    at.press("l")
    at.until(lambda: at.page.locator("#classes").is_visible())
    at.press("Escape")
    at.until(lambda: at.page.locator("#classes").is_hidden())
    at.press("ArrowLeft")
    at.shows(NAMES[0])
    assert at.text("#mark") == "is dog" and len(at.served.decided()) == 1


def test_a_group_is_rejected_as_a_whole_and_taken_back_as_a_whole(reviewing):
    at = reviewing()
    at.press("2")
    at.until(lambda: at.page.locator("#section").is_visible())
    assert at.text("#title").startswith("Group 1: 3 images")
    at.page.get_by_text("Reject all").click()
    rejected = [("reject", NAMES[row], "") for row in GROUPS["1"]]
    at.writes(*rejected)
    at.shows(NAMES[GROUPS["2"][0]])
    at.press("u")
    at.writes(*rejected, *(("undo", path, "") for _, path, _ in rejected))
    at.press("3")
    at.until(lambda: at.text("#title") == "3 copies of one image")


def test_a_duplicate_is_shown_beside_what_it_is_a_copy_of(reviewing):
    at = reviewing()
    at.press("3")
    at.until(lambda: at.text("#is") == "its copy")
    at.press("ArrowRight")
    at.shows(NAMES[4])
    assert at.text("#is") == "it is a copy of" and at.page.locator("#other_path").text_content() == NAMES[0]


def test_y_takes_the_class_that_is_suggested(labelled):
    at = labelled()
    assert [button.inner_text() for button in at.page.locator("#views button").all()] == [
        "Suspects 8 left", "Groups 5 left", "Duplicates 3 left", "Labels 2 left", "Random draw 0", "Decided 0",
    ]  # fmt: skip
    assert at.page.locator("#accept").is_hidden()
    at.press("y")  # nothing is suggested here
    at.press("4")
    at.shows(NAMES[5])
    assert at.text("#doubt") == "dog → cat: of the vote of its nearest images, 13 % is for dog and 75 % for cat"
    assert at.text("#accept").endswith("It is cat")
    at.press("y")
    at.shows(NAMES[2])
    at.press("k")
    at.writes(("relabel", NAMES[5], "cat"), ("keep", NAMES[2], ""))
    at.until(lambda: at.text("[data-view=labels]") == "Labels ✓")
    at.press("u", "u")
    at.until(lambda: at.text("[data-view=labels]") == "Labels 2 left")
    at.page.locator("#accept").click()
    at.until(lambda: at.served.decided()[-1] == ("relabel", NAMES[5], "cat"))


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_the_end_of_a_long_name_is_in_sight(browser, tmp_path, viewport):
    name = "cat/" + "long_" * 40 + "end.png"
    review_runs.make(tmp_path, (name, *NAMES[1:]))
    reviewing = pages(browser, tmp_path)
    at = next(reviewing)(viewport=viewport, first=name)
    end = at.page.locator("#path span").last
    assert end.text_content() == name[-18:] and at.page.locator("#path").get_attribute("title") == name
    box, around = end.bounding_box(), at.page.locator("#path").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= around["x"] + around["width"] + 1 <= viewport["width"]
    assert around["height"] < 40  # one line
    assert list(reviewing) == []  # closes it


def test_a_draw_ends_in_a_rate(reviewing):
    at = reviewing()
    at.press("4")
    at.until(lambda: at.text("#empty") == "No images were drawn yet.")
    at.page.locator("#n").fill("3")
    at.press("Enter")
    at.until(lambda: at.page.locator("#stage").is_visible() and "0 of 3 drawn" in at.text("#note"))
    at.page.locator("#image").click()  # away from the field, so that keys decide
    for count in range(1, 4):
        at.press("r" if count == 2 else "k")
        at.until(
            lambda count=count: f"{count} of 3" in at.text("#note") or "Of 3 images drawn at random" in at.text("#note")
        )
    assert "1 were odd: 33.3 % (95 % interval by Clopper and Pearson: 0.8 to 90.6 %)" in at.text("#note")


def test_two_pages_see_each_other(reviewing):
    one, other = reviewing(), reviewing()
    one.press("r")
    one.shows(NAMES[1])
    other.press("ArrowRight", "ArrowLeft")
    other.until(lambda: other.page.locator("#mark").is_visible() and other.text("#mark") == "rejected")


def test_an_image_that_is_gone_is_said_and_not_decided(reviewing, tmp_path):
    (tmp_path / "photos" / NAMES[1]).unlink()
    at = reviewing()
    at.press("ArrowRight")
    at.until(lambda: "cannot be read any more" in at.text("#gone"))
    at.press("r")
    at.until(lambda: "Not decided" in at.text("#note"))
    assert at.served.decided() == []


def test_names_are_text_and_nothing_else(reviewing):
    at = reviewing()
    at.press("ArrowRight", "ArrowRight", "ArrowRight")
    at.shows(NAMES[3])
    assert at.page.locator("#path b").count() == 0 and "<b>&" in at.path()
    assert at.text("#words") == "word 3, <b>"


def test_an_ended_review_says_so(reviewing):
    at = reviewing()
    at.served.end()
    at.press("k")
    at.until(lambda: "does not answer" in at.text("#note"))


@pytest.mark.parametrize("view", ["1", "2", "3", "4", "5"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_can_be_read(labelled, view, viewport, scheme):
    at = labelled(viewport=viewport, scheme=scheme)
    at.press("k", view)
    at.page.wait_for_timeout(300)
    assert at.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    found = at.page.evaluate(CONTRAST)
    assert len(found) > 8
    visible = [
        words for contrast, words in found if contrast < 4.5 and not re.match("BUTTON: [←→]$", words)
    ]  # at an end, disabled
    assert visible == []


def test_buttons_are_large_enough_for_a_thumb(reviewing):
    at = reviewing(viewport=PHONE)
    buttons = at.page.locator("#actions button")
    boxes = [buttons.nth(place).bounding_box() for place in range(buttons.count())]
    boxes = [box for box in boxes if box is not None]  # what is hidden has none
    assert len(boxes) == 7 and all(box["height"] >= 44 and box["width"] >= 34 for box in boxes)
    assert max(box["y"] + box["height"] for box in boxes) <= PHONE["height"]  # in sight without scrolling
    assert all(
        at.page.evaluate("e => e.scrollWidth <= e.clientWidth", buttons.nth(place).element_handle())
        for place in range(1, 8)
    )
    at.page.locator("[data-decide=reject]").tap()
    at.shows(NAMES[1])
    at.writes(("reject", NAMES[0], ""))
