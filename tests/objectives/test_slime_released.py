"""The released trainer's loss: its own numbers three times over, its re-creation on padded rows, values by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from slime_ray.bench.recipes import TIMES_SUMMED, released_loss
from slime_ray.objectives import ReleasedSlimeObjective, SlimeObjective

from .golden import GOLDEN, KNOBS, leaves


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_one_micro_batch_is_the_released_loss_three_times(case: dict[str, Any]) -> None:
    knobs = {KNOBS[name]: value for name, value in case["hyperparameters"].items()}
    chosen, chosen_lengths = leaves(case["chosen_token_logps"])
    rejected, rejected_lengths = leaves(case["rejected_token_logps"])
    output = ReleasedSlimeObjective(**knobs)(chosen, chosen_lengths, rejected, rejected_lengths)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(3 * case["loss"], rel=0, abs=3e-12)
    for found, expected in (
        (chosen.grad, case["grad_chosen_token_logps"]),
        (rejected.grad, case["grad_rejected_token_logps"]),
    ):
        torch.testing.assert_close(found, 3 * leaves(expected)[0].detach(), rtol=0, atol=3e-12)


def padded(rows: list[Tensor], width: int) -> Tensor:
    return torch.stack([torch.cat([row, row.new_zeros(width - len(row))]) for row in rows])


def test_an_update_of_micro_batches_is_that_of_the_trainer_on_padded_rows(draw: Any) -> None:
    batch = draw(3, pairs=19, longest=9)
    with torch.no_grad():
        for row in (*batch.rejected[1:15:4], batch.rejected[18]):
            row[0] = 0.0
    objective = ReleasedSlimeObjective(stabilizer_strength=0.3)
    ours = batch.feed(objective).loss
    theirs = []
    for start in (0, 8, 16):
        micro = batch.pick(list(range(start, min(start + 8, 19))))
        rows = [*micro.chosen, *micro.rejected]
        width = max(map(len, rows))
        completion = padded([torch.ones(len(row), dtype=torch.float64) for row in rows], width)
        once = released_loss(padded(rows, width), completion, objective)
        theirs.append(TIMES_SUMMED * once * len(micro.chosen) / 19)
    whole = torch.stack(theirs).sum()
    torch.testing.assert_close(ours, whole, rtol=1e-13, atol=0)
    for one, other in zip(batch.gradients(ours), batch.gradients(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    # Means over the whole update would be something else.
    assert abs(batch.feed(SlimeObjective(stabilizer_strength=0.3)).loss.item() * 3 - ours.item()) > 1e-3


CHOSEN = [[-1.0], [-1.0], [-1.0]]
LOG2 = math.log(2)
"""The penalty of a token at -delta, for p = 1."""


def stabilizer(rejected: list[list[float]], **knobs: Any) -> float:
    objective = ReleasedSlimeObjective(stabilizer_strength=1.0, stabilizer_exponent=1.0, **knobs)
    return objective(*leaves(CHOSEN), *leaves(rejected)).value("stabilizer").item()


def test_micro_batch_means_by_hand() -> None:
    # Penalties: log 2 at -1.25 and 48.75 at -50. Micro-batches of two pairs, then of the one that is left.
    rejected = [[-1.25, -1.25], [-50.0], [-1.25]]
    means = [(2 * LOG2 + 48.75) / 3, LOG2]
    assert stabilizer(rejected, micro_batch_pairs=2, times_summed=1) == pytest.approx((2 * means[0] + means[1]) / 3)
    assert stabilizer(rejected, micro_batch_pairs=2) == pytest.approx(3 * (2 * means[0] + means[1]) / 3)
    assert stabilizer(rejected, times_summed=1) == pytest.approx((3 * LOG2 + 48.75) / 4)


def test_exact_zeros_leave_the_mean() -> None:
    rejected = [[-1.25, 0.0, -0.0], [-50.0], [0.0]]
    assert stabilizer(rejected, times_summed=1) == pytest.approx((LOG2 + 48.75) / 2)
    # A micro-batch of nothing else has no stabilizer; a token just below zero counts.
    assert stabilizer(rejected, micro_batch_pairs=2, times_summed=1) == pytest.approx(2 * (LOG2 + 48.75) / 2 / 3)
    barely = stabilizer([[-1.25], [-1.25], [-1e-300]], times_summed=1)
    assert barely == pytest.approx((2 * LOG2 + math.log1p(math.exp(-1.25))) / 3)


def test_zeros_take_no_gradient_and_still_count_in_the_margin() -> None:
    rejected, lengths = leaves([[0.0, -2.0]])
    output = ReleasedSlimeObjective(times_summed=1)(*leaves([[-1.0]]), rejected, lengths)
    (gradient,) = torch.autograd.grad(output.terms["stabilizer"].total, rejected, retain_graph=True)
    assert gradient[0] == 0
    assert gradient[1] < 0
    assert output.rejected_logps.tolist() == [-1.0]


@pytest.mark.parametrize("times", [1, 2, 5])
def test_every_term_is_summed_so_often(times: int, draw: Any) -> None:
    batch = draw(0)
    once = batch.feed(ReleasedSlimeObjective(times_summed=1))
    more = batch.feed(ReleasedSlimeObjective(times_summed=times))
    for name in once.terms:
        assert more.value(name).item() == pytest.approx(times * once.value(name).item(), rel=1e-14)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"micro_batch_pairs": 0}, "micro_batch_pairs is 0: must be a whole number >= 1"),
        ({"micro_batch_pairs": 2.0}, r"micro_batch_pairs is 2\.0: must be a whole number >= 1"),
        ({"times_summed": True}, "times_summed is True: must be a whole number >= 1"),
        ({"anchor_weight": -1.0}, r"anchor_weight is -1\.0: must be"),
    ],
)
def test_values_out_of_range_are_refused_with_a_sentence(knobs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        ReleasedSlimeObjective(**knobs)
