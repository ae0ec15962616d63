"""The page in a real browser: nothing fails, nothing is loaded, and what a reader can do works. Skipped without one."""

import shutil
from pathlib import Path

import pytest

from .conftest import HOSTILE

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -e '.[browser]'"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, written):
    """Opens the page; at the end nothing may have been said to the console, asked of a network, or popped up."""
    contexts, wrong = [], []

    def open_(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith("file:") or wrong.append(request.url))
        page.goto(Path(written.html).as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_selector("#front-detail[data-ready]", state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def symbol(page, said):
    return page.locator(f'g.points_marks > path[aria-label^="{said}"]')


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_fits_and_follows_the_readers_colours(visit, size):
    for scheme, page_colour in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(25, 25, 24)")):
        page = visit(viewport=size, color_scheme=scheme)
        colour = "element => getComputedStyle(element)"
        assert page.locator("body").evaluate(f"{colour}.backgroundColor") == page_colour
        label = page.locator("g.role-axis-label text").first
        ink = page.locator("h1").evaluate(f"{colour}.color")
        assert label.evaluate(f"{colour}.fill") == ink
        # Drawings that were made before have the reader's colours too.
        background = page.locator("figure > svg [id$=patch_1] path").last
        assert background.evaluate(f"{colour}.fill") == page_colour
        symbol(page, "arm nll").click()
        page.locator("#front-detail[data-shown]").wait_for()
        # The charts lie on the page, not on paper of their own.
        grounds = page.locator(".chart svg").evaluate_all(
            f"all => all.map({colour}).map(style => style.backgroundColor)"
        )
        assert len(grounds) >= 2
        assert set(grounds) == {"rgba(0, 0, 0, 0)"}
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_pointing_at_a_trial_shows_its_knobs_and_intervals(visit):
    page = visit(viewport=DESKTOP)
    assert page.locator("#front-tip").is_hidden()
    symbol(page, "confirmed winner search-0004").hover()
    assert page.locator("#front-tip").is_visible()
    said = page.locator("#front-tip").inner_text()
    assert "objective.hard_margin" in said
    assert "75.0 [58.3, 91.7]" in said
    page.mouse.move(0, 0)
    assert page.locator("#front-tip").is_hidden()


def test_a_click_shows_curves_and_answers_which_do_nothing(visit):
    page = visit(viewport=DESKTOP)
    symbol(page, "arm nll").click()
    detail = page.locator("#front-detail[data-shown='arm nll']")
    detail.wait_for()
    assert detail.locator("h3").inner_text() == "nll"
    # Chosen and rejected of two seeds.
    assert detail.locator("g.mark-line path").count() == 4
    assert detail.locator("article").count() == 5
    first = detail.locator("article").first
    assert first.locator(".prompt").text_content() == "question 0"
    ours, theirs = first.locator(".pair p").all_text_contents()
    assert ours == f"<script>alert(0)</script> & http://x.example {HOSTILE}"
    assert theirs == "baseline 0"
    assert page.locator("article img, article script").count() == 0
    # The next one takes its place.
    page.locator("#front-choice").select_option("search trial search-0002")
    page.locator("#front-detail[data-shown='search trial search-0002']").wait_for()
    assert page.locator("#front-detail h3").count() == 1


def test_the_keyboard_does_the_same(visit):
    page = visit(viewport=DESKTOP)
    # One stop of the tab key: the highest point. Down from it is the next.
    stops = page.locator("g.points_marks > path[tabindex='0']")
    assert stops.count() == 1
    stops.focus()
    assert page.locator("#front-tip").is_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#front-detail[data-shown]").wait_for()
    shown = page.locator("#front-detail").get_attribute("data-shown")
    assert page.evaluate("document.activeElement.__data__.datum.id") == shown
    assert shown.removeprefix("confirmed winner ").removeprefix("arm ") in page.locator("#front-said").text_content()
    page.keyboard.press("End")
    page.keyboard.press("Escape")
    assert page.locator("#front-tip").is_hidden()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("arm simpo")


def test_without_scripts_and_on_paper_the_drawing_stands_there(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("figure.still").is_visible()
    assert page.locator("figure.front").is_hidden()
    page = visit(color_scheme="dark")
    assert page.locator("figure.still").is_hidden()
    assert page.locator("figure.front").is_visible()
    page.emulate_media(media="print")
    assert page.locator("figure.still").is_visible()
    assert page.locator("figure.front").is_hidden()
    assert page.locator("body").evaluate("element => getComputedStyle(element).backgroundColor") == "rgb(255, 255, 255)"


def test_a_screen_reader_hears_tables_with_heads_and_points_with_names(visit):
    page = visit(viewport=DESKTOP)
    tree = page.locator("main").aria_snapshot()
    assert 'columnheader "win rate % [95 %]"' in tree
    assert 'rowheader "nll"' in tree
    assert 'table "made-up: win rate and stability.' in tree
    assert 'button "confirmed winner search-0004: win rate % 75.0 [58.3, 91.7]' in tree
    assert 'heading "Win rate and stability" [level=2]' in tree
