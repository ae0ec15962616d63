"""What a run measured of its design, and what two cells have in common."""

import numpy as np
import pytest
from slime_ray.analysis.ablation import Cells
from slime_ray.analysis.rows import common

from .designs import leave_one_out, outcomes, run_of

LABELS = ("full", "without-anchor", "without-stabilizer", "without-soft-margin", "without-hard-margin")


def won(seeds=6, prompts=20, **own):
    """Outcomes of all cells, with those of some cells given."""
    rng = np.random.default_rng(0)
    return {
        label: own.get(label.replace("-", "_"), outcomes(rng, 0.5, seeds=seeds, prompts=prompts)) for label in LABELS
    }


def test_differences_are_paired_by_seed_and_prompt():
    design = leave_one_out()
    values = won()
    found = Cells.of(run_of(design, values), design)
    difference = found.difference(design.cells[1], "win_rate")
    assert difference == pytest.approx(values["without-anchor"] - values["full"])


def test_only_seeds_that_both_cells_have_are_compared_and_the_rest_is_named():
    design = leave_one_out()
    values = won(without_anchor=outcomes(np.random.default_rng(1), 0.5, seeds=4, prompts=20))
    lost = {("without-anchor", 1): "diverged", ("full", 0): "failed"}
    found = Cells.of(run_of(design, values, lost=lost), design)
    difference = found.difference(design.cells[1], "win_rate")
    assert difference == pytest.approx((values["without-anchor"] - values["full"][:4])[[2, 3]])
    assert found.missing(design.cells, "win_rate") == [
        "full seed 0 (failed: loss became nan)",
        "without-anchor seed 1 (diverged: loss became nan)",
        "without-anchor seeds 4, 5 (not measured)",
    ]
    # A trial that was lost has a stability: 0. What never ran has none.
    assert found.missing(design.cells, "stability") == ["without-anchor seeds 4, 5 (not measured)"]
    assert found.difference(design.cells[1], "stability") == pytest.approx([0.5, -0.5, 0.0, 0.0])


def test_a_prompt_that_one_seed_of_one_cell_lacks_is_left_out_for_both():
    design = leave_one_out()
    values = won()
    values["without-anchor"][2, 5] = np.nan
    found = Cells.of(run_of(design, values), design)
    difference = found.difference(design.cells[1], "win_rate")
    kept = np.delete(np.arange(20), 5)
    assert difference == pytest.approx((values["without-anchor"] - values["full"])[:, kept])
    assert found.difference(design.cells[2], "win_rate").shape == (6, 20)


def test_cells_without_anything_in_common_have_no_difference():
    design = leave_one_out()
    lost = {("full", seed): "failed" for seed in range(3)} | {("without-anchor", seed): "failed" for seed in (3, 4, 5)}
    found = Cells.of(run_of(design, won(), lost=lost), design)
    assert found.difference(design.cells[1], "win_rate") is None
    # Without the reference there is nothing to compare with.
    found = Cells.of(run_of(design, won(), lost={("full", seed): "failed" for seed in range(6)}), design)
    assert found.difference(design.cells[2], "win_rate") is None
    assert found.claims(design.cells[1:]) == {}


def test_common_takes_the_intersection_of_seeds_and_items():
    one, other = np.arange(6.0).reshape(2, 3), np.array([[10.0, np.nan, 12.0], [20.0, 21.0, 22.0]])
    seeds, values = common([([3, 1], one), ([1, 7], other)])
    assert seeds == [1]
    assert values.tolist() == [[[3.0, 5.0]], [[10.0, 12.0]]]
    assert common([([1], one[:1]), ([2], other[:1])])[1].size == 0


def test_accuracy_is_of_pairs_and_stands_in_where_nothing_was_judged():
    design = leave_one_out(metric="preference_accuracy")
    values = won()
    values["full"][0, 0] = 0.5
    found = Cells.of(run_of(design, values), design)
    assert (found.rate, found.metric) == ("preference_accuracy", "preference_accuracy")
    # A pair is right where its margin is above 0; the run of the test has the outcome minus one half as margin.
    assert found.rates["full"][1] == pytest.approx(values["full"])
    unjudged = Cells.of(run_of(leave_one_out(), values, judged=False), leave_one_out())
    assert (unjudged.rate, unjudged.metric) == ("preference_accuracy", None)
    assert unjudged.claims(design.cells) == {}
