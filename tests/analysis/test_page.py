"""The data of the interactive front: a point per row and trial, with its knobs, curves and answers."""

import numpy as np
import pytest
from slime_ray.analysis import page, report
from slime_ray.analysis.page import differing, pieces
from slime_ray.analysis.report import Findings

from slime_ray.runs import results

from .conftest import add_trial, finish, outcomes


def front_of(run):
    found = Findings(run)
    return page.front_data(run, found.main, found.searched)


@pytest.fixture(scope="module")
def data(judged_run):
    return front_of(results.load(judged_run))


def point(data, label, kind):
    [found] = [point for point in data["points"] if (point["label"], point["kind"]) == (label, kind)]
    return found


def test_every_row_and_every_search_trial_is_a_point(data):
    kinds = [point["kind"] for point in data["points"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {"search trial": 8, "confirmed winner": 1, "arm": 7}
    assert len({point["id"] for point in data["points"]}) == 16
    # Rows lie on top of the trials.
    assert kinds == sorted(kinds, key=lambda kind: kind != "search trial")


def test_a_point_stands_where_the_tables_say_and_tells_knobs_and_intervals(data):
    winner = point(data, "search-0004", "confirmed winner")
    assert (winner["x"], winner["left"], winner["right"]) == (0.5, 0.4, 0.6)
    assert (winner["y"], winner["low"], winner["high"]) == (75.0, 53.95, 88.48)
    assert ["win rate %", "75.0 [54.0, 88.5]"] in winner["facts"]
    assert ["objective.hard_margin", "2"] in winner["facts"]
    trial = point(data, "search-0004", "search trial")
    assert trial["x"] == trial["left"] == 0.5
    # 17 of 24 prompts.
    assert trial["y"] == pytest.approx(70.83)
    assert trial["low"] < 70.83 < trial["high"]
    assert ["objective.hard_margin", "2"] in trial["facts"]


def test_the_front_runs_from_the_left_edge_down_the_unbeaten_trials(data):
    assert [corner["x"] for corner in data["front"]] == [0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9]
    assert data["front"][0]["y"] == data["front"][1]["y"] == 70.83
    assert data["front"][-1]["y"] == 0


def test_a_row_has_the_curves_of_all_its_seeds_and_the_answers_of_its_first(data):
    detail = data["details"]["arm nll"]
    assert [(line["name"], line["seed"]) for line in detail["lines"]] == [
        ("chosen", 0), ("rejected", 0), ("chosen", 1), ("rejected", 1),
    ]  # fmt: skip
    assert data["steps"][detail["lines"][0]["steps"]] == [0, 5, 10]
    assert detail["lines"][0]["values"] == [-0.1, -0.15, -0.2]
    assert detail["seed"] == 0
    assert [data["texts"][pair["prompt"]] for pair in detail["answers"]] == [f"question {i}" for i in range(5)]
    assert detail["answers"][0]["verdict"] == "wins"
    # The diverged seed of simpo has no answers; the other has.
    assert len(data["details"]["arm simpo"]["answers"]) == 5


def test_what_trials_share_is_there_once(data):
    assert sum(len(detail["lines"]) for detail in data["details"].values()) > len(data["steps"]) == 2
    assert len(data["texts"]) == len(set(data["texts"]))
    assert data["texts"].count("baseline 0") == 1


def test_long_curves_are_told_by_means_and_long_answers_are_cut(tmp_path):
    add_trial(tmp_path, "a", label="a", won=[1.0] * 6, answer=lambda index: "x" * 5000, updates=600)
    run = results.load(finish(tmp_path))
    data = front_of(run)
    # 121 evaluations, at 0 to 600: the first stretch has three.
    chosen = data["details"]["arm a"]["lines"][0]
    steps = data["steps"][chosen["steps"]]
    assert len(steps) == len(chosen["values"]) == 60
    assert (steps[0], steps[-1], chosen["updates"]) == (10, 600, 3)
    assert chosen["values"][0] == pytest.approx(-0.1 - 0.01 * 5)


def test_the_more_trials_the_shorter_the_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ALL_ANSWERS", 200_000)
    for number in range(20):
        name = f"search-{number:04}"
        add_trial(tmp_path, name, phase="search", won=[1.0] * 5, answer=lambda index: "x" * 5000, updates=0)
    data = front_of(results.load(finish(tmp_path)))
    assert max(map(len, data["texts"])) == len("x" * 1000 + " … (5000 characters)")


def test_without_a_point_there_is_no_front_and_without_a_judge_accuracy_is_on_the_axis(failed_run, unjudged_run):
    assert front_of(results.load(failed_run)) is None
    unjudged = front_of(results.load(unjudged_run))
    assert unjudged["y"] == "held-out preference accuracy, %"
    assert not unjudged["judged"]


def marked(text, spans):
    return "".join(f"[{piece}]" if is_marked else piece for is_marked, piece in pieces(text, spans))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("the same words", "the same words", ("the same words", "the same words")),
        ("The cat sat down.", "The dog sat.", ("The [cat] sat [down].", "The [dog] sat.")),
        ("so  it is\n<b>", "so it is <i>", ("so  it is\n<[b]>", "so it is <[i]>")),
        ("one two \U0001f600 three", "one two four", ("one two [\U0001f600 three]", "one two [four]")),
        ("nothing of this", "is shared by those", ("nothing of this", "is shared by those")),
        ("", "one", ("", "one")),
        # An answer that repeats itself would take many seconds.
        ("! " * 1000, "! . " * 500, ("! " * 1000, "! . " * 500)),
    ],
)
def test_words_that_the_other_has_not_are_marked(one, other, expected):
    ours, theirs = differing(one, other)
    assert (marked(one, ours), marked(other, theirs)) == expected


def test_what_is_not_marked_is_the_same_in_both():
    rng = np.random.default_rng(0)
    for _ in range(200):
        one, other = (" ".join(rng.choice(list("abc"), rng.integers(1, 20))) for _ in range(2))
        ours, theirs = differing(one, other)
        if not ours and not theirs:
            continue
        texts = [
            "".join(piece for is_marked, piece in pieces(text, spans) if not is_marked).split()
            for text, spans in ((one, ours), (other, theirs))
        ]
        assert texts[0] == texts[1]
        assert "".join(piece for _, piece in pieces(one, ours)) == one


def test_the_page_marks_them_and_shows_markup_as_text(tmp_path):
    answers = {"answer": lambda index: f"baseline <img src=x> {index}"}
    add_trial(tmp_path, "arm-only-s0", label="only", won=outcomes(0.75), **answers)
    run = finish(tmp_path, {"seeds": [0], "experiment": {"arms": [{"label": "only"}]}})
    page = report.write_report(run, tmp_path / "out").html.read_text(encoding="utf-8")
    assert "<p>baseline <ins>&lt;img src=x&gt;</ins> 0</p>" in page
    assert "<p>baseline 0</p>" in page
