"""The report page in a real browser, at a desk and on a phone, in the light and in the dark.

apt-get install chromium
pip install playwright axe-playwright-python
python -m pytest -o addopts=-ra tests/browser

PAGE_SCREENSHOTS=FOLDER keeps what it looked like.
"""

import os
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from tests.helpers.command_lines import run_cli
from tests.helpers.image_tars import jpeg, labelled, write_shard, write_wds

CHROMIUM = "/usr/bin/chromium"
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def page_file(finished_run, tmp_path_factory):
    """A page with everything that one can show: curves, shifts, matrices, mistakes, captions."""
    folder = tmp_path_factory.mktemp("page")
    write_shard(folder / "mine.tar", {f"{i:02}": (jpeg(i), f"<shade> {i}") for i in range(20)})
    for name in ("imagenet1k", "imagenetv2", "imagenet-r"):
        write_wds(folder / f"data/wds_{name}", labelled(60), names=("cat", "dog", "owl & co"))
    result = run_cli(
        "flaxclip.benchmark", str(finished_run), "--watch", "--out", "results", "--cache", "cache",
        "--tasks", "scenes-unseen", "retrieval:mine.tar", "imagenet", "imagenetv2", "imagenet-r",
        cwd=folder,
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
    for heading in ("Summary", "Scores against training step", "Training", "Distribution shift"):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible()
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        name = request.node.callspec.id
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
    # Wide tables scroll inside themselves, never the page.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
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
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 1


def test_the_page_works_without_a_script_and_a_network(browser, page_file):
    page = browser.new_context(java_script_enabled=False, offline=True).new_page()
    page.goto(page_file.as_uri())
    assert page.get_by_role("heading", name="Summary").is_visible()
