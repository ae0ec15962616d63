"""Gradient shares by hand, and controls that autograd sees push as the full objective does."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.objectives import (
    OBJECTIVES,
    ReferenceLogps,
    ReleasedSlimeObjective,
    SftObjective,
    SlimeObjective,
    component_activity,
    matched_knobs,
    matched_strength,
)
from slime_ray.objectives.gradients import differ, probe, pushes_of
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
    # h = s = 1 / 2: s + 2.5 * h * s * (1 - s).
    margin = 0.5 + 2.5 * 0.125
    norms = {
        "anchor": 0.1 / 2,
        "stabilizer": 0.1 * 2.5 * softplus**1.5 / (1 + math.exp(-0.75)),
        "margin": margin * math.sqrt(1 / 4 + 1),
    }
    expected = {f"gradient_share.{name}": norm / sum(norms.values()) for name, norm in norms.items()}
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


@pytest.mark.parametrize("knobs", [{}, {"remove": ("hard_margin",)}, {"normalization": "sum"}])
def test_a_pair_counts_as_past_the_hard_margin_from_just_there_on(knobs: dict[str, Any]) -> None:
    found = activity(SlimeObjective(**knobs), [[-1.0]] * 4, [[-2.25], [-2.5], [-9.0], [-1.0, -2.0]])
    # The last pair has D = 0.5, as sums 2.
    assert found["past_hard_margin"] == (0.75 if knobs.get("normalization") else 0.5)


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


@settings(max_examples=20)
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


# ---------------------------------------------------------------------------------------------------------------------
# Controls

PAPER = SlimeObjective()
S = 1 / (1 + math.exp(-2.5))
PUSH = S + 2.5 * 1.5 * S * (1 - S)
"""SLIME's at D = 0, where h = 1.5: s * [-dh/dD] + h * gate_sharpness * s * (1 - s), appendix A of arXiv 2602.02383."""


def test_what_the_paper_lacks_without_a_margin() -> None:
    assert pytest.approx((1.18703, 6.77300), abs=5e-6) == (PUSH, PUSH / (2.5 * S * (1 - S)))


def test_matched_strengths_by_hand() -> None:
    # At -5 nats u = 3.75, softplus(u) = 3.77324...
    penalty = math.log1p(math.exp(3.75))
    assert penalty**1 == pytest.approx(3.8, abs=0.05)
    assert penalty**3 == pytest.approx(53.7, abs=0.05)
    assert matched_strength(PAPER, 1.0) == pytest.approx(0.1 * penalty**1.5, rel=1e-14)
    assert matched_strength(PAPER, 3.0) == pytest.approx(0.1 / math.sqrt(penalty), rel=1e-14)
    assert matched_strength(PAPER, 2.5) == 0.1


@given(exponent=st.floats(1, 8), threshold=st.floats(0, 3))
def test_a_token_of_minus_five_nats_costs_the_same(exponent: float, threshold: float) -> None:
    centre = SlimeObjective(stabilizer_threshold=threshold)
    strength = matched_strength(centre, exponent)
    variant = dataclasses.replace(centre, stabilizer_exponent=exponent, stabilizer_strength=strength)
    token, one = torch.tensor([-5.0], dtype=torch.float64), torch.tensor([1])
    costs = [objective(token, one, token, one).value("stabilizer").item() for objective in (variant, centre)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-8)


def test_strengths_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^stabilizer_exponent is 0\.5"):
        matched_strength(PAPER, 0.5)
    with pytest.raises(ValueError, match=r"^stabilizer_threshold is 1000: the stabilizer's terms"):
        matched_strength(SlimeObjective(stabilizer_threshold=1000.0), 3.0)


KINDS: dict[str, Any] = {**OBJECTIVES}


def sigmoid(number: float) -> float:
    return 1 / (1 + math.exp(-number))


