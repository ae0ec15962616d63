"""Every objective but SLIME: TRL's numbers for the same inputs, values by hand, the ranges of the knobs."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_ray.objectives import (
    OBJECTIVES,
    DpoObjective,
    ReferenceLogps,
    SftObjective,
    SimpoObjective,
    build_objective,
    differ,
    objective_at,
)

GOLDEN = json.loads(Path(__file__).with_name("trl_losses.json").read_text())["cases"]
ONE = torch.tensor([1])


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_loss_and_gradients_are_those_of_trl(case: dict[str, Any]) -> None:
    chosen = tensor(case["chosen_logps"]).requires_grad_()
    rejected = tensor(case["rejected_logps"]).requires_grad_()
    output = build_objective(case["objective"], **case["settings"])(
        chosen,
        torch.tensor(case["chosen_lengths"]),
        rejected,
        torch.tensor(case["rejected_lengths"]),
        reference=ReferenceLogps(tensor(case["reference_chosen"]), tensor(case["reference_rejected"])),
    )
    output.loss.backward()
    assert output.loss.item() == pytest.approx(case["loss"], rel=0, abs=1e-12)
    for tokens, expected in ((chosen, case["grad_chosen_logps"]), (rejected, case["grad_rejected_logps"])):
        grad = torch.zeros_like(tokens) if tokens.grad is None else tokens.grad
        torch.testing.assert_close(grad, tensor(expected), rtol=0, atol=1e-12)


NOT_IN_TRL = {"slime", "slime-released", "dpop", "dpo_shift", "simper", "composed"}
"""These have tests of their own, against the authors' code or a second derivation."""


def test_every_baseline_has_golden_cases_that_train() -> None:
    assert {case["objective"] for case in GOLDEN} == set(OBJECTIVES) - NOT_IN_TRL
    trained = {case["objective"] for case in GOLDEN if max(map(abs, case["grad_chosen_logps"])) > 1e-4}
    assert trained == set(OBJECTIVES) - NOT_IN_TRL


def pair(chosen: float, rejected: float) -> tuple[torch.Tensor, ...]:
    """One pair of one token a side."""
    return tensor([chosen]), ONE, tensor([rejected]), ONE


@pytest.mark.parametrize("chosen", [-1.0, -6.0])
def test_dpop_is_the_form_of_its_paper(chosen: float) -> None:
    """Eq. 3 with ratios of probabilities, as printed: log(pi / ref) - lambda * max(0, log(ref / pi))."""
    reference = ReferenceLogps(tensor([-3.0]), tensor([-2.0]))
    got = build_objective("dpop", beta=0.4, guard=7.0)(*pair(chosen, -4.0), reference=reference).loss.item()
    ratio = math.exp(chosen) / math.exp(-3.0)
    inner = math.log(ratio) - math.log(math.exp(-4.0) / math.exp(-2.0)) - 7.0 * max(0.0, math.log(1 / ratio))
    assert got == pytest.approx(-math.log(1 / (1 + math.exp(-0.4 * inner))), abs=1e-12)


def test_dpop_holds_chosen_by_the_derivative_of_its_paper() -> None:
    """Below the reference the push on chosen is beta * (1 + lambda) * sigmoid(-z), as its appendix derives."""
    chosen = tensor([-6.0]).requires_grad_()
    reference = ReferenceLogps(tensor([-3.0]), tensor([-2.0]))
    output = build_objective("dpop", beta=0.4, guard=7.0)(chosen, ONE, tensor([-4.0]), ONE, reference=reference)
    (gradient,) = torch.autograd.grad(output.loss, chosen)
    z = 0.4 * (-3.0 + 2.0 - 7.0 * 3.0)
    assert gradient.item() == pytest.approx(-0.4 * 8.0 / (1 + math.exp(z)), abs=1e-12)


def test_dpo_shift_weighs_the_rejected_ratio_alone() -> None:
    """In powers of ratios: sigmoid of log[(pi_w / ref_w)^beta / (pi_l / ref_l)^(f beta)]."""
    reference = ReferenceLogps(tensor([-3.0]), tensor([-2.0]))
    got = build_objective("dpo_shift", beta=0.4, shift=0.6)(*pair(-1.0, -4.0), reference=reference).loss.item()
    odds = (math.exp(-1.0) / math.exp(-3.0)) ** 0.4 / (math.exp(-4.0) / math.exp(-2.0)) ** (0.4 * 0.6)
    assert got == pytest.approx(-math.log(odds / (1 + odds)), abs=1e-12)


