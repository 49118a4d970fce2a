"""Reports opened in headless Chromium: nothing to complain about, readable in light and dark, on a desk and on a phone."""

from __future__ import annotations

import pytest
import report_runs
import tiny_clip
from chromium import CONTRAST, DESK, PHONE

import eval as evaluation
import train

pytestmark = pytest.mark.browser

PAGES = ("report", "seeds", "no_ood", "comparison", "one_of_each", "hostile", "folder")


@pytest.fixture(scope="module")
def pages(browser, tmp_path_factory):
    """A file for each of PAGES."""
    root = tiny_clip.make(tmp_path_factory.mktemp("pages"))
    run, runs = report_runs.zero_shot(root, "report"), root / "runs"
    report_runs.zero_shot(root, "no_ood", "--data.ood={}")
    whole = {"evaluation": report_runs.REPORTED | {"cross_fit": 3}, "detectors": ["knn"]}
    data = ["--data.ood={}", "--data.splits={val: 0, test: 0}"]
    (root / "data/id/cat/0.png").rename(root / "data/id/dog/cat.png")  # a wrong label
    report_runs.zero_shot(root, "folder", *data, **whole)
    (root / "data/id/dog/cat.png").rename(root / "data/id/cat/0.png")
    probe = {"linear_probe": {"epochs": 4, "batch_size": 16, "lr": 0.01}}
    settings = {"evaluation": report_runs.REPORTED}
    train.main(["--config", tiny_clip.config(root, "probe", probe, **settings)])
    train.main(["--config", tiny_clip.config(root, "seeds", probe, **settings), "--seeds", "1", "2"])
    comparison = root / "comparison.html"
    evaluation.main(["--compare", str(run), str(runs / "probe"), "--html", str(comparison)])
    one_of_each = root / "one_of_each.html"
    specs = [f"{run}:knn", f"{runs / 'probe'}:msp", f"{run}:mcm"]
    evaluation.main(["--compare", *specs, "--html", str(one_of_each)])
    hostile = report_runs.hostile(tiny_clip.make(tmp_path_factory.mktemp("hostile")))
    report_runs.remade(run, report_runs.halfway)  # with images in both galleries
    made = {name: runs / name / "report.html" for name in ("report", "seeds", "no_ood", "folder")}
    return made | {"comparison": comparison, "one_of_each": one_of_each, "hostile": hostile / "report.html"}


