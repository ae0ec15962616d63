"""The shipped factorial over `composed`: cells that are a named objective train as that objective does."""

from typing import Any

import pytest
from slime_ray.search_spaces import find_space

from slime_ray.config.experiment import Experiment, Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.settings import Settings
from slime_ray.runs.store import RunStore
from slime_ray.training.worker import run_trial

from .small_trials import computed, nothing

NAMED: dict[str, dict[str, Any]] = {
    "without-link": {"name": "dpo", "normalization": "mean", "nll_weight": 1.0},
    "without-link-anchor": {"name": "dpo", "normalization": "mean"},
    "without-length-normalization-link": {"name": "dpo", "nll_weight": 1.0},
    "without-length-normalization-link-anchor": {"name": "dpo"},
    "without-length-normalization-anchor": {"name": "hinge"},
    "without-reference-link-anchor": {"name": "simpo", "gamma": 0.0},
    "without-reference-length-normalization-link": {"name": "cpo", "nll_weight": 1.0},
}
"""Cells, and what they are at the factorial's beta."""


@pytest.fixture(scope="module")
def parts(experiment: Experiment) -> dict[str, Trial]:
    """The cells with seed 0, on the small experiment's model and data, and two updates."""
    shipped = load_experiment(find_space("parts"))
    small = experiment.base | {"objective": shipped.base["objective"]}
    small["training"] = small["training"] | {"updates": 2, "evaluations": 1, "learning_rate": 1e-2}
    cells = shipped.model_copy(update={"base": small})
    return {trial.label: trial for trial in arm_trials(cells) if trial.seed == 0}


@pytest.mark.parametrize("cell", NAMED)
def test_a_cell_that_is_a_named_objective_has_its_row(
    parts: dict[str, Trial], cell: str, storage: RunStore, tmp_path: Any
) -> None:
    composed = parts[cell]
    beta = composed.settings.objective.model_dump()["beta"]
    settings = composed.settings.model_dump(mode="json") | {"objective": {"beta": beta, **NAMED[cell]}}
    named = composed.model_copy(
        update={"trial_id": "named", "label": "named", "settings": Settings.model_validate(settings)}
    )
    for trial in (composed, named):
        run_trial(trial, run=tmp_path, storage=storage, report=nothing)
    rows, curves, answers, pairs = zip(*(computed(tmp_path, trial) for trial in (composed, named)), strict=True)
    numbers = [{key: value for key, value in row.items() if isinstance(value, float)} for row in rows]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-6, nan_ok=True)
    assert rows[0]["updates"] == 2
    assert (pairs[0]["chosen_logp"] - pairs[0]["chosen_logp0"]).abs().max() > 1e-3
    assert answers[0]["answer"].tolist() == answers[1]["answer"].tolist()
    for column in ("chosen_logp", "rejected_logp"):
        assert pairs[0][column].tolist() == pytest.approx(pairs[1][column].tolist(), abs=1e-6)
    losses = [each.query("metric == 'loss'")["value"].tolist() for each in curves]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
