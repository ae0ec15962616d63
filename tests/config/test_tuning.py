"""Warnings about knobs far outside the range in which the literature tunes their objective."""

import pytest

from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.tuning import tuning_warnings


def experiment(**keys) -> Experiment:
    return load_experiment({"name": "one", "preset": "arithmetic", **keys})


def arms(**objective) -> Experiment:
    return experiment(arms={"one": {"objective": objective}})


def test_a_beta_of_dpo_given_to_simpo_is_named_with_its_range_and_source():
    (warning,) = tuning_warnings(arms(name="simpo", beta=0.1, gamma=1.0))
    assert warning.startswith("arm one: objective.beta is 0.1, and simpo (arXiv 2405.14734) is tuned from 2 to 10")


@pytest.mark.parametrize(
    ("objective", "times"),
    [({"name": "dpo", "normalization": "mean", "beta": 0.1}, "smaller"),
     ({"name": "simpo", "beta": 2.0, "remove": ["length_normalization"]}, "larger")],
)  # fmt: skip
def test_a_beta_for_sums_of_log_probs_is_not_taken_for_one_for_means(objective, times):
    (warning,) = tuning_warnings(arms(**objective))
    assert f"as many times {times} as an answer has tokens" in warning


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "dpo", "beta": 0.1},
        {"name": "dpo", "beta": 3.0},
        {"name": "dpo", "normalization": "mean", "beta": 5.0},
        {"name": "simpo", "beta": 0.1, "remove": ["length_normalization"]},
        {"name": "dpo", "nll_weight": 0.0},
        {"name": "slime", "stabilizer_strength": 0.0},
        {"name": "ipo", "normalization": "sum"},
        {"name": "alphapo", "beta": 90.0},
    ],
)
def test_what_is_usual_or_near_it_or_switched_off_or_without_a_known_range_is_not_spoken_of(objective):
    assert tuning_warnings(arms(**objective)) == []


def test_a_searched_range_is_spoken_of_where_none_of_it_is_near():
    def search(low: float, high: float, **name) -> list[str]:
        space = {"objective.beta": {"log_uniform": [low, high], **name}}
        return tuning_warnings(
            experiment(base={"objective": {"name": "dpo"}}, search=space, budget={"trials": 4})
        )  # fmt: skip

    assert search(0.001, 100.0) == []
    (warning,) = search(5.0, 50.0)
    assert warning.startswith("search: objective.beta is 5 to 50, and dpo (arXiv 2305.18290) is tuned from 0.01 to 1")


def test_each_objective_of_one_search_has_its_own_range_and_a_warning_is_given_once():
    space = {
        "objective.name": {"choice": ["dpo", "simpo"]},
        "objective.beta[dpo]": {"log_uniform": [0.01, 1.0], "when": {"objective.name": "dpo"}},
        "objective.beta[simpo]": {"log_uniform": [0.01, 0.1], "when": {"objective.name": "simpo"}},
    }
    (warning,) = tuning_warnings(experiment(search=space, budget={"trials": 4}))
    assert "objective.beta is 0.01 to 0.1, and simpo" in warning
    same = {"objective": {"name": "simpo", "beta": 0.1}}
    three = {
        name: {**same, "training": {"learning_rate": rate}}
        for name, rate in zip("abc", (1e-4, 2e-4, 3e-4), strict=True)
    }
    (warning,) = tuning_warnings(experiment(arms=three))
    assert warning.startswith("arm a, arm b and 1 more: ")
