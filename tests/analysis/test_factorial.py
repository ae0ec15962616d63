"""Contrasts and Shapley values against definitions, done by hand or by going through all orders."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from slime_ray.analysis import effects, factorial
from slime_ray.analysis.ablation import Cells

from slime_ray.config.design import COMPONENTS

from . import designs

TWO = ("a", "b")


def test_the_effects_of_two_components_by_hand():
    # Neither 1, a alone 3, b alone 4, both 10.
    cells = [frozenset(), frozenset("a"), frozenset("b"), frozenset("ab")]
    assert factorial.cells_of(TWO) == cells
    values = np.array([1.0, 3.0, 4.0, 10.0])
    found = {name: weights @ values for name, weights in factorial.effect_weights(TWO).items()}
    # a: (3 + 10) / 2 - (1 + 4) / 2. b: (4 + 10) / 2 - (1 + 3) / 2. Together: half of (10 - 4) - (3 - 1).
    assert found == pytest.approx({("a",): 4.0, ("b",): 5.0, ("a", "b"): 2.0})
    shapley = {name: weights @ values for name, weights in factorial.shapley_weights(TWO).items()}
    # a first adds 2, after b 6; b first adds 3, after a 7.
    assert shapley == pytest.approx({"a": 4.0, "b": 5.0})
    assert factorial.total_weights(TWO) @ values == pytest.approx(9.0)


@settings(max_examples=20)
@given(arrays(float, 16, elements=st.floats(-1, 1)))
def test_shapley_values_are_the_mean_over_all_orders_of_adding_components(values):
    of_cell = dict(zip(factorial.cells_of(COMPONENTS), values, strict=True))
    added = dict.fromkeys(COMPONENTS, 0.0)
    orders = list(permutations(COMPONENTS))
    for order in orders:
        for place, component in enumerate(order):
            before, after = frozenset(order[:place]), frozenset(order[: place + 1])
            added[component] += (of_cell[after] - of_cell[before]) / len(orders)
    found = {name: float(weights @ values) for name, weights in factorial.shapley_weights(COMPONENTS).items()}
    assert found == pytest.approx(added, abs=1e-12)


@settings(max_examples=20)
@given(arrays(float, (16, 3, 5), elements=st.floats(-1, 1)))
def test_shapley_values_add_up_to_the_total_effect_seed_by_seed_and_prompt_by_prompt(outcomes):
    parts = sum(factorial.contrast(own, outcomes) for own in factorial.shapley_weights(COMPONENTS).values())
    total = factorial.contrast(factorial.total_weights(COMPONENTS), outcomes)
    assert np.abs(parts - total).max() < 1e-9
    assert total == pytest.approx(outcomes[-1] - outcomes[0])


def test_contrasts_are_orthogonal_and_find_what_made_the_cells():
    weights = factorial.effect_weights(COMPONENTS)
    assert len(weights) == 15
    table = np.array(list(weights.values()))
    assert table @ table.T == pytest.approx(np.eye(15) / 4)
    # Each contrast that made the cells is found alone, with its size.
    planted = {("anchor",): 0.3, ("stabilizer", "hard_margin"): -0.2, COMPONENTS: 0.1}
    cells = 0.5 + sum(size * weights[name] * 4 for name, size in planted.items())
    found = {name: own @ cells for name, own in weights.items()}
    assert found == pytest.approx({name: planted.get(name, 0.0) for name in weights}, abs=1e-12)


def test_a_contrast_of_outcomes_has_the_interval_of_a_difference():
    # With one component its main effect, its Shapley value and the total effect are all one paired difference.
    rng = np.random.default_rng(0)
    without, present = rng.random((2, 6, 30))
    outcomes = np.stack([without, present])
    paired = effects.interval(present - without)
    for weights in (
        factorial.effect_weights(["a"])[("a",)],
        factorial.shapley_weights(["a"])["a"],
        factorial.total_weights(["a"]),
    ):
        assert effects.interval(factorial.contrast(weights, outcomes)) == paired


def test_what_was_not_seen_has_room_by_the_scale_of_the_effect():
    # Cells that all answer alike: of a main effect each of 16 cells counts 1/8, so that one prompt more that it wins
    # and one that it loses move the effect by a quarter as much as they do a difference, all cells together by 1/sqrt(8).
    design = designs.factorial()
    won = np.tile(np.arange(40) % 2.0, (6, 1))
    run = designs.run_of(design, {cell.label: won for cell in design.cells})
    frame = factorial.factorial_effects(Cells.of(run, design)).frame.set_index("effect_of")
    half = stats.t.ppf(0.975, 39) / 40
    assert frame.loc[factorial.ALL, ["effect_low", "effect_high"]].tolist() == pytest.approx([-half, half])
    main = [-half / np.sqrt(8), half / np.sqrt(8)]
    assert frame.loc["anchor", ["effect_low", "effect_high"]].tolist() == pytest.approx(main)
