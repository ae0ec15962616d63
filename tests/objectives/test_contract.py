"""What every objective in the registry promises, whatever its formula."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from slime_ray.objectives import (
    OBJECTIVES,
    Objective,
    ReferenceLogps,
    build_objective,
    component_activity,
    pair_sums,
)

Draw = Callable[..., Any]
SEEDS = st.integers(0, 2**31)
FEW = settings(max_examples=8)

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in OBJECTIVES},
    "slime-other-knobs": ("slime", {"stabilizer_exponent": 1.0, "hard_margin": 0.7, "soft_margin": -0.3}),
    "slime-without-anchor": ("slime", {"remove": ("anchor",)}),
    "slime-without-stabilizer": ("slime", {"remove": ("stabilizer",)}),
    "slime-without-soft-margin": ("slime", {"remove": ("soft_margin",)}),
    "slime-without-hard-margin": ("slime", {"remove": ("hard_margin",)}),
    "slime-without-clip": ("slime", {"remove": ("hard_margin_clip",)}),
    "slime-without-both-margins": ("slime", {"remove": ("soft_margin", "hard_margin")}),
    "slime-of-sums": ("slime", {"normalization": "sum"}),
    "slime-released-in-twos": ("slime-released", {"micro_batch_pairs": 2}),
    "slime-released-without-stabilizer": ("slime-released", {"remove": ("stabilizer",), "times_summed": 1}),
    "dpo-smoothed": ("dpo", {"beta": 0.4, "label_smoothing": 0.2}),
    "dpo-of-means-with-nll": ("dpo", {"nll_weight": 0.5, "normalization": "mean"}),
    "dpo-without-reference": ("dpo", {"remove": ("reference",)}),
    "ipo-of-sums": ("ipo", {"normalization": "sum"}),
    "apo-down": ("apo", {"variant": "down"}),
    "simpo-with-nll": ("simpo", {"nll_weight": 0.5}),
    "simpo-bare": ("simpo", {"remove": ("length_normalization", "target_margin")}),
    "alphapo-below-zero": ("alphapo", {"alpha": -0.5}),
    "orpo-without-nll": ("orpo", {"remove": ("nll",)}),
    "orpo-without-odds": ("orpo", {"remove": ("odds_ratio",)}),
    "dpop-without-guard": ("dpop", {"remove": ("guard",)}),
    "composed-gated": ("composed", {"link": "gated", "target": 1.5, "anchor": "pairs", "stabilizer_strength": 0.1}),
    "composed-guarded": ("composed", {"against_reference": True, "chosen_guard": 5.0, "rejected_share": 0.5}),
    "composed-odds": ("composed", {"score": "odds", "anchor": "tokens"}),
    "composed-exponential": ("composed", {"link": "exponential", "beta": 0.2}),
    "composed-linear": ("composed", {"score": "power", "power": -1.0, "link": "linear"}),
}


@pytest.fixture(params=VARIANTS, scope="session")
def objective(request: pytest.FixtureRequest) -> Objective:
    name, knobs = VARIANTS[request.param]
    return build_objective(name, **knobs)


SHARED = pytest.mark.parametrize("objective", ["slime", "dpo", "sft"], indirect=True)
"""For what all objectives have from one base."""


def apart(objective: Objective) -> int:
    """How many pairs belong together; 1 where any cut will do."""
    return objective.pairs_together or 1


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_every_registered_objective_is_a_frozen_dataclass_with_defaults(objective: Objective) -> None:
    kind = type(objective)
    assert OBJECTIVES[kind.name] is kind
    assert isinstance(objective.needs_reference, bool)
    assert apart(objective) >= 1
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    assert kind() == kind()
    assert hash(kind()) == hash(kind())


@SHARED
def test_loss_is_the_sum_of_its_named_terms(objective: Objective, draw: Draw) -> None:
    output = draw(0).feed(objective)
    assert output.loss.shape == ()
    close(output.loss, torch.stack([output.value(name) for name in output.terms]).sum())


@SHARED
def test_output_tells_counts_means_and_margins(objective: Objective) -> None:
    output = objective(
        torch.tensor([-1.0, -3.0, -0.5]),
        torch.tensor([2, 1]),
        torch.tensor([-4.0, -1.0, -2.0, -3.0]),
        torch.tensor([1, 3]),
        reference=ReferenceLogps(torch.zeros(2), torch.zeros(2)),
    )
    assert output.counts == {"pairs": 2, "chosen_tokens": 3, "rejected_tokens": 4}
    assert output.chosen_logps.tolist() == [-2.0, -0.5]
    assert output.rejected_logps.tolist() == [-4.0, -2.0]
    assert output.margins.tolist() == [2.0, 1.5]
    assert not output.margins.requires_grad


@FEW
@given(seed=SEEDS, order=st.permutations(range(5)))
def test_order_of_pairs_is_irrelevant(objective: Objective, draw: Draw, seed: int, order: list[int]) -> None:
    batch = draw(seed, pairs=5)
    loss = batch.feed(objective).loss
    if objective.pairs_together:
        order = sorted(order, key=lambda pair: pair // apart(objective))
    shuffled = batch.pick(order).feed(objective).loss
    close(shuffled, loss)
    for one, other in zip(batch.gradients(shuffled), batch.gradients(loss), strict=True):
        close(one, other)


@FEW
@given(seed=SEEDS)
def test_order_of_tokens_within_a_completion_is_irrelevant(objective: Objective, draw: Draw, seed: int) -> None:
    batch = draw(seed)
    turned = dataclasses.replace(
        batch, chosen=[row.flip(0) for row in batch.chosen], rejected=[row.flip(0) for row in batch.rejected]
    )
    loss, other = batch.feed(objective).loss, turned.feed(objective).loss
    close(other, loss)
    for one, two in zip(batch.gradients(loss), batch.gradients(other), strict=True):
        close(one, two)


@FEW
@given(seed=SEEDS, cuts=st.sets(st.integers(1, 5)))
def test_shards_add_up_to_the_loss_and_gradient_of_the_whole_batch(
    objective: Objective, draw: Draw, seed: int, cuts: set[int]
) -> None:
    batch = draw(seed, pairs=6)
    whole = batch.feed(objective)
    edges = [0, *sorted(cut for cut in cuts if cut % apart(objective) == 0), 6]
    shards = [batch.pick(list(range(start, end))).feed(objective) for start, end in itertools.pairwise(edges)]
    counts = {unit: sum(shard.counts[unit] for shard in shards) for unit in whole.counts}
    assert counts == whole.counts
    together = torch.stack([shard.loss_over(counts) for shard in shards]).sum()
    close(together, whole.loss)
    for one, other in zip(batch.gradients(together), batch.gradients(whole.loss), strict=True):
        close(one, other)


def test_gradients_are_those_of_finite_differences(objective: Objective, draw: Draw) -> None:
    batch = draw(1, longest=4)
    chosen, chosen_lengths, rejected, rejected_lengths = batch.flat()

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return objective(chosen, chosen_lengths, rejected, rejected_lengths, reference=batch.reference).loss

    leaves = chosen.detach().requires_grad_(), rejected.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, leaves)


def test_activity_tells_the_share_of_every_term(objective: Objective, draw: Draw) -> None:
    batch = draw(6)
    activity = component_activity(objective, *batch.flat(), reference=batch.reference)
    terms = batch.feed(objective).terms
    norms = {name: torch.cat(batch.gradients(batch.feed(objective).value(name))).norm() for name in terms}
    shares = {name: activity.pop(f"gradient_share.{name}") for name in norms}
    assert shares == pytest.approx({name: (norm / sum(norms.values())).item() for name, norm in norms.items()})
    for name in terms:
        gradients = batch.gradients(batch.feed(objective).value(name))
        chosen, whole = torch.cat(gradients[: len(batch.chosen)]).norm() ** 2, torch.cat(gradients).norm() ** 2
        assert activity.pop(f"chosen_share.{name}") == pytest.approx((chosen / whole).item() if whole else 0.0)
    activity.pop("gradient_ratio", None)
    assert set(activity) == ({"past_hard_margin"} if objective.name.startswith("slime") else set())


EXTREMES = {
    "all-certain": ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    "all-impossible": ([-1e4, -1e4, -1e4], [-1e4, -1e4, -1e4]),
    "chosen-impossible": ([-1e4, -1e4, -1e4], [0.0, 0.0, 0.0]),
    "rejected-impossible": ([0.0, 0.0, 0.0], [-1e4, -1e4, -1e4]),
    "mixed": ([0.0, -1e4, -0.0], [-1e4, 0.0, -1e-30]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradient_are_finite_at_extreme_logps(objective: Objective, dtype: torch.dtype) -> None:
    lengths = torch.tensor([1, 2])
    # float16 cannot hold the gradient of a token of log-prob -1e4.
    scale = 1e-3 if dtype is torch.float16 else 1.0
    reference = ReferenceLogps(torch.tensor([-1.0, -9.0]), torch.tensor([-2.0, -7.0]))
    for extreme, sides in EXTREMES.items():
        chosen, rejected = (torch.tensor(side, dtype=dtype, requires_grad=True) for side in sides)
        output = objective(chosen, lengths, rejected, lengths, reference=reference)
        assert torch.isfinite(output.loss), extreme
        assert torch.isfinite(output.margins).all(), extreme
        (scale * output.loss).backward()
        for tokens in (chosen, rejected):
            assert tokens.grad is None or torch.isfinite(tokens.grad).all(), extreme


@SHARED
def test_bfloat16_logps_are_summed_in_float32(objective: Objective, draw: Draw) -> None:
    batch = draw(1, pairs=8, longest=300, dtype=torch.bfloat16)
    chosen, chosen_lengths, rejected, rejected_lengths = batch.flat()
    low = batch.feed(objective)
    high = objective(chosen.float(), chosen_lengths, rejected.float(), rejected_lengths, reference=batch.reference)
    assert low.loss.dtype == torch.float32
    assert low.loss == high.loss
    assert torch.equal(low.margins, high.margins)


class _Operators(TorchDispatchMode):
    """Notes which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__.strip("_"))
        return func(*args, **(kwargs or {}))


