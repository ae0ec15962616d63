"""SLIME's own promises: the released code's numbers, the paper's gradients, ablations, ranges of knobs."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.objectives import ObjectiveOutput, SlimeObjective

from .golden import GOLDEN, KNOBS, leaves

MARGIN_ONLY = ("anchor", "stabilizer")


def run(objective: SlimeObjective, chosen: list[list[float]], rejected: list[list[float]]) -> ObjectiveOutput:
    return objective(*leaves(chosen), *leaves(rejected))


def margin_gradient(objective: SlimeObjective, margin: float) -> float:
    """dL_dist / dD at D = `margin`, for one pair of one token each."""
    chosen = torch.tensor([-1.0 + margin], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.0], dtype=torch.float64)
    one = torch.tensor([1])
    objective(chosen, one, rejected, one).value("margin").backward()
    assert chosen.grad is not None
    return chosen.grad.item()


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_loss_and_gradients_are_those_of_the_released_code(case: dict[str, Any]) -> None:
    objective = SlimeObjective(**{KNOBS[name]: value for name, value in case["hyperparameters"].items()})
    chosen, chosen_lengths = leaves(case["chosen_token_logps"])
    rejected, rejected_lengths = leaves(case["rejected_token_logps"])
    output = objective(chosen, chosen_lengths, rejected, rejected_lengths)
    output.loss.backward()
    # The largest loss is 102.4 and the largest gradient 15: 1e-12 is absolute.
    assert output.loss.item() == pytest.approx(case["loss"], rel=0, abs=1e-12)
    for found, expected in (
        (chosen.grad, case["grad_chosen_token_logps"]),
        (rejected.grad, case["grad_rejected_token_logps"]),
    ):
        torch.testing.assert_close(found, leaves(expected)[0].detach(), rtol=0, atol=1e-12)
    assert output.chosen_logps.tolist() == pytest.approx(case["chosen_mean_logps"], rel=0, abs=1e-12)
    assert output.rejected_logps.tolist() == pytest.approx(case["rejected_mean_logps"], rel=0, abs=1e-12)


def test_the_golden_file_is_whole() -> None:
    assert len(GOLDEN) == 18


def test_terms_of_one_pair_by_hand() -> None:
    output = run(SlimeObjective(), [[-0.5, -1.5]], [[-1.25, -2.75]])
    # lw = -1, ll = -2, so D = 1: h = 1.5 - 1 = 0.5, s = sigmoid(0) = 0.5.
    assert output.value("anchor").item() == pytest.approx(0.1)
    assert output.value("margin").item() == pytest.approx(0.25)
    # u = 0 and 1.5: softplus is log 2 and log(1 + e^1.5).
    expected = 0.1 * (math.log(2) ** 2.5 + math.log1p(math.exp(1.5)) ** 2.5) / 2
    assert output.value("stabilizer").item() == pytest.approx(expected)
    assert output.loss.item() == pytest.approx(0.1 + 0.25 + expected)


def test_terms_of_sums_by_hand() -> None:
    output = run(
        SlimeObjective(normalization="sum"), [[-0.5, -0.5, -0.5], [-1.0]], [[-1.0, -0.25, -0.75], [-4.0, -3.0]]
    )
    mean = run(SlimeObjective(), [[-0.5, -0.5, -0.5], [-1.0]], [[-1.0, -0.25, -0.75], [-4.0, -3.0]])
    # Sums: lw = -1.5 and -1, ll = -2 and -7, so D = 0.5 and 6; h = 1 and 0, s = sigmoid(1.25) for the first.
    assert output.value("anchor").item() == pytest.approx(0.1 * (1.5 + 1.0) / 2)
    assert output.value("margin").item() == pytest.approx(1 / (1 + math.exp(-1.25)) / 2)
    assert output.value("stabilizer").item() == mean.value("stabilizer").item()
    # What is told of a batch stays per token.
    assert output.margins.tolist() == mean.margins.tolist() == pytest.approx([-0.5 + 2 / 3, 2.5])


def test_gradients_of_sums_by_hand() -> None:
    chosen, lengths = leaves([[-0.5, -0.5, -0.5], [-1.0]])
    rejected, rejected_lengths = leaves([[-1.0, -0.25, -0.75], [-4.0, -3.0]])
    output = SlimeObjective(normalization="sum", remove=("stabilizer",))(chosen, lengths, rejected, rejected_lengths)
    output.loss.backward()
    # One pair in two, D = 0.5: dL/dD = -(s + 2.5 h s (1 - s)) with h = 1, the same for each of its tokens.
    s = 1 / (1 + math.exp(-1.25))
    push = (s + 2.5 * s * (1 - s)) / 2
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-0.05 - push] * 3 + [-0.05])
    assert rejected.grad.tolist() == pytest.approx([push] * 3 + [0.0, 0.0])


def test_stabilizer_is_a_mean_over_tokens_not_over_pairs() -> None:
    # Tokens at -1.25 have the penalty log 2, those at -50 nearly 48.75; three of one and one of the other.
    output = run(
        SlimeObjective(stabilizer_strength=1.0, stabilizer_exponent=1.0),
        [[-1.0], [-1.0]],
        [[-1.25, -1.25, -1.25], [-50.0]],
    )
    assert output.value("stabilizer").item() == pytest.approx((3 * math.log(2) + 48.75) / 4)


@settings(max_examples=100)
@given(
    logps=st.lists(st.floats(-15, 0), min_size=1, max_size=5),
    threshold=st.floats(0, 4),
    exponent=st.floats(1, 4),
    strength=st.floats(0, 2),
)
def test_stabilizer_gradient_is_the_paper_formula(
    logps: list[float], threshold: float, exponent: float, strength: float
) -> None:
    objective = SlimeObjective(
        stabilizer_strength=strength, stabilizer_threshold=threshold, stabilizer_exponent=exponent
    )
    rejected, lengths = leaves([logps])
    objective(*leaves([[-1.0]]), rejected, lengths).terms["stabilizer"].total.backward()
    for found, logp in zip(rejected.grad.tolist(), logps, strict=True):  # type: ignore[union-attr]
        u = -logp - threshold
        gate = 1 / (1 + math.exp(-u))
        expected = -strength * exponent * math.log1p(math.exp(u)) ** (exponent - 1) * gate
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-14)


@settings(max_examples=100)
@given(
    margin=st.floats(-6, 6),
    hard=st.floats(0, 4),
    soft=st.floats(-2, 3),
    sharpness=st.floats(0.1, 10),
    weight=st.floats(0, 3),
)
def test_margin_gradient_is_the_paper_formula_and_exactly_zero_from_the_hard_margin_on(
    margin: float, hard: float, soft: float, sharpness: float, weight: float
) -> None:
    objective = SlimeObjective(hard_margin=hard, soft_margin=soft, gate_sharpness=sharpness, margin_weight=weight)
    found = margin_gradient(objective, margin)
    # The margin that the objective sees is the rounded difference of the two log-probs.
    seen = (-1.0 + margin) - -1.0
    if seen >= hard:
        assert found == 0
    else:
        s = 1 / (1 + math.exp(sharpness * (seen - soft)))
        expected = -weight * (s + sharpness * (hard - seen) * s * (1 - s))
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_anchor_gradient_is_the_paper_formula() -> None:
    chosen, lengths = leaves([[-1.0, -2.0, -3.0], [-4.0]])
    SlimeObjective(anchor_weight=0.3)(chosen, lengths, *leaves([[-1.0], [-1.0]])).value("anchor").backward()
    # -0.3 per pair's mean, averaged over two pairs, spread over three tokens and over one.
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-0.05, -0.05, -0.05, -0.15])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("margin", [1.5, 1.625, 4.0, 1e4])
def test_gradient_is_exactly_zero_from_the_hard_margin_on(dtype: torch.dtype, margin: float) -> None:
    chosen = torch.tensor([0.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([-margin], dtype=dtype, requires_grad=True)
    one = torch.tensor([1])
    output = SlimeObjective(remove=MARGIN_ONLY)(chosen, one, rejected, one)
    output.loss.backward()
    assert output.loss.item() == 0
    assert chosen.grad is not None
    assert chosen.grad.item() == 0
    assert rejected.grad is not None
    assert rejected.grad.item() == 0


def test_softplus_deviates_from_the_exact_value_by_less_than_the_documented_bound() -> None:
    # 20 nats past the threshold torch's softplus turns linear; exact would be 20 + log(1 + e^-20).
    output = run(
        SlimeObjective(stabilizer_strength=1.0, stabilizer_exponent=1.0, stabilizer_threshold=0.0),
        [[-1.0]],
        [[-20.0 - 1e-9]],
    )
    assert abs(output.value("stabilizer").item() - (20 + 1e-9 + math.log1p(math.exp(-20)))) < 2.1e-9


# D = 1 and D = 2: one pair inside the hard margin of 1.5, one beyond it.
CHOSEN, REJECTED = [[-1.0], [-0.5]], [[-2.0], [-2.5]]
GATE = [0.5, 1 / (1 + math.exp(2.5))]


@pytest.mark.parametrize(
    ("remove", "margin"),
    [
        ((), 0.5 * GATE[0] / 2),
        (("soft_margin",), 0.5 / 2),
        (("hard_margin",), (GATE[0] + GATE[1]) / 2),
        (("hard_margin_clip",), (0.5 * GATE[0] - 0.5 * GATE[1]) / 2),
        (("soft_margin", "hard_margin_clip"), (0.5 - 0.5) / 2),
        (("soft_margin", "hard_margin"), 0.0),
    ],
)
def test_ablations_of_the_margin_by_hand(remove: tuple[str, ...], margin: float) -> None:
    output = run(SlimeObjective(remove=remove), CHOSEN, REJECTED)
    full = run(SlimeObjective(), CHOSEN, REJECTED)
    assert output.value("margin").item() == pytest.approx(margin)
    assert output.value("anchor").item() == full.value("anchor").item() == pytest.approx(0.075)
    assert output.value("stabilizer").item() == full.value("stabilizer").item()


@pytest.mark.parametrize(("remove", "weight"), [("anchor", "anchor_weight"), ("stabilizer", "stabilizer_strength")])
def test_removing_a_term_is_setting_its_weight_to_zero(remove: str, weight: str) -> None:
    removed = run(SlimeObjective(remove=(remove,)), CHOSEN, REJECTED)
    zeroed = run(SlimeObjective(**{weight: 0.0}), CHOSEN, REJECTED)  # type: ignore[arg-type]
    assert removed.value(remove).item() == 0
    assert removed.loss.item() == zeroed.loss.item()


def test_without_the_hard_margin_pairs_beyond_it_are_still_pushed() -> None:
    assert margin_gradient(SlimeObjective(), 2.0) == 0
    s = GATE[1]
    assert margin_gradient(SlimeObjective(remove=("hard_margin",)), 2.0) == pytest.approx(-2.5 * s * (1 - s))
    # Unclipped: -(s + 2.5 * h * s * (1 - s)) with h = -0.5.
    expected = -(s - 1.25 * s * (1 - s))
    assert margin_gradient(SlimeObjective(remove=("hard_margin_clip",)), 2.0) == pytest.approx(expected)


def test_removing_everything_leaves_a_loss_of_zero_that_can_be_differentiated() -> None:
    chosen, lengths = leaves(CHOSEN)
    everything = ("anchor", "stabilizer", "soft_margin", "hard_margin")
    output = SlimeObjective(remove=everything)(chosen, lengths, *leaves(REJECTED))
    output.loss.backward()
    assert output.loss.item() == 0
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [0.0, 0.0]


def test_remove_is_a_set_written_as_a_tuple() -> None:
    as_read_from_yaml: Any = ["soft_margin", "anchor", "anchor"]
    objective = SlimeObjective(remove=as_read_from_yaml)
    assert objective.remove == ("anchor", "soft_margin")
    assert objective == SlimeObjective(remove=("anchor", "soft_margin"))


def test_defaults_are_the_values_of_the_paper() -> None:
    assert SlimeObjective() == SlimeObjective(0.1, 0.1, 1.25, 2.5, 1.0, 1.5, 1.0, 2.5, ())


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"anchor_weight": -0.1}, "anchor_weight is -0.1: must be a finite number >= 0"),
        ({"stabilizer_strength": math.nan}, "stabilizer_strength is nan: must be a finite number >= 0"),
        ({"stabilizer_threshold": -1.0}, "stabilizer_threshold is -1.0: must be a finite number >= 0"),
        ({"stabilizer_exponent": 0.5}, "stabilizer_exponent is 0.5: must be a finite number >= 1 and <= 8"),
        ({"stabilizer_exponent": 9}, "stabilizer_exponent is 9: must be a finite number >= 1 and <= 8"),
        ({"margin_weight": math.inf}, "margin_weight is inf: must be a finite number >= 0"),
        ({"margin_weight": 10**400}, "margin_weight is 1000"),
        ({"hard_margin": -1.0}, "hard_margin is -1.0: must be a finite number >= 0"),
        ({"hard_margin": "1.5"}, "hard_margin is '1.5': must be a finite number >= 0"),
        ({"soft_margin": -math.inf}, "soft_margin is -inf: must be a finite number"),
        ({"gate_sharpness": 0.0}, "gate_sharpness is 0.0: must be a finite number > 0"),
        ({"anchor_weight": True}, "anchor_weight is True: must be a finite number >= 0"),
        ({"normalization": "tokens"}, "normalization is 'tokens': must be mean or sum"),
        ({"remove": "anchor"}, "remove is 'anchor': must be a list of any of"),
        ({"remove": ["anchr"]}, "remove holds 'anchr': must be a list of any of"),
        ({"remove": ["hard_margin", "hard_margin_clip"]}, "remove holds hard_margin and hard_margin_clip"),
    ],
)
def test_values_out_of_range_are_refused_with_a_sentence(knobs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        SlimeObjective(**knobs)
    assert str(raised.value).startswith(sentence)


def test_largest_exponent_stays_finite_in_float32() -> None:
    rejected = torch.full((1000,), -1e4, requires_grad=True)
    one = torch.tensor([1000])
    output = SlimeObjective(stabilizer_exponent=8.0)(torch.zeros(1000), one, rejected, one)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert rejected.grad is not None
    assert torch.isfinite(rejected.grad).all()
