"""The live page in a real browser: what comes appears, what is pressed is done, and nothing fails."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slime_ray.runs import results
from slime_ray.runs.instructions import Instructions
from tests.browsing import CHROMIUM, DESKTOP, PHONE, browser, pages, playwright  # noqa: F401
from tests.end_to_end.conftest import environment
from tests.live.conftest import MARKUP, add, at_work, end, said
from tests.processes import left_behind

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("sketched"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
SWEEP = """\
name: swept
preset: arithmetic
base:
  data: {sft_examples: 200, pairs: 32, held_out_pairs: 16}
  sft: {updates: 10}
  training: {updates: 100000, pairs_per_update: 8, evaluations: 2}
  sentinel: {action: none}
  evaluation: {prompts: 8, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 16}}
arms: {sft: {training.updates: 0}, short: {training.updates: 4}}
seeds: [0]
search: {objective.hard_margin: {uniform: [0.5, 3.0]}}
budget: {trials: 1}
resources: {concurrent_trials: 1}
"""
AT_STEP = re.compile(r"update [1-9]\d* of 100000")


@pytest.fixture
def visit(browser):  # noqa: F811
    """Opens an address; at the end nothing may have been said to the console or popped up."""
    with pages(browser) as new_page:

        def open_(address: str, **options):
            page = new_page(viewport=DESKTOP, **options)
            page.goto(address)
            page.wait_for_selector("html[data-looked]")
            return page

        yield open_


def report_of(page, version: int):
    """The report, once it is so new."""
    page.locator(f"iframe[data-version='{version}']").wait_for()
    return page.frame_locator(f"iframe[data-version='{version}']")


def points(report):
    return report.locator("g.points_marks > path")


def card(page, trial: str):
    return page.locator("#running li").filter(has=page.get_by_role("heading", name=trial, exact=True))


def test_what_comes_appears_and_stays_chosen_and_the_end_is_said(run, serve, visit):
    serving = serve(run)
    page = visit(serving.address)
    report = report_of(page, 1)
    report.locator("#front-detail[data-ready]").wait_for(state="attached")
    assert points(report).count() == 1
    points(report).click()
    report.locator("#front-detail[data-shown]").wait_for()
    add(run, "search-0003", 0.8)
    report = report_of(page, 2)
    report.locator("#front-detail[data-shown='search trial search-0001']").wait_for()
    assert points(report).count() == 2
    # The report is as high as it is: nothing of it scrolls by itself.
    frame = page.frames[-1]
    assert frame.evaluate("document.documentElement.scrollHeight <= innerHeight + 1")
    end(run)
    page.locator("html[data-over]").wait_for(state="attached")
    assert "The sweep has ended: finished." in page.locator("#standing").inner_text()
    said = page.locator("#said").text_content()
    assert str(run / "report" / "report.html") in said
    report_of(page, 3)
    assert serving.over()
    # Nobody is asked any more, and the last report is still there.
    assert page.locator("main button:visible").count() == 0
    assert points(report_of(page, 3)).count() == 2


def test_stages_that_are_made_are_shown_with_their_steps(run, serve, visit):
    said(run, trials={}, stages={"doing": "making sft", "step": 12, "updates": 80})
    page = visit(serve(run).address)
    assert page.locator("#idle").inner_text() == "For all trials: making sft, 12 of 80."
    said(run, stages={"doing": f"making {MARKUP}"})
    page.locator("#idle").get_by_text(MARKUP).wait_for()


def test_markup_of_a_run_is_text(run, serve, visit):
    page = visit(serve(run).address)
    report = report_of(page, 1)
    assert f"search-0001: it diverges {MARKUP}" in page.locator("#alarms").text_content()
    assert f"search-0002: {MARKUP}" in page.locator("#alarms").text_content()
    assert MARKUP in report.locator("article p").nth(1).text_content()
    assert page.title() == "seen: 1 of 4"
    assert page.locator("main script, main img").count() == 0


def test_a_button_that_is_pressed_twice_stops_once(run, serve, visit):
    page = visit(serve(run).address)
    stop = page.get_by_role("button", name="Stop search-0002")
    stop.click()
    page.get_by_role("button", name="Stop it").dblclick()
    page.locator("#said", has_text="search-0002 will end at its next report").wait_for()
    page.locator("#running", has_text="Will stop at its next report").wait_for()
    assert stop.is_disabled()
    assert Instructions.read(run).stops == {"search-0002": "stopped by hand"}


def test_keyboard_and_screen_reader_clone_a_trial(run, serve, visit):
    page = visit(serve(run).address)
    page.get_by_role("button", name="Clone search-0002").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Clone a trial")
    dialog.wait_for()
    knobs = dialog.get_by_label("Its knobs")
    assert knobs.input_value() == "objective.hard_margin=1"
    knobs.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("objective.hard_margn=2")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    # What is wrong is said, and what was typed stays.
    dialog.get_by_role("alert").filter(has_text="Did you mean 'hard_margin'").wait_for()
    knobs.fill("objective.hard_margin=2")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="search-0002-clone-1 runs next.").wait_for()
    assert [clone.values for clone in Instructions.read(run).clones] == [{"objective.hard_margin": 2}]
    # The focus is back where it was, and stays there when the page looks again.
    at_work(run, step=8)
    card(page, "search-0002").filter(has_text="update 8 of 9").wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Clone search-0002"
    tree = page.locator("body").aria_snapshot()
    for line in ('heading "Running now" [level=2]', 'progressbar "Updates of search-0002"', "iframe", "status"):
        assert line in tree
    page.get_by_role("button", name="Search on").click()
    page.get_by_label("Further trials").fill("2")
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="2 trials more").wait_for()
    assert Instructions.read(run).extensions == {3: 2}


def test_without_the_token_it_is_read_only_and_fits_a_phone(run, serve, visit):
    page = visit(serve(run).address.partition("#")[0], color_scheme="dark")
    report_of(page, 1)
    assert page.locator("main button:visible").count() == 0
    assert "Read-only" in page.locator("#locked").inner_text()
    assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(25, 25, 24)"
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.ray
@pytest.mark.faults
def test_a_real_sweep_is_watched_stopped_and_extended(tmp_path: Path, serve: Callable, visit):
    source, run = tmp_path / "swept.yaml", tmp_path / "swept"
    source.write_text(SWEEP)
    command = [sys.executable, "-m", "slime_ray", "sweep", str(source), "--storage", str(tmp_path), "--quiet"]
    out = (tmp_path / "out.txt").open("w")
    sweep = subprocess.Popen(command, stdout=out, stderr=out, env=environment(), start_new_session=True)
    try:
        while not (run / "status.json").exists():
            assert sweep.poll() is None, (tmp_path / "out.txt").read_text()
        serving = serve(run)
        page = visit(serving.address)
        page.set_default_timeout(240_000)
        # A point appears with each arm.
        report = page.frame_locator("iframe:not(.next)")
        for place in range(2):
            points(report).nth(place).wait_for()
        card(page, "search-0001").filter(has_text=AT_STEP).wait_for()
        page.get_by_role("button", name="Search on").click()
        page.get_by_label("Further trials").fill("1")
        page.keyboard.press("Enter")
        page.locator("#said", has_text="1 trials more").wait_for()
        page.locator("#standing", has_text="of 4 trials").wait_for()
        for name in ("search-0001", "search-0002"):
            card(page, name).filter(has_text=AT_STEP).wait_for()
            page.get_by_role("button", name=f"Stop {name}").click()
            page.get_by_role("button", name="Stop it").click()
            card(page, name).wait_for(state="detached")
        page.locator("html[data-over]").wait_for(state="attached")
        assert serving.over().startswith("swept: finished")
        assert sweep.wait(240) == 0, (tmp_path / "out.txt").read_text()
    finally:
        sweep.kill()
        out.close()
    rows = results.finished_trials(run)
    assert {name: row["status"] for name, row in rows.items()} == {
        "arm-sft-s0": "completed", "arm-short-s0": "completed", "search-0001": "stopped", "search-0002": "stopped",
    }  # fmt: skip
    assert results.read_manifest(run)["experiment"]["budget"]["trials"] == 2
    assert left_behind(sweep.pid) == []