def test_no_operator_adds_in_an_order_of_its_own_on_a_gpu(objective: Objective, draw: Draw) -> None:
    """The names are those that torch lists under `use_deterministic_algorithms` as atomic additions."""
    batch = draw(3)
    chosen, chosen_lengths, rejected, rejected_lengths = batch.flat()
    with _Operators() as operators:
        tokens = [side.detach().requires_grad_() for side in (chosen, rejected)]
        output = objective(tokens[0], chosen_lengths, tokens[1], rejected_lengths, reference=batch.reference)
        output.loss.backward()
    assert "segment_reduce" in operators.names
    assert not operators.names & {"index_add", "index_put", "scatter_add", "scatter_reduce", "put", "bincount", "histc"}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_lengths_may_be_any_integers(dtype: torch.dtype, draw: Draw) -> None:
    batch = draw(2)
    chosen, chosen_lengths, rejected, rejected_lengths = batch.flat()
    for name in OBJECTIVES:
        objective = build_objective(name)
        output = objective(
            chosen, chosen_lengths.to(dtype), rejected, rejected_lengths.to(dtype), reference=batch.reference
        )
        assert output.loss == batch.feed(objective).loss, name


def test_reference_is_required_where_declared_and_ignored_elsewhere(objective: Objective, draw: Draw) -> None:
    batch = draw(3)
    if objective.needs_reference:
        with pytest.raises(ValueError, match=r"^reference is None"):
            objective(*batch.flat())
    else:
        assert objective(*batch.flat()).loss == batch.feed(objective).loss


