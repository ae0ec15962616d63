"""The shipped factorial over `composed`: cells that are a named objective compute what that objective does."""

from typing import Any

import pytest
import torch
from slime_ray.search_spaces import find_space

from slime_ray.config.experiment import Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.objectives import Objective, ReferenceLogps, build_objective

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
def cells() -> dict[str, Trial]:
    return {trial.label: trial for trial in arm_trials(load_experiment(find_space("parts"))) if trial.seed == 0}


def loss_and_gradient(objective: Objective) -> list[torch.Tensor]:
    """On five random pairs, of which some break the hinge."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 1, 4, 2, 5])
    logps = -torch.rand(2, 15, generator=generator, dtype=torch.float64) * 3
    logps.requires_grad_()
    sums = -torch.rand(2, 5, generator=generator, dtype=torch.float64) * 6
    loss = objective(logps[0], lengths, logps[1], lengths, reference=ReferenceLogps(*sums)).loss
    return [loss, *torch.autograd.grad(loss, logps)]


@pytest.mark.parametrize("cell", NAMED)
def test_a_cell_that_is_a_named_objective_computes_what_that_does(cells: dict[str, Trial], cell: str) -> None:
    composed = cells[cell].settings.objective
    named = build_objective(beta=composed.model_dump()["beta"], **NAMED[cell])
    for found, expected in zip(*map(loss_and_gradient, (composed.build(), named)), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert composed.build().needs_reference == named.needs_reference
