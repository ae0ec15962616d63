"""Gradient-matched controls: values by hand, and variants that autograd sees start where the full objective does."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slime_ray.objectives import OBJECTIVES, SlimeObjective, margin_push, matched_margin_weight, matched_strength
from slime_ray.objectives.matching import matched_knobs, pushes_of

PAPER = SlimeObjective()
REMOVALS = [(), ("anchor",), ("soft_margin",), ("hard_margin",), ("hard_margin_clip",), ("hard_margin_clip", "anchor")]
KNOBS = st.builds(
    SlimeObjective,
    margin_weight=st.floats(0.1, 3),
    hard_margin=st.floats(0.1, 3),
    soft_margin=st.floats(-1, 3),
    gate_sharpness=st.floats(0.1, 5),
)


def autograd_push(objective: SlimeObjective, margin: float) -> float:
    """-dL_dist/dD at D = `margin`, from one pair of one token each."""
    chosen = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    one = torch.tensor([1])
    terms = objective(chosen, one, torch.zeros(1, dtype=torch.float64), one).terms
    (gradient,) = torch.autograd.grad(terms["margin"].total, chosen)
    return -gradient.item()


def test_push_by_hand() -> None:
    # At D = 0: h = 1.5, s = sigmoid(2.5).
    s = 1 / (1 + math.exp(-2.5))
    assert margin_push(PAPER) == pytest.approx(s + 2.5 * 1.5 * s * (1 - s), rel=1e-15)
    assert margin_push(PAPER) == pytest.approx(1.19, abs=0.005)
    assert margin_push(SlimeObjective(remove=("hard_margin",))) == pytest.approx(2.5 * s * (1 - s), rel=1e-15)
    assert margin_push(SlimeObjective(remove=("hard_margin",))) == pytest.approx(0.18, abs=0.005)
    assert margin_push(SlimeObjective(remove=("soft_margin",), margin_weight=3.0)) == 3.0
    assert margin_push(PAPER, 1.5) == 0.0


@given(objective=KNOBS, margin=st.floats(-3, 4), remove=st.sampled_from(REMOVALS))
def test_push_is_what_autograd_finds(objective: SlimeObjective, margin: float, remove: tuple[str, ...]) -> None:
    variant = dataclasses.replace(objective, remove=remove)
    assert margin_push(variant, margin) == pytest.approx(autograd_push(variant, margin), rel=1e-9, abs=1e-12)


def test_matched_margin_weights_of_the_paper() -> None:
    assert matched_margin_weight(PAPER, ("soft_margin",)) == pytest.approx(1.18703, abs=5e-6)
    assert matched_margin_weight(PAPER, ("hard_margin",)) == pytest.approx(6.77300, abs=5e-6)
    assert matched_margin_weight(PAPER, ("hard_margin_clip",)) == 1.0
    assert matched_margin_weight(PAPER, ("anchor",)) == 1.0


@given(objective=KNOBS, remove=st.sampled_from(REMOVALS))
def test_a_variant_of_the_matched_weight_pushes_as_the_full_objective(
    objective: SlimeObjective, remove: tuple[str, ...]
) -> None:
    variant = dataclasses.replace(objective, remove=remove, margin_weight=matched_margin_weight(objective, remove))
    assert autograd_push(variant, 0.0) == pytest.approx(autograd_push(objective, 0.0), rel=1e-9)


def test_no_weight_matches_a_variant_without_any_push() -> None:
    with pytest.raises(ValueError, match=r"^remove is \['soft_margin', 'hard_margin'\]: without these"):
        matched_margin_weight(PAPER, ("soft_margin", "hard_margin"))
    with pytest.raises(ValueError, match=r"^remove is \['soft_margin'\]: without these"):
        matched_margin_weight(SlimeObjective(hard_margin=0.0), ("soft_margin",))
    with pytest.raises(ValueError, match=r"^remove holds 'margin'"):
        matched_margin_weight(PAPER, ("margin",))


def test_matched_strengths_by_hand() -> None:
    # At -5 nats u = 3.75, softplus(u) = 3.77324...
    penalty = math.log1p(math.exp(3.75))
    assert penalty**1 == pytest.approx(3.8, abs=0.05)
    assert penalty**3 == pytest.approx(53.7, abs=0.05)
    assert matched_strength(PAPER, 1.0) == pytest.approx(0.1 * penalty**1.5, rel=1e-14)
    assert matched_strength(PAPER, 3.0) == pytest.approx(0.1 / math.sqrt(penalty), rel=1e-14)
    assert matched_strength(PAPER, 2.5) == 0.1


@given(exponent=st.floats(1, 8), at_logp=st.floats(-30, 0), threshold=st.floats(0, 3))
def test_a_token_at_the_reference_costs_the_same(exponent: float, at_logp: float, threshold: float) -> None:
    centre = SlimeObjective(stabilizer_threshold=threshold)
    strength = matched_strength(centre, exponent, at_logp)
    variant = dataclasses.replace(centre, stabilizer_exponent=exponent, stabilizer_strength=strength)
    token, one = torch.tensor([at_logp], dtype=torch.float64), torch.tensor([1])
    costs = [objective(token, one, token, one).stabilizer.item() for objective in (variant, centre)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-8)


def test_strengths_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^stabilizer_exponent is 0\.5"):
        matched_strength(PAPER, 0.5)
    with pytest.raises(ValueError, match=r"^at_logp is 1\.0"):
        matched_strength(PAPER, 2.0, at_logp=1.0)
    with pytest.raises(ValueError, match=r"^at_logp is 0: there the stabilizer's terms"):
        matched_strength(SlimeObjective(stabilizer_threshold=1000.0), 3.0, at_logp=0.0)


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
            {"link_weight": margin_push(PAPER) / sigmoid(1.5)},
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
        (PAPER, "hard_margin", {"margin_weight": matched_margin_weight(PAPER, ("hard_margin",))}),
    ],
)
def test_controls_of_other_objectives_by_hand(objective, remove: str, knobs: dict[str, float]) -> None:
    assert matched_knobs(objective, (remove,), logp=-1.0, tokens=64) == pytest.approx(knobs)


def test_no_weight_matches_other_terms_that_change_by_different_factors() -> None:
    objective = KINDS["composed"](anchor="pairs", stabilizer_strength=0.1)
    with pytest.raises(ValueError, match=r"^without length_normalization its other terms push harder or less"):
        matched_knobs(objective, ("length_normalization",), logp=-1.0, tokens=64)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_control_of_any_objective_pushes_as_the_whole_beside_its_other_terms(name: str) -> None:
    kind = KINDS[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    objective = kind(**{knob: value for knob, value in (("nll_weight", 0.7), ("anchor", "tokens")) if knob in fields})
    for part in getattr(objective, "parts", ()) if hasattr(objective, "push_term") else ():
        knobs = matched_knobs(objective, (part,), logp=-0.5, tokens=7)
        if not knobs:
            continue
        variant = dataclasses.replace(objective, remove=(part,), **knobs)
        weights = [getattr(one, "nll_weight", 1) for one in (objective, variant)]
        pushes = [pushes_of(one, logp=-0.5, tokens=7)[one.push_term] for one in (objective, variant)]
        assert pushes[1] / weights[1] == pytest.approx(pushes[0] / weights[0], rel=1e-9), part