@pytest.mark.parametrize(
    ("objective", "remove", "knobs"),
    [
        # beta * sigmoid(gamma) without the target is beta / 2, and sums push 64 times as hard as means of 64 tokens.
        (KINDS["simpo"](nll_weight=0.5), "target_margin", {"nll_weight": 0.5 * 0.5 / sigmoid(0.5)}),
        (KINDS["simpo"](nll_weight=0.5), "length_normalization", {"nll_weight": 32.0}),
        # AlphaPO's reward has the slope exp(-alpha * m).
        (KINDS["alphapo"](nll_weight=1.0), "shape", {"nll_weight": math.exp(-0.25)}),
        # Hinge 1, logistic 1 / 2 at beta * (D - target) = 0.
        (KINDS["composed"](link="hinge", anchor="tokens"), "link", {"link_weight": 2.0}),
        (
            KINDS["composed"](link="gated", target=1.5, anchor="tokens"),
            "link",
            {"link_weight": PUSH / sigmoid(1.5)},
        ),
        # An anchor on scores becomes a sum as the link does.
        (KINDS["composed"](anchor="pairs"), "length_normalization", {}),
        (KINDS["composed"](anchor="tokens"), "length_normalization", {"link_weight": 1 / 64}),
        # Nothing is rescaled, or there is nothing else that it could be matched with.
        (KINDS["simpo"](), "length_normalization", {}),
        (KINDS["composed"](), "length_normalization", {}),
        (KINDS["dpo"](nll_weight=1.0), "reference", {}),
        (KINDS["dpo"](nll_weight=1.0), "nll", {}),
        (KINDS["orpo"](), "odds_ratio", {}),
        # SLIME at D = 0: h alone pushes 1, s alone 2.5 * s * (1 - s). Whether h is clipped makes no difference there.
        (PAPER, "soft_margin", {"margin_weight": PUSH}),
        (PAPER, "hard_margin", {"margin_weight": PUSH / (2.5 * S * (1 - S))}),
        (PAPER, "hard_margin_clip", {}),
        (PAPER, "anchor", {}),
        # Of a single term Adam takes no notice.
        (SlimeObjective(anchor_weight=0.0, stabilizer_strength=0.0), "soft_margin", {}),
        # Without a shortfall nothing is left to push.
        (SlimeObjective(hard_margin=0.0), "soft_margin", {}),
    ],
)
def test_controls_of_other_objectives_by_hand(objective, remove: str, knobs: dict[str, float]) -> None:
    assert matched_knobs(objective, (remove,)) == pytest.approx(knobs)


def test_a_loss_that_is_shifted_by_a_constant_trains_alike() -> None:
    one, other = (
        SlimeObjective(remove=("soft_margin", "hard_margin_clip"), hard_margin=height) for height in (1.0, 2.0)
    )
    assert not torch.equal(probe(one)[0], probe(other)[0])
    assert not differ(one, other)


def test_no_weight_matches_other_terms_that_change_by_different_factors() -> None:
    objective = KINDS["composed"](anchor="pairs", stabilizer_strength=0.1)
    with pytest.raises(ValueError, match=r"^without length_normalization its other terms push harder or less"):
        matched_knobs(objective, ("length_normalization",))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_control_of_any_objective_pushes_as_the_whole_beside_its_other_terms(name: str) -> None:
    kind = KINDS[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    objective = kind(**{knob: value for knob, value in (("nll_weight", 0.7), ("anchor", "tokens")) if knob in fields})
    for part in getattr(objective, "parts", ()) if hasattr(objective, "push_term") else ():
        knobs = matched_knobs(objective, (part,))
        if not knobs:
            continue
        variant = dataclasses.replace(objective, remove=(part,), **knobs)
        weights = [getattr(one, "nll_weight", 1) for one in (objective, variant)]
        pushes = [pushes_of(one)[one.push_term] for one in (objective, variant)]
        assert pushes[1] / weights[1] == pytest.approx(pushes[0] / weights[0], rel=1e-9), part
