"""DPO, SimPO and SFT: TRL's numbers for the same inputs, values by hand, the ranges of the knobs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_ray.objectives import DpoObjective, ReferenceLogps, SftObjective, SimpoObjective, build_objective

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


def test_every_baseline_has_golden_cases_that_train() -> None:
    assert {case["objective"] for case in GOLDEN} == {"dpo", "simpo", "sft"}
    assert all(max(abs(grad) for grad in case["grad_chosen_logps"]) > 1e-4 for case in GOLDEN)


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
    ],
)
def test_values_out_of_range_are_refused_with_a_sentence(name: str, knobs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        build_objective(name, **knobs)
    assert str(raised.value) == sentence
