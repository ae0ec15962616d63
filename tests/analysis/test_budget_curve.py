"""What was found for what was spent: hypervolume and the expected best, by hand and against all that can be drawn."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from slime_ray.analysis import front
from slime_ray.analysis.front import Spent
from slime_ray.analysis.knobs import Searched

from .searches import points_run, search_run


def test_the_hypervolume_is_the_area_above_the_reference_point():
    # 0.5 x 0.5; then 0.25 x 0.5 above it; then 0.1 x 0.1 to its right.
    points = np.array([[0.5, 0.5], [0.25, 1.0], [0.6, 0.1]])
    assert front.hypervolumes(points) == pytest.approx([0.25, 0.375, 0.385])


@given(arrays(int, st.tuples(st.integers(1, 9), st.just(2)), elements=st.integers(0, 5)))
def test_the_hypervolume_is_the_number_of_cells_below_the_front(points):
    found = front.hypervolumes(points.astype(float))
    for count in range(1, len(points) + 1):
        cells = [
            any(point[0] > x and point[1] > y for point in points[:count])
            for x, y in itertools.product(range(5), repeat=2)
        ]
        assert found[count - 1] == pytest.approx(sum(cells))


def test_the_expected_best_is_the_mean_over_all_subsets():
    # Of 1, 2, 4, 8: the best of two is 2, 4, 8, 4, 8 or 8; of three 4, 8, 8 or 8.
    found = front.expected_best(np.array([4.0, 1.0, 8.0, 2.0]))
    assert found == pytest.approx([15 / 4, 34 / 6, 7, 8])


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


def test_the_expected_best_of_one_scatters_as_a_mean_does():
    searched = Searched.of(search_run(40))
    spread = searched.goals[:, 0].std() / np.sqrt(40)
    assert Spent.of(searched).resampled["win_rate"][:, 0].std() == pytest.approx(spread, rel=0.1)


def test_in_random_order_the_same_trials_end_at_the_same_hypervolume():
    spent = Spent.of(Searched.of(search_run(30)))
    assert spent.shuffled.shape == (front.ORDERS, 30)
    assert spent.shuffled[:, -1] == pytest.approx(spent.hypervolume[-1])
    assert (np.diff(spent.hypervolume) >= 0).all()


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
    assert front.budget_curve(searched, None).frame.empty