def test_simper_is_the_difference_of_inverse_perplexities() -> None:
    """Perplexity as the inverse geometric mean of the tokens' probabilities."""
    output = build_objective("simper")(tensor([-1.0, -2.0]), torch.tensor([2]), tensor([-0.5]), ONE)
    chosen = (math.exp(-1.0) * math.exp(-2.0)) ** (1 / 2)
    assert output.loss.item() == pytest.approx(math.exp(-0.5) - chosen, abs=1e-12)


@pytest.mark.parametrize("margin", [-50.0, 0.0, 50.0])
def test_robust_dpo_pushes_pairs_of_any_margin(margin: float) -> None:
    chosen = torch.tensor([margin - 100.0], dtype=torch.float64, requires_grad=True)
    zero = tensor([0.0])
    reference = ReferenceLogps(tensor([-100.0]), zero)
    build_objective("robust", beta=2.0, label_smoothing=0.2)(
        chosen, ONE, zero, ONE, reference=reference
    ).loss.backward()
    assert chosen.grad is not None
    assert -chosen.grad.item() >= 2.0 * 0.2 / (1 - 2 * 0.2) - 1e-12


@pytest.mark.parametrize(("first", "last"), [(0.75, 1.0), (1.0, 0.75), (0.6, 0.6)])
def test_a_scheduled_shift_is_at_every_share_of_training_the_fixed_one_on_its_line(first: float, last: float) -> None:
    objective: Any = build_objective("dpo_shift", beta=0.4, shift=first, schedule="linear", final_shift=last)
    for done in (0.0, 0.25, 1.0):
        current: Any = objective_at(objective, done)
        assert current.shift == pytest.approx(first + done * (last - first), abs=1e-15)
        assert dataclasses.replace(current, shift=first, schedule="linear") == objective
        assert objective_at(current, 0.9) is current
    fixed = build_objective("dpo_shift", shift=first, final_shift=last)
    assert objective_at(fixed, 0.5) is fixed


def test_a_shift_that_starts_as_dpo_is_a_part_all_the_same() -> None:
    falling: Any = build_objective("dpo_shift", shift=1.0, schedule="linear", final_shift=0.75)
    assert differ(falling, dataclasses.replace(falling, remove=("shift",)))
    assert differ(falling, build_objective("dpo_shift", shift=1.0))
    still: Any = build_objective("dpo_shift", shift=1.0, final_shift=0.75)
    assert not differ(still, dataclasses.replace(still, remove=("shift",)))


def test_orpo_of_certain_and_of_hopeless_completions_still_pushes() -> None:
    for chosen, rejected in ((-5.0, 0.0), (-1e4, -1e-9)):
        tokens = torch.tensor([rejected], requires_grad=True)
        build_objective("orpo")(torch.tensor([chosen]), ONE, tokens, ONE).loss.backward()
        assert tokens.grad is not None
        assert torch.isfinite(tokens.grad)
        assert tokens.grad > 0


REMOVED = {
    ("dpo", "reference"): ("cpo", {"nll_weight": 0.0}),
    ("simpo", "target_margin"): ("simpo", {"gamma": 0.0}),
    ("simpo", "length_normalization"): ("cpo", {"beta": 2.0, "nll_weight": 0.0}),
    ("alphapo", "shape"): ("simpo", {"beta": 2.5, "gamma": 0.25}),
    ("dpop", "guard"): ("dpo", {"beta": 0.3}),
    ("dpo_shift", "shift"): ("dpo", {}),
    ("cpo", "nll"): ("cpo", {"nll_weight": 0.0}),
    ("orpo", "odds_ratio"): ("sft", {}),
}
"""What an objective without a part is."""


@pytest.mark.parametrize(("name", "part"), REMOVED)
def test_an_objective_without_a_part_is_the_one_that_its_docstring_names(name: str, part: str, draw: Any) -> None:
    batch = draw(7)
    other, knobs = REMOVED[name, part]
    remove = (part, "target_margin") if (name, part) == ("simpo", "length_normalization") else (part,)
    bare = build_objective(name, remove=remove)
    expected = build_objective(other, **knobs)
    loss, wanted = batch.feed(bare).loss, batch.feed(expected).loss
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    for one, two in zip(batch.gradients(loss), batch.gradients(wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    assert bare.needs_reference == expected.needs_reference


def test_dpo_of_one_pair_by_hand() -> None:
    output = DpoObjective(beta=0.5)(
        tensor([-1.0, -2.0]),
        torch.tensor([2]),
        tensor([-4.0]),
        ONE,
        reference=ReferenceLogps(tensor([-5.0]), tensor([-4.0])),
    )
    # Sums: (-3 - -5) - (-4 - -4) = 2, times beta = 1.
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-1)))


