"""Goals and constraints on what is measured of a trial: which there are, what they mean, what is refused."""

import math

import numpy as np
import pyarrow as pa
import pytest

from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.metrics import METRICS, UNMEASURED_EXCESS, Constraint, contradiction, violation
from slime_ray.errors import InputError
from slime_ray.runs.pareto import best_rows, winners
from slime_ray.runs.schema import TRIAL_SCHEMA

GOALS = {"win_rate": "maximize", "stability": "maximize"}
OWN = {"model": {"source": "some/model"}, "data": {"train": "some/pairs"}, "evaluation": {"judge": "none"}}
"""Data and a model that are not embedded."""


def experiment(**changes) -> Experiment:
    data = {
        "name": "one", "preset": "arithmetic", "budget": {"trials": 4},
        "search": {"objective.anchor_weight": {"log_uniform": [0.01, 2.0]}},
    }  # fmt: skip
    return load_experiment(data | changes)


def test_every_metric_is_a_number_of_the_row_and_the_rest_of_the_row_is_none():
    numbers = {
        field.name for field in TRIAL_SCHEMA if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    }
    # What they leave out says how it was run, and not what came of it.
    about = {
        "seed",
        "prompts",
        "pairs",
        "updates",
        "planned_updates",
        "kept_update",
        "row_tokens",
        "workers",
        "attempts",
        "lost_seconds",
    }
    assert set(METRICS) == numbers - about


def test_any_metric_may_be_a_goal_or_a_constraint():
    found = experiment(
        goals={"win_rate": "maximize", "total_seconds": "minimize"},
        constraints=["broken_outputs<=5e-2", "stability >= 0.5"],
    )
    assert found.goals["total_seconds"] == "minimize"
    assert found.constraints == ["broken_outputs <= 0.05", "stability >= 0.5"]
    assert [str(one) for one in found.limits] == found.constraints


def test_constraints_are_part_of_what_is_searched_and_none_change_no_fingerprint():
    plain = experiment()
    assert plain.fingerprint == Experiment.model_validate(plain.model_dump(exclude={"constraints"})).fingerprint
    assert plain.fingerprint != experiment(constraints=["stability >= 0.5"]).fingerprint


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"constraints": ["stabilty >= 0.5"]}, "stabilty: there is no such metric. Did you mean 'stability'"),
        ({"constraints": ["stability = 0.5"]}, "is not understood: write `column <= number`"),
        ({"constraints": ["stability <= win_rate"]}, "is not understood"),
        ({"constraints": ["tokens <= 1e999"]}, "'tokens <= 1e999' is not understood"),
        ({"constraints": ["retention >= -0.01"]}, r"retention needs evaluation\.retention, which is null"),
        ({"goals": {"retention": "maximize", "stability": "maximize"}}, r"goals\.retention needs evaluation\.retention, which is null"),
        ({"constraints": ["stability >= 0.5", "stability <= 0.4"]}, "no trial can keep stability >= 0.5 and stability <= 0.4"),
        ({"constraints": ["win_rate >= 0.5"], "base": {"evaluation": {"judge": "none"}}, "goals": {"stability": "maximize"}}, "win_rate needs a judge"),
        ({"early_stopping": {}, "base": {"training": {"evaluations": 8}}, "goals": {"total_seconds": "minimize"}}, "none of the goals total_seconds is known during training"),
        ({"constraints": ["format_valid >= 0.9"], "base": OWN, "goals": {"stability": "maximize"}}, "format_valid is measured on embedded tasks alone"),
        ({"goals": {"seed": "maximize"}}, "goals.seed: there is no such metric"),
        ({"constraints": ["stability >= 0.5"], "search": {}, "budget": {}, "arms": {"slime": {}}}, "no effect without a `search`"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        experiment(**changes)


def test_early_stopping_ranks_by_the_goals_that_it_can_see_and_names_the_others():
    found = experiment(
        goals={"win_rate": "maximize", "chosen_drift": "maximize", "total_seconds": "minimize"},
        base={"training": {"evaluations": 8}},
        early_stopping={},
    )
    assert found.early_stopping.goals == {"win_rate": "maximize", "chosen_drift": "maximize"}
    assert found.unseen_goals == ["total_seconds"]
    assert experiment(goals={"win_rate": "maximize", "total_seconds": "minimize"}).unseen_goals == []


def test_a_missing_number_breaks_a_constraint():
    low, high = Constraint.parse("broken_outputs <= 0.05"), Constraint.parse("stability >= 0.5")
    assert low.excess({"broken_outputs": 0.15}) == pytest.approx(0.1)
    assert low.excess({"broken_outputs": 0.05}) == 0
    assert high.excess({"stability": 0.7}) == pytest.approx(-0.2)
    assert low.excess({}) == low.excess({"broken_outputs": math.nan}) == UNMEASURED_EXCESS
    assert violation({"broken_outputs": 0.0, "stability": 0.2}, [low, high]) == pytest.approx(0.3)
    assert contradiction([low, high]) is None


def test_what_keeps_all_stands_before_what_dominates_it_and_the_rest_by_how_much_it_breaks():
    def row(name: str, win: float, stability: float, broken: float | None) -> dict:
        return {
            "trial_id": name,
            "status": "completed",
            "win_rate": win,
            "stability": stability,
            "broken_outputs": broken,
        }

    rows = [
        row("far", 0.9, 0.9, 0.5),
        row("kept", 0.6, 0.6, 0.01),
        row("near", 0.8, 0.8, 0.06),
        row("good", 0.7, 0.7, 0.05),
        row("none", 0.9, 0.9, None),
    ]
    limits = [Constraint.parse("broken_outputs <= 0.05")]
    assert [one["trial_id"] for one in best_rows(rows, GOALS, limits)] == ["good", "kept", "near", "far", "none"]
    assert [one["trial_id"] for one in winners(rows, GOALS, limits)] == ["good", "kept"]
    # A brute force of the definition: nothing that is kept is behind anything that is not.
    assert winners([one for one in rows if one["trial_id"] in ("far", "near")], GOALS, limits) == []
    assert best_rows(rows, GOALS)[0]["trial_id"] in ("far", "none")


def test_retention_is_a_metric_where_it_is_measured(tmp_path):
    retention = {"prompts": str(tmp_path / "kept.jsonl"), "scorer": "mine:score"}
    found = experiment(
        goals={"retention": "maximize", "stability": "maximize"},
        constraints=["retention >= -0.01"],
        base={"evaluation": {"retention": retention}},
    )
    assert found.constraints == ["retention >= -0.01"]


def test_the_text_that_an_experiment_keeps_is_read_as_the_very_same_limit():
    limits = ["tokens <= 12345678", "win_rate >= 0.123456789", "kl_to_sft <= 1e-7"]
    kept = experiment(constraints=limits)
    assert [one.limit for one in kept.limits] == [12345678, 0.123456789, 1e-7]
    assert violation({"tokens": 12345679, "win_rate": 1.0, "kl_to_sft": 0.0}, kept.limits) == 1.0


def test_a_number_of_numpys_is_a_number():
    assert violation({"tokens": np.int64(5)}, [Constraint.parse("tokens <= 7")]) == 0.0
