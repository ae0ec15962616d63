"""The page in a real browser: nothing fails, nothing is loaded, and what a reader can do works. Skipped without one."""

from pathlib import Path

import numpy as np
import pytest
from slime_ray.analysis.figures import render
from slime_ray.analysis.printing import Table
from slime_ray.analysis.report import SECTIONS, Findings, build_page, made
from slime_ray.analysis.rows import PARTS

from slime_ray.runs import results
from tests.browsing import CHROMIUM, DESKTOP, PHONE, browser, pages  # noqa: F401

from . import designs
from .conftest import HOSTILE
from .test_league import by_rate, league_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]


@pytest.fixture
def visit(browser, written):  # noqa: F811
    """Opens the page; at the end nothing may have been said to the console, asked of a network, or popped up."""

    def watch(page, wrong):
        page.on("request", lambda request: request.url.startswith("file:") or wrong.append(request.url))

    with pages(browser, watch) as new_page:

        def open_(html=written.html, **options):
            page = new_page(**options)
            page.goto(Path(html).as_uri())
            if options.get("java_script_enabled", True):
                page.wait_for_selector("#front-detail[data-ready]", state="attached")
            return page

        yield open_


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


def made_up(kind, judged_run):
    """A run with the widest tables of its kind."""
    if kind == "search":
        return results.load(judged_run)
    if kind == "ablation":
        design = designs.leave_one_out(["base", "another"])
        rates = [(cell.label, 0.4 + 0.05 * place) for place, cell in enumerate(design.cells)]
        won = {label: designs.outcomes(np.random.default_rng(0), rate) for label, rate in rates}
        shares = {f"gradient_share.{term}": 0.25 for term in ("margin", "anchor", "stabilizer")}
        scores = {label: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] for label in won}
        run = designs.run_of(design, won, stability=scores, activity=shares | {"past_hard_margin": 0.25})
    else:
        run = league_run(by_rate([0.4, 0.5, 0.6, 0.7]), defaults=by_rate([0.5, 0.5, 0.5, 0.5], seed=1))
        run.trials["overrides"] = "{}"
    run.trials[list(PARTS)] = 0.1
    return run


@pytest.mark.parametrize("kind", ["search", "ablation", "league"])
def test_no_table_of_a_desktops_page_scrolls_sideways(visit, judged_run, tmp_path, kind):
    found = Findings(made_up(kind, judged_run))
    entries = [entry for entry in SECTIONS if not entry.caption or entry.name == "pareto"]
    things = [
        (entry, thing if isinstance(thing, Table) else render(thing, "svg")["svg"])
        for entry, thing in made(found, entries)
    ]
    (tmp_path / "page.html").write_text(
        build_page(found.run, found.main, found.searched, found.claims(), things), encoding="utf-8"
    )
    page = visit(tmp_path / "page.html", viewport=DESKTOP)
    widths = page.locator(".wide").evaluate_all("all => all.map(one => [one.scrollWidth, one.clientWidth])")
    assert len(widths) >= 5
    assert [pair for pair in widths if pair[0] > pair[1]] == []
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    # The short heads of the files are words here, and six letters are one cell of small bars.
    heads = page.locator("thead th").all_text_contents()
    assert not {"U", "C", "H", "B", "L", "T", "K", "S", "σ", "acc. %"} & set(heads)
    said = page.locator(".bars").first.get_attribute("aria-label")
    assert said.startswith("unlearning U 0.")
    assert page.locator(".bars").first.locator("i").count() == 6


def test_pointing_at_a_trial_shows_its_knobs_and_intervals(visit):
    page = visit(viewport=DESKTOP)
    assert page.locator("#front-tip").is_hidden()
    symbol(page, "confirmed winner search-0004").hover()
    assert page.locator("#front-tip").is_visible()
    said = page.locator("#front-tip").inner_text()
    assert "objective.hard_margin" in said
    assert "75.0 [54.0, 88.5]" in said
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
    # "answer 0" beside "baseline 0": the words that differ are marked.
    assert page.locator("#front-detail article ins").all_text_contents() == ["answer"] * 5
    assert page.locator("#front-detail article del").all_text_contents() == ["baseline"] * 5


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
    assert 'button "confirmed winner search-0004: win rate % 75.0 [54.0, 88.5]' in tree
    assert 'heading "Win rate and stability" [level=2]' in tree