def test_no_gradient_reaches_the_reference(objective: Objective, draw: Draw) -> None:
    batch = draw(4)
    sums = batch.reference_chosen.clone().requires_grad_(), batch.reference_rejected.clone().requires_grad_()
    objective(*batch.flat(), reference=ReferenceLogps(*sums)).loss.backward()
    assert sums[0].grad is None
    assert sums[1].grad is None


TWO = torch.tensor([-1.0, -2.0])
PAIR = torch.tensor([1, 1])


@pytest.mark.parametrize(
    ("position", "wrong", "sentence"),
    [
        (0, TWO.reshape(1, 2), "chosen_logps is torch.float32 of shape (1, 2)"),
        (0, TWO.long(), "chosen_logps is torch.int64"),
        (1, torch.tensor([1, 2]), "chosen_lengths adds up to 3: chosen_logps has 2 tokens"),
        (1, torch.tensor([2, 0]), "chosen_lengths holds 0"),
        (1, torch.tensor([3, -1]), "chosen_lengths holds -1"),
        (1, torch.tensor([1.0, 1.0]), "chosen_lengths is torch.float32"),
        (1, torch.tensor([True, True]), "chosen_lengths is torch.bool"),
        (1, torch.tensor([[1, 1]]), "chosen_lengths is torch.int64 of shape (1, 2)"),
        (1, torch.tensor([], dtype=torch.int64), "chosen_lengths is empty"),
        (2, TWO.reshape(2, 1), "rejected_logps is torch.float32 of shape (2, 1)"),
        (3, torch.tensor([2]), "rejected_lengths has 1 items: chosen_lengths has 2"),
        (3, torch.tensor([2, 0]), "rejected_lengths holds 0"),
        (3, torch.tensor([1, 2]), "rejected_lengths adds up to 3"),
    ],
)
def test_input_that_does_not_fit_is_refused_by_name(position: int, wrong: Tensor, sentence: str) -> None:
    arguments = [TWO, PAIR, TWO, PAIR]
    arguments[position] = wrong
    for name in OBJECTIVES:
        with pytest.raises(ValueError) as raised:
            build_objective(name)(*arguments, reference=ReferenceLogps(TWO, TWO))
        assert str(raised.value).startswith(sentence), name


