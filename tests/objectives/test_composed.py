"""The space of parts: at the right choices it is each of the named objectives, and contradictions are refused."""

from typing import Any

import pytest
import torch

from slime_ray.objectives import build_objective

B, G = 0.3, 0.6
STABILIZED = {"stabilizer_strength": 0.1, "anchor": "pairs", "link": "gated", "target": 1.5}
REFERENCED = {"against_reference": True, "normalization": "sum", "beta": B}
CHOICES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "slime": ("slime", {}, STABILIZED),
    "slime-of-sums": ("slime", {"normalization": "sum"}, STABILIZED | {"normalization": "sum"}),
    "slime-without-anchor": ("slime", {"remove": ("anchor",)}, STABILIZED | {"remove": ("anchor",)}),
    "slime-without-stabilizer": ("slime", {"remove": ("stabilizer",)}, STABILIZED | {"remove": ("stabilizer",)}),
    "dpo": ("dpo", {"beta": B}, REFERENCED),
    "dpo-of-means": ("dpo", {"beta": B, "normalization": "mean"}, REFERENCED | {"normalization": "mean"}),
    "dpo-with-nll": ("dpo", {"beta": B, "nll_weight": G}, REFERENCED | {"anchor": "tokens", "anchor_weight": G}),
    "ipo": (
        "ipo",
        {"beta": B},
        REFERENCED | {"normalization": "mean", "link": "square", "beta": 2 * B, "link_weight": 1 / (2 * B) ** 2},
    ),
    "hinge": ("hinge", {"beta": B}, REFERENCED | {"link": "hinge"}),
    "dpop": ("dpop", {"beta": B, "guard": 7.0}, REFERENCED | {"chosen_guard": 7.0}),
    "dpo_shift": ("dpo_shift", {"beta": B, "shift": 0.7}, REFERENCED | {"rejected_share": 0.7}),
    "simpo": ("simpo", {"beta": B, "gamma": G}, {"beta": B, "target": G / B}),
    "cpo": (
        "cpo",
        {"beta": B, "nll_weight": G},
        {"beta": B, "normalization": "sum", "anchor": "tokens", "anchor_weight": G},
    ),
    "alphapo": (
        "alphapo",
        {"beta": B, "gamma": G, "alpha": 0.4},
        {"beta": B, "target": G / B, "score": "power", "power": 0.4},
    ),
    "orpo": ("orpo", {"beta": B}, {"score": "odds", "link_weight": B, "anchor": "tokens", "anchor_weight": 1.0}),
    "simper": ("simper", {}, {"score": "power", "power": -1.0, "link": "linear"}),
    "sft": ("sft", {}, {"link": "none", "anchor": "tokens", "anchor_weight": 1.0}),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_at_its_choices_it_is_the_named_objective(choice: str, draw: Any) -> None:
    name, knobs, choices = CHOICES[choice]
    batch = draw(3, pairs=6)
    named, composed = build_objective(name, **knobs), build_objective("composed", **choices)
    loss, wanted = batch.feed(composed).loss, batch.feed(named).loss
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    for one, two in zip(batch.gradients(loss), batch.gradients(wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    assert composed.needs_reference == named.needs_reference


FULL: dict[str, Any] = {
    "against_reference": True, "link": "hinge", "target": 0.5, "chosen_guard": 2.0, "rejected_share": 0.5, "anchor": "pairs",
    "stabilizer_strength": 0.1,
}  # fmt: skip
NEUTRAL: dict[str, dict[str, Any]] = {
    "length_normalization": {"normalization": "sum"},
    "link": {"link": "logistic"},
    "margin": {"link": "none"},
    "target_margin": {"target": 0.0},
    "chosen_guard": {"chosen_guard": 0.0},
    "rejected_share": {"rejected_share": 1.0},
    "anchor": {"anchor": "none"},
    "stabilizer": {"stabilizer_strength": 0.0},
    "reference": {"against_reference": False, "chosen_guard": 0.0},
}


@pytest.mark.parametrize("part", NEUTRAL)
def test_a_removed_part_is_at_its_neutral_value(part: str, draw: Any) -> None:
    batch = draw(4)
    without = build_objective("composed", **FULL, remove=(part,))
    neutral = build_objective("composed", **(FULL | NEUTRAL[part]))
    assert batch.feed(without).loss.item() == pytest.approx(batch.feed(neutral).loss.item(), abs=1e-12)
    assert batch.feed(without).loss.item() != pytest.approx(
        batch.feed(build_objective("composed", **FULL)).loss.item(), abs=1e-9
    )


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"score": "odds", "against_reference": True}, "score is 'odds', which has no form against a reference"),
        ({"score": "power", "normalization": "sum"}, "score is 'power', which is defined on means"),
        ({"chosen_guard": 1.0}, "chosen_guard needs against_reference"),
        ({"score": "odds", "remove": ("length_normalization",)}, "score is 'odds', which is defined on means"),
        ({"link": "gated"}, "target is 0, or removed: the gated link needs a hard margin above 0"),
        ({"link": "gated", "target": 1.0, "remove": ("target_margin",)}, "target is 0, or removed"),
        ({"link": "none"}, "link is none, or has no weight: with neither anchor nor stabilizer nothing is trained"),
        ({"link": "cubic"}, "link is 'cubic': must be logistic, hinge, square, gated, exponential, linear or none"),
        ({"against_reference": 1}, "against_reference is 1: must be true or false"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(choices: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        build_objective("composed", **choices)
    assert str(raised.value).startswith(sentence)


def test_a_part_that_is_gone_contradicts_nothing() -> None:
    build_objective("composed", score="odds", remove=("score", "length_normalization"))
    build_objective("composed", link="gated", target=1.0, remove=("link", "target_margin"))