class Opened:
    """A page in the browser, and what it said, asked for and popped up while it was open."""

    def __init__(self, browser, path, scheme="light", viewport=DESK):
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said, self.requests, self.dialogs = [], [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def open_details(self):
        self.page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")


@pytest.fixture
def opened(browser, pages):
    """Opens a page by name; closed after the test."""
    open_now = []

    def open_page(name, **how):
        open_now.append(Opened(browser, pages[name], **how))
        return open_now[-1]

    yield open_page
    for each in open_now:
        each.context.close()


@pytest.mark.parametrize("name", PAGES)
def test_opening_asks_for_the_file_alone_and_complains_of_nothing(opened, pages, name):
    at = opened(name)
    at.open_details()
    at.page.mouse.wheel(0, 5000)
    at.page.wait_for_timeout(100)
    assert at.said == [] and at.dialogs == []
    assert [url for url in at.requests if not url.startswith("data:")] == [pages[name].as_uri()]


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_screen(opened, name, viewport):
    at = opened(name, viewport=viewport)
    at.open_details()
    assert at.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_on_a_phone_a_table_scrolls_inside_itself_and_keeps_its_first_column(opened):
    page = opened("report", viewport=PHONE).page
    table = page.locator(".scroll").first
    assert table.evaluate("each => each.scrollWidth > each.clientWidth")
    before = page.locator("tbody th").first.bounding_box()["x"]
    table.evaluate("each => each.scrollLeft = 200")
    assert table.evaluate("each => each.scrollLeft") > 100
    assert page.locator("tbody th").first.bounding_box()["x"] == pytest.approx(before, abs=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_text_stands_out_from_its_background(opened, name, scheme):
    at = opened(name, scheme=scheme)
    at.open_details()
    found = at.page.evaluate(CONTRAST)
    assert len(found) > 40
    assert [words for contrast, words in found if contrast < 4.5] == []


def test_dark_is_dark(opened):
    colours = [opened("report", scheme=scheme).page.evaluate("getComputedStyle(document.body).backgroundColor") for scheme in ("light", "dark")]  # fmt: skip
    light, dark = ([int(each) for each in colour[4:-1].split(",")] for colour in colours)
    assert min(light) > 230 and max(dark) < 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_stand_out_from_the_card(opened, scheme):
    """3 : 1, what WCAG asks of graphics."""
    page = opened("report", scheme=scheme).page
    page.evaluate("""() => {
      for (let i = 0; i < 7; i++) {
        const each = document.createElement('p');
        each.textContent = 'line'; each.style.color = `var(--c${i})`; document.querySelector('details').append(each);
      }
    }""")
    lines = [contrast for contrast, words in page.evaluate(CONTRAST) if words == "P: line"]
    assert len(lines) == 7 and min(lines) >= 3


def test_details_open_and_show_their_charts(opened):
    page = opened("report").page
    panel = page.locator("details", has=page.locator("summary b", has_text="mahalanobis_pp"))
    assert not panel.locator("svg").first.is_visible()
    panel.locator("summary").click()
    boxes = [panel.locator("figure svg").nth(number).bounding_box() for number in range(3)]
    assert all(box["width"] > 200 and box["height"] > 120 for box in boxes)
    drawn = (
        panel.locator("figure svg")
        .nth(1)
        .locator("path")
        .evaluate_all("all => all.map(e => getComputedStyle(e).stroke)")
    )
    assert len({stroke for stroke in drawn if stroke.startswith("rgb")}) >= 3  # axes, and a colour a set


def test_charts_are_not_clipped_away_by_what_other_charts_define(opened):
    """Every clip path that a chart names is one of its own."""
    strays = opened("report").page.evaluate("""() => [...document.querySelectorAll('figure svg')].flatMap(svg =>
      [...svg.querySelectorAll('[clip-path]')].map(e => e.getAttribute('clip-path').slice(5, -1))
        .filter(id => !svg.querySelector('#' + CSS.escape(id))))""")
    assert strays == []


@pytest.mark.parametrize("name", ["report", "hostile"])
def test_thumbnails_are_shown(opened, name):
    sizes = opened(name).page.evaluate("[...document.images].map(each => [each.naturalWidth, each.width])")
    assert len(sizes) >= 4 and all(natural > 0 and shown > 80 for natural, shown in sizes)


def test_names_that_hold_markup_make_no_elements(opened):
    at = opened("hostile")
    at.open_details()
    at.page.wait_for_timeout(200)
    count = "selector => document.querySelectorAll(selector).length"
    assert {each: at.page.evaluate(count, each) for each in ("script", "[onerror]", "[onclick]", "[onload]", "img[src=x]")} == {
        "script": 0, "[onerror]": 0, "[onclick]": 0, "[onload]": 0, "img[src=x]": 0,
    }  # fmt: skip
    assert at.dialogs == []
    text = at.page.evaluate("document.body.textContent")
    assert all(
        each in text for each in (report_runs.NAME, report_runs.SET, report_runs.CLASS, "<img src=x onerror=alert(")
    )


def test_a_comparisons_links_lead_to_the_reports(opened):
    at = opened("comparison")
    at.page.locator("a").nth(1).click()
    assert at.page.title() == "probe: OOD detection" and at.said == []


def test_dots_of_a_comparison_lie_on_their_intervals(opened):
    at = opened("comparison")
    boxes = at.page.locator("td.chart svg").first
    bar, dot = boxes.locator("line.bar").bounding_box(), boxes.locator("circle").bounding_box()
    middle = dot["x"] + dot["width"] / 2
    assert bar["x"] - 1 <= middle <= bar["x"] + bar["width"] + 1


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_the_map_of_a_folder_is_drawn_and_labels_are_shown(opened, viewport):
    page = opened("folder", viewport=viewport).page
    box = page.locator(".map svg").bounding_box()
    assert box["width"] > 300 and 0.5 < box["height"] / box["width"] < 0.7
    dots = page.locator(".map svg use").evaluate_all("all => new Set(all.map(e => getComputedStyle(e).fill)).size")
    assert dots >= 2
    assert page.locator("li", has_text="dog → cat").count() >= 1