def test_a_batch_without_rejected_tokens_is_refused_by_all_but_sft(objective: Objective) -> None:
    none = torch.tensor([]), torch.tensor([], dtype=torch.int64)
    if objective.name == "sft":
        assert objective(TWO, PAIR, *none).loss == 1.5
    else:
        with pytest.raises(ValueError, match=r"^rejected_lengths is empty"):
            objective(TWO, PAIR, *none, reference=ReferenceLogps(TWO, TWO))


@SHARED
def test_counts_that_cannot_hold_the_batch_are_refused(objective: Objective, draw: Draw) -> None:
    output = draw(5).feed(objective)
    with pytest.raises(ValueError, match=r"^counts lacks"):
        output.loss_over({})
    with pytest.raises(ValueError, match=r"^counts\["):
        output.loss_over({unit: count - 1 for unit, count in output.counts.items()})


def test_unknown_names_and_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^name is 'smile': must be one of slime, slime-released, dpo, .*, sft$"):
        build_objective("smile")
    with pytest.raises(ValueError, match=r"^betta is not a field of dpo: it has beta, label_smoothing, "):
        build_objective("dpo", betta=1.0)
    with pytest.raises(ValueError, match=r"^beta is not a field of sft: it has none$"):
        build_objective("sft", beta=1.0)


def test_pair_sums_by_hand() -> None:
    logps, lengths = torch.tensor([-1.0, -2.0, -6.0]), torch.tensor([1, 2])
    assert pair_sums(logps, lengths).tolist() == [-1.0, -8.0]


def test_pair_sums_do_not_lose_small_tokens_in_bfloat16() -> None:
    logps = torch.full((4096,), -0.25, dtype=torch.bfloat16)
    assert pair_sums(logps, torch.tensor([4096])).tolist() == [-1024.0]
