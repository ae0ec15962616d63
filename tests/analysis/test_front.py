"""The front, its knee and what was found for what was spent: by hand, and against all that can be drawn."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from slime_ray.analysis import front
from slime_ray.analysis.front import Spent
from slime_ray.analysis.knobs import Searched

from slime_ray.runs.results import Run

from .searches import SPACE, points_run, search_run

POINTS = arrays(float, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 5).map(float))


def knee(points):
    """The place of the knee, None where there is none."""
    trial, _, _ = front.knees(np.array(points))
    return None if trial < 0 else int(trial)


def test_the_knee_lies_farthest_beyond_the_line_through_the_ends():
    # Ends (0, 1) and (1, 0); (0.6, 0.8) lies 0.4 / sqrt 2 beyond their line, (0.8, 0.5) 0.3 / sqrt 2.
    trial, on_front, distances = front.knees(
        np.array([[0, 1], [1, 0], [0.6, 0.8], [0.8, 0.5], [0.5, 0.5], [np.nan, 2]])
    )
    assert trial == 2
    assert on_front.tolist() == [True, True, True, True, False, False]
    assert distances[:4] == pytest.approx([0, 0, 0.4 / np.sqrt(2), 0.3 / np.sqrt(2)])
    assert np.isnan(distances[4:]).all()


def test_of_equally_far_trials_the_one_with_more_of_the_first_goal_is_the_knee():
    # 0.4 + 0.8 is a rounding error more than 0.5 + 0.7.
    for low, high in (([0.5, 0.8], [0.8, 0.5]), ([0.4, 0.8], [0.5, 0.7])):
        for points in ([[0, 1], [1, 0], low, high], [[0, 1], [1, 0], high, low]):
            assert points[knee(points)] == high


def test_a_front_that_bends_inwards_or_has_no_middle_has_no_knee():
    assert knee([[0, 1], [1, 0], [0.4, 0.4]]) is None
    assert knee([[0, 1], [1, 0]]) is None
    assert knee([[1.0, 1.0], [0.5, 0.5]]) is None
    assert knee(np.full((2, 2), np.nan)) is None


@given(POINTS, st.floats(0.1, 100), st.floats(-10, 10))
def test_the_knee_does_not_depend_on_the_units_of_the_goals(points, factor, shift):
    assert knee(points) == knee(points * [factor, 1] + [shift, 0])


@given(arrays(float, (4, 6, 2), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan])))
def test_many_fronts_at_once_are_what_each_is_alone(points):
    together = front.knees(points)
    for place, alone in enumerate(map(front.knees, points)):
        for many, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(many[place], one)


def test_a_large_search_is_worked_out_in_parts(monkeypatch):
    outcomes, points = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.6]])
    drawn = {0: front.draw_rates(outcomes, resamples=100)}
    whole = front.resample(points, drawn)
    monkeypatch.setattr(front, "AT_ONCE", 7)
    parts = front.resample(points, drawn)
    assert parts.on_front.tolist() == whole.on_front.tolist()
    assert parts.is_knee.tolist() == whole.is_knee.tolist()
    assert parts.points.tolist() == whole.points.tolist()


def test_how_often_a_trial_is_the_knee_is_counted_over_resampled_prompts():
    # Two prompts, of which the middle trial wins one: its resampled win rate is 0, 1/2 or 1 in 1, 2 and 1 of 4 cases.
    # At 1/2 it is the knee. At 1 it beats the first end, and is an end itself; at 0 the second end beats it.
    outcomes = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    points = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.6]])
    drawn = front.resample(points, {0: front.draw_rates(outcomes, resamples=20_000)})
    assert drawn.is_knee == pytest.approx([0, 0, 0.5], abs=0.015)
    assert drawn.on_front == pytest.approx([0.75, 1, 0.75], abs=0.015)
    assert len(drawn.points) == round(20_000 * drawn.is_knee[2])
    assert (drawn.points == [0.5, 0.6]).all()


def test_a_goal_that_is_not_sure_makes_the_knee_less_sure():
    # Two middle trials, whose S differ by a third of their noise: which of them is the knee is nearly a coin's throw.
    points = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.70], [0.5, 0.71]])
    scores = points[:, 1] + np.random.default_rng(0).normal(0, 0.03, (4_000, 4))
    drawn = front.resample(points, {1: scores})
    # The difference of both is normal around 0.01 with a deviation of 0.03 * sqrt 2: P(below 0) = 0.407.
    assert drawn.is_knee[2:] == pytest.approx([0.407, 0.593], abs=0.03)
    held = front.resample(points, {0: np.repeat(points[None, :, 0], 10, axis=0)})
    assert held.is_knee.tolist() == [0, 0, 0, 1]


def test_a_trial_that_was_judged_on_fewer_prompts_is_averaged_over_those():
    outcomes = np.array([[1.0] * 8, [0.0] * 8, [0.5] * 6 + [np.nan] * 2])
    points = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.6]])
    drawn = front.resample(points, {0: front.draw_rates(outcomes, resamples=500)})
    assert drawn.is_knee.tolist() == [0, 0, 1]


def test_the_table_names_the_knee_and_how_sure_it_is():
    table = front.front(Searched.of(run := search_run(40, prompts=64)), run)
    frame = table.frame
    assert frame["win_rate"].is_monotonic_decreasing
    knee = frame[frame["knee"]].iloc[0]
    assert table.caption.endswith(f"its knee is {knee['trial_id']}.")
    assert frame["knee_share"].sum() <= 1
    assert (frame["win_rate_low"] <= frame["win_rate"]).all()
    assert (frame["on_front"] | (frame["knee_share"] >= front.SHOWN)).all()
    assert any(note.startswith("Over the resamples the knee lies at win rate") for note in table.notes)
    assert "knee %" in table.text()


def with_answers(run: Run, won: list[list[int]]) -> Run:
    """The search with these outcomes of its trials, prompt by prompt."""
    rows = [
        {"trial_id": f"search-{number:04}", "prompt_id": f"p{place}", "outcome": float(outcome)}
        for number, outcomes in enumerate(won, start=1)
        for place, outcome in enumerate(outcomes)
    ]
    return replace(run, answers=pd.DataFrame(rows))


def test_a_win_rate_to_be_minimized_is_resampled_as_one():
    run = with_answers(points_run([(0.0, 0.0), (1.0, 1.0)]), [[0] * 8, [1] * 8])
    run.manifest["goals"] = {"win_rate": "minimize", "stability": "maximize"}
    assert front.front(Searched.of(run), run).frame["front_share"].tolist() == [1, 1]


def test_a_trial_off_the_front_is_shown_where_it_is_the_knee_in_one_of_twenty_resamples():
    run = points_run([(1.0, 0.0), (0.0, 1.0), (0.5, 0.8), (0.5, 0.7)])
    # The last two win every other prompt, and not the same ones: which of them is ahead is as the prompts are drawn.
    run = with_answers(run, [[1] * 8, [0] * 8, [1, 0] * 4, [0, 1] * 4])
    frame = front.front(Searched.of(run), run).frame.set_index("trial_id")
    assert frame["on_front"].to_dict() == {
        "search-0001": True, "search-0003": True, "search-0004": False, "search-0002": True
    }  # fmt: skip
    assert front.SHOWN < frame.loc["search-0004", "knee_share"] < 0.5


def test_without_answers_the_front_has_no_shares():
    run = points_run([(0.2, 0.9), (0.5, 0.8), (0.8, 0.1)])
    table = front.front(Searched.of(run), run)
    assert table.frame["trial_id"].tolist() == ["search-0003", "search-0002", "search-0001"]
    assert table.frame["knee"].tolist() == [False, True, False]
    assert "knee %" not in table.text()


def test_stopped_trials_are_never_on_the_front():
    run = points_run([(0.2, 0.9), (0.5, 0.8), (0.9, 0.9)], status=["completed", "completed", "stopped"])
    assert front.front(Searched.of(run), run).frame["trial_id"].tolist() == ["search-0002", "search-0001"]


def test_a_goal_that_is_minimized_is_shown_as_it_is():
    run = points_run([(0.2, 0.1), (0.5, 0.2), (0.8, 0.9)])
    run.manifest["goals"] = {"win_rate": "maximize", "stability": "minimize"}
    frame = front.front(Searched.of(run), run).frame
    assert frame["stability"].tolist() == [0.9, 0.2, 0.1]
    assert frame["knee"].tolist() == [False, True, False]


def test_one_goal_has_no_front():
    run = points_run([(0.2, 0.1), (0.5, 0.2)])
    run.manifest["goals"] = {"win_rate": "maximize"}
    assert front.front(Searched.of(run), run).frame.empty


@given(arrays(int, st.tuples(st.integers(1, 9), st.just(2)), elements=st.integers(0, 5)))
def test_the_hypervolume_is_the_number_of_cells_below_the_front(points):
    found = front.hypervolumes(points.astype(float))
    for count in range(1, len(points) + 1):
        cells = [
            any(point[0] > x and point[1] > y for point in points[:count])
            for x, y in itertools.product(range(5), repeat=2)
        ]
        assert found[count - 1] == pytest.approx(sum(cells))


@given(arrays(float, st.integers(1, 7), elements=st.integers(-4, 4).map(float)))
def test_the_expected_best_is_unbiased_for_every_number_of_trials(values):
    found = front.expected_best(values)
    for count in range(1, len(values) + 1):
        best = [max(subset) for subset in itertools.combinations(values, count)]
        assert found[count - 1] == pytest.approx(np.mean(best))


def test_stopped_and_lost_trials_cost_their_tokens_and_find_nothing():
    run = points_run(
        [(0.5, 0.5), (0.9, 0.9), (0.25, 1.0), (np.nan, 0.0)],
        status=["completed", "stopped", "completed", "diverged"],
        tokens=[100.0, 40.0, 100.0, np.nan],
    )
    spent = Spent.of(Searched.of(run))
    assert spent.tokens.tolist() == [100, 140, 240, 240]
    assert spent.hypervolume == pytest.approx([0.25, 0.25, 0.375, 0.375])
    assert spent.best["win_rate"].tolist() == [0.5] * 4
    # The worst that completed stands in for the two others: 0.25, 0.25, 0.25, 0.5.
    assert spent.expected["win_rate"] == pytest.approx([0.3125, 0.375, 0.4375, 0.5])


def test_what_breaks_a_constraint_was_not_found():
    run = points_run([(0.5, 0.5), (0.9, 0.25), (0.25, 1.0)])
    run.manifest["experiment"]["constraints"] = ["stability >= 0.4"]
    spent = Spent.of(searched := Searched.of(run))
    assert spent.hypervolume == pytest.approx([0.25, 0.25, 0.375])
    assert spent.best["win_rate"].tolist() == [0.5] * 3
    # Of 0.5, 0.25 in place of 0.9, and 0.25.
    assert spent.expected["win_rate"] == pytest.approx([1 / 3, 5 / 12, 0.5])
    notes = front.budget_curve(searched, spent).notes
    assert "that completed and keep the constraints, above" in notes[0]
    assert "those that break a constraint, count" in notes[-1]


def test_the_expected_best_of_one_scatters_as_a_mean_does():
    searched = Searched.of(search_run(40))
    spread = searched.goals[:, 0].std() / np.sqrt(40)
    assert Spent.of(searched).resampled["win_rate"][:, 0].std() == pytest.approx(spread, rel=0.1)


def test_the_table_has_a_row_for_each_doubling_and_says_where_the_hypervolume_starts():
    table = front.budget_curve(searched := Searched.of(search_run(20)), Spent.of(searched))
    assert table.frame["trials"].tolist() == [1, 2, 4, 8, 16, 20]
    assert table.frame["tokens"].tolist() == [1000, 2000, 4000, 8000, 16000, 20000]
    assert "reference point win rate 0, stability 0" in table.notes[0]
    assert table.frame["expected_win_rate"].iloc[-1] == searched.goals[:, 0].max()
    # Up to a fifth of the trials has an interval.
    assert table.frame["expected_win_rate_low"].notna().tolist() == [True, True, True, False, False, False]


def test_goals_without_a_natural_zero_have_no_hypervolume():
    run = search_run(20)
    run.trials["mean_margin"] = run.trials["win_rate"]
    run.manifest["goals"] = {"mean_margin": "maximize", "stability": "maximize"}
    table = front.budget_curve(searched := Searched.of(run), Spent.of(searched))
    assert "hypervolume" not in table.frame
    assert table.notes[0].startswith("Hypervolume: none, since mean margin and stability")


def test_a_goal_to_be_minimized_has_its_best_at_the_bottom():
    run = points_run([(0.5, 0.5), (0.25, 1.0)])
    run.manifest["goals"] = {"win_rate": "minimize"}
    spent = Spent.of(Searched.of(run))
    assert spent.best["win_rate"].tolist() == [0.5, 0.25]
    assert spent.expected["win_rate"] == pytest.approx([0.375, 0.25])


def test_a_search_of_which_nothing_completed_has_no_curve():
    run = points_run([(np.nan, 0.0)], status=["diverged"])
    searched = Searched.of(run)
    assert Spent.of(searched) is None


def test_what_a_trial_set_is_said_in_a_line():
    run = search_run(2)
    run.trials.loc[0, [f"knob.{path}" for path in SPACE]] = [0.123456, 1e-05, 2048.0, '"linear"', None]
    assert front.knob_notes(Searched.of(run), ["search-0001"]) == [
        "search-0001: hard_margin=0.123 anchor_weight=1e-05 pairs_per_update=2048 schedule=linear"
    ]
    assert front.knob_notes(Searched.of(points_run([(0.5, 0.5)], phase=["arm"])), []) == []
