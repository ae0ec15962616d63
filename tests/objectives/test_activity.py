"""Component activity: gradient shares by hand, and what they promise for every objective."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.objectives import (
    ReferenceLogps,
    ReleasedSlimeObjective,
    SftObjective,
    SlimeObjective,
    component_activity,
    margin_push,
)
from slime_ray.objectives.slime import REMOVABLE

from .golden import leaves

CHOSEN, REJECTED = [[-1.0, -1.0, -1.0, -1.0]], [[-2.0]]
"""One pair of D = 1."""


def activity(objective: SlimeObjective, chosen: list[list[float]], rejected: list[list[float]]) -> dict[str, float]:
    return component_activity(objective, *leaves(chosen), *leaves(rejected))


def test_shares_by_hand() -> None:
    found = activity(SlimeObjective(), CHOSEN, REJECTED)
    # The anchor pulls 0.1 / 4 at each of four tokens; the margin pushes the same four, and the rejected one four times
    # as hard; the stabilizer has one token, with u = 0.75.
    softplus = math.log1p(math.exp(0.75))
    norms = {
        "anchor": 0.1 / 2,
        "stabilizer": 0.1 * 2.5 * softplus**1.5 / (1 + math.exp(-0.75)),
        "margin": margin_push(SlimeObjective(), 1.0) * math.sqrt(1 / 4 + 1),
    }
    expected = {f"gradient_share.{name}": norm / sum(norms.values()) for name, norm in norms.items()}
    margin = margin_push(SlimeObjective(), 1.0)
    expected |= {
        "chosen_share.anchor": 1.0,
        "chosen_share.stabilizer": 0.0,
        "chosen_share.margin": (1 / 4) / (1 / 4 + 1),
    }
    # On the four chosen tokens anchor and margin add up; on the rejected one the margin pushes down, the stabilizer up.
    expected["gradient_ratio"] = (0.1 + margin) / 2 / (margin - norms["stabilizer"])
    assert found == pytest.approx(expected | {"past_hard_margin": 0.0}, rel=1e-12)


def test_terms_are_weighed_as_the_loss_averages_them() -> None:
    # Twice the same pair: half the weight each, so every norm falls by the same root of two.
    assert activity(SlimeObjective(), CHOSEN * 2, REJECTED * 2) == pytest.approx(
        activity(SlimeObjective(), CHOSEN, REJECTED), rel=1e-12
    )
    # Summing all of it three times changes no share.
    assert activity(ReleasedSlimeObjective(), CHOSEN, REJECTED) == pytest.approx(
        activity(SlimeObjective(), CHOSEN, REJECTED), rel=1e-12
    )


def test_past_the_hard_margin_only_anchor_and_stabilizer_pull() -> None:
    found = activity(SlimeObjective(), [[-0.5], [-0.5]], [[-2.0], [-9.0]])
    assert found["past_hard_margin"] == 1.0
    assert found["gradient_share.margin"] == 0.0
    assert found["gradient_share.anchor"] + found["gradient_share.stabilizer"] == pytest.approx(1.0)


@given(
    remove=st.sets(st.sampled_from(list(REMOVABLE))).filter(
        lambda items: not {"hard_margin", "hard_margin_clip"} <= items
    )
)
def test_what_is_removed_has_a_share_of_exactly_zero(remove: set[str]) -> None:
    found = activity(SlimeObjective(remove=tuple(remove)), CHOSEN, REJECTED)
    gone = remove & {"anchor", "stabilizer"}
    if {"soft_margin", "hard_margin"} <= remove:
        gone.add("margin")
    for name in ("anchor", "stabilizer", "margin"):
        assert (found[f"gradient_share.{name}"] == 0) == (name in gone)
    shares = sum(value for name, value in found.items() if name.startswith("gradient_share."))
    assert shares == (0.0 if len(gone) == 3 else pytest.approx(1.0))


@settings(max_examples=20, deadline=None)
@given(weights=st.tuples(*[st.floats(0.01, 10)] * 3), factor=st.floats(0.1, 100))
def test_shares_do_not_change_with_the_size_of_the_whole_loss(
    weights: tuple[float, float, float], factor: float
) -> None:
    one, other = (
        activity(
            SlimeObjective(
                anchor_weight=by * weights[0], stabilizer_strength=by * weights[1], margin_weight=by * weights[2]
            ),
            CHOSEN,
            REJECTED,
        )
        for by in (1.0, factor)
    )
    assert other == pytest.approx(one, rel=1e-9)


def test_a_policy_that_is_nowhere_finite_is_told_as_such() -> None:
    found = activity(SlimeObjective(), [[math.nan]], [[-1.0]])
    assert math.isnan(found["gradient_share.margin"])


def test_the_log_probs_given_are_left_as_they_are() -> None:
    chosen, lengths = torch.tensor([-1.0]), torch.tensor([1])
    with torch.no_grad():
        component_activity(SlimeObjective(), chosen, lengths, chosen, lengths, reference=ReferenceLogps(chosen, chosen))
    assert not chosen.requires_grad
    assert chosen.grad is None


def test_a_loss_that_does_not_reach_the_rejected_tokens_has_no_ratio() -> None:
    found = component_activity(SftObjective(), *leaves(CHOSEN), *leaves(REJECTED))
    assert found == {"gradient_share.nll": 1.0, "chosen_share.nll": 1.0}
