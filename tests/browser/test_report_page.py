"""The report page in a real browser, at a desk and on a phone, in the light and in the dark.

apt-get install chromium
pip install playwright axe-playwright-python
python -m pytest -o addopts=-ra tests/browser

PAGE_SCREENSHOTS=FOLDER keeps what it looked like.
"""

import os
import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from tests.helpers.command_lines import run_cli
from tests.helpers.image_tars import jpeg, labelled, write_shard, write_wds
from tests.helpers.published_sets import write_aro, write_crossmodal, write_waterbirds

CHROMIUM = "/usr/bin/chromium"
DESK, PHONE = {"width": 1200, "height": 900}, {"width": 400, "height": 844}


@pytest.fixture(scope="module")
def page_file(finished_run, tmp_path_factory):
    """A page with everything that one can show: curves, shifts, matrices, mistakes, captions,
    languages, kinds, groups and confidences."""
    folder = tmp_path_factory.mktemp("page")
    write_shard(folder / "mine.tar", {f"{i:02}": (jpeg(i), f"<shade> {i}") for i in range(20)})
    for name in ("imagenet1k", "imagenetv2", "imagenet-r"):
        write_wds(folder / f"data/wds_{name}", labelled(60), names=("cat", "dog", "owl & co"))
    write_crossmodal(folder / "data", images=12)
    write_aro(folder / "data", "relation", ["behind"] * 5 + ["holding"] * 3, "relation_name")
    write_waterbirds(folder / "data")
    result = run_cli(
        "flaxclip.benchmark", str(finished_run), "--watch", "--out", "results", "--cache", "cache",
        "--tasks", "scenes-unseen", "retrieval:mine.tar", "imagenet", "imagenetv2", "imagenet-r",
        "crossmodal3600:de,quz", "aro_relation", "waterbirds", cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "results/report.html"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(params=[(size, scheme) for size in (DESK, PHONE) for scheme in ("light", "dark")],
                ids=lambda param: f"{param[0]['width']}-{param[1]}")  # fmt: skip
def page(request, browser, page_file):
    """The page, opened; at the end, nothing may have been complained about or fetched."""
    size, scheme = request.param
    page = browser.new_page(viewport=size, color_scheme=scheme)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    yield page
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    page.close()


def test_nothing_is_out_of_place(page, request):
    assert page.title() == "flaxclip benchmark"
    assert page.get_by_text(re.compile("^[0-9]+ results of 2 checkpoints")).is_visible()
    assert page.get_by_role("heading", name=re.compile("step 8 against .* step 4")).is_visible()
    assert page.locator("details[open] img").first.is_visible()
    for heading in ("Summary", "Scores against training step", "Training", "Distribution shift"):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible()
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for heading in ("By language", "By kind", "By group", "Confidence and accuracy"):
        assert page.get_by_role("heading", name=heading, exact=True).first.is_visible()
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        name = request.node.callspec.id
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
    # Wide tables scroll inside themselves, never the page.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    # A score, its interval and its chance are seen without scrolling.
    assert page.evaluate("""[...document.querySelectorAll('.wide[aria-label^="Scores of"]')]
      .every(table => table.scrollWidth <= table.clientWidth + 1)""")
    # Which of two is better is seen without scrolling.
    assert page.evaluate("""[...document.querySelectorAll('.comparison td.left')].every(cell =>
      cell.getBoundingClientRect().right
      <= cell.closest('.wide').getBoundingClientRect().right + 1)""")
    # No name is broken inside a word: a word of it is as high as one line.
    assert (
        page.evaluate("""[...document.querySelectorAll('th[scope="row"], td.left, summary')]
      .flatMap(cell => [...cell.childNodes].filter(node => node.nodeType === Node.TEXT_NODE))
      .flatMap(node => [...node.data.matchAll(/[\\p{L}\\p{N}]+/gu)].map(word => {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        return range.getClientRects().length > 1 ? word[0] : "";
      })).filter(Boolean)""")
        == []
    )
    # No label of a chart is cut off: an image shows what lies within its own box.
    assert page.evaluate("""[...document.querySelectorAll('svg text')].every(text => {
      const [box, image] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
      return box.left >= image.left - 1 && box.right <= image.right + 1;
    })""")
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) > 12
    assert all(widths)


def test_accessibility_rules_hold(page):
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_tables_sort_by_mouse_and_by_keyboard(page):
    table = page.locator("table.sortable").first
    heading = table.get_by_role("columnheader").filter(has_text="step 8").first

    def values():
        column = heading.evaluate("cell => cell.cellIndex")
        cells = table.locator(f"tbody tr > :nth-child({column + 1})")
        return [float(v) for v in cells.evaluate_all("cells => cells.map(c => c.dataset.value)")]

    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    assert len(set(values())) > 1


def test_every_part_can_be_reached_and_opened_by_keyboard(page):
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    opened = page.locator("details[open]")
    before = opened.count()
    assert before > 1  # the first ones are open from the start
    page.keyboard.press("Enter")
    assert opened.count() == before - 1
    page.keyboard.press("Enter")
    assert opened.count() == before


def test_the_page_works_without_a_script_and_a_network(browser, page_file):
    page = browser.new_context(java_script_enabled=False, offline=True).new_page()
    page.goto(page_file.as_uri())
    assert page.get_by_role("heading", name="Summary").is_visible()