def test_dpo_starts_at_log_two_where_policy_and_reference_agree() -> None:
    sums = ReferenceLogps(tensor([-3.0]), tensor([-4.0]))
    loss = DpoObjective()(tensor([-1.0, -2.0]), torch.tensor([2]), tensor([-4.0]), ONE, reference=sums).loss
    assert loss.item() == pytest.approx(math.log(2))


def test_simpo_of_one_pair_by_hand() -> None:
    output = SimpoObjective(beta=2.0, gamma=0.5, nll_weight=3.0)(
        tensor([-1.0, -2.0]), torch.tensor([2]), tensor([-2.0]), ONE
    )
    # Means: D = -1.5 - -2 = 0.5, beta * D - gamma = 0.5; three times the token mean 1.5.
    assert output.value("simpo").item() == pytest.approx(math.log1p(math.exp(-0.5)))
    assert output.value("nll").item() == pytest.approx(4.5)
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-0.5)) + 4.5)


def test_sft_is_the_token_mean_of_the_chosen_completions() -> None:
    # Three tokens: (1 + 2 + 6) / 3 = 3, where a mean of pair means would be 3.75.
    loss = SftObjective()(tensor([-1.0, -2.0, -6.0]), torch.tensor([2, 1]), tensor([-9.0, -9.0]), torch.tensor([1, 1]))
    assert loss.loss.item() == 3.0
    assert loss.margins.tolist() == [7.5, 3.0]


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_sft_takes_batches_without_rejected_completions(lengths: list[int]) -> None:
    chosen = tensor([-1.0, -2.0, -6.0]).requires_grad_()
    none = torch.tensor(lengths, dtype=torch.int64)
    output = SftObjective()(chosen, torch.tensor([2, 1]), tensor([]), none)
    output.loss.backward()
    assert output.loss.item() == 3.0
    assert output.counts == {"pairs": 2, "chosen_tokens": 3, "rejected_tokens": 0}
    assert output.chosen_logps.tolist() == [-1.5, -6.0]
    assert output.rejected_logps.shape == output.margins.shape == (0,)
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-1 / 3] * 3)


def test_sft_refuses_lengths_of_another_number_of_pairs() -> None:
    with pytest.raises(ValueError, match=r"^rejected_lengths has 3 items: chosen_lengths has 1$"):
        SftObjective()(tensor([-1.0]), ONE, tensor([]), torch.tensor([0, 0, 0]))


def test_reference_of_another_shape_is_refused() -> None:
    sums = ReferenceLogps(tensor([-1.0]), tensor([-1.0, -2.0]))
    with pytest.raises(ValueError, match=r"^reference\.rejected is torch\.float64 of shape \(2,\): must be"):
        DpoObjective()(tensor([-1.0]), ONE, tensor([-1.0]), ONE, reference=sums)


@pytest.mark.parametrize(
    ("name", "knobs", "sentence"),
    [
        ("dpo", {"beta": 0}, "beta is 0: must be a finite number > 0"),
        ("dpo", {"label_smoothing": 0.6}, "label_smoothing is 0.6: must be a finite number >= 0 and <= 0.5"),
        ("simpo", {"beta": -2.0}, "beta is -2.0: must be a finite number > 0"),
        ("simpo", {"gamma": -0.1}, "gamma is -0.1: must be a finite number >= 0"),
        ("simpo", {"nll_weight": math.nan}, "nll_weight is nan: must be a finite number >= 0"),
        ("dpo", {"normalization": "max"}, "normalization is 'max': must be mean or sum"),
        ("dpo", {"remove": ["anchor"]}, "remove holds 'anchor': must be a list of any of reference, nll"),
        ("dpo_shift", {"shift": 0}, "shift is 0: must be a finite number > 0 and <= 1"),
        ("exo", {"label_smoothing": 0}, "label_smoothing is 0: must be a finite number > 0 and <= 0.5"),
        ("discopop", {"temperature": 2}, "temperature is 2: must be a finite number > 0 and <= 1"),
        (
            "orpo",
            {"remove": ["odds_ratio", "nll"]},
            "remove, or weights of 0, leave nothing to train: keep odds_ratio or nll",
        ),
        (
            "orpo",
            {"beta": 0.0, "nll_weight": 0.0},
            "remove, or weights of 0, leave nothing to train: keep odds_ratio or nll",
        ),
        (
            "orpo",
            {"beta": 0.0, "remove": ["nll"]},
            "remove, or weights of 0, leave nothing to train: keep odds_ratio or nll",
        ),
    ],
)
def test_values_out_of_range_are_refused_with_a_sentence(name: str, knobs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        build_objective(name, **knobs)
    assert str(raised.value) == sentence
