"""What every objective takes and returns: log-probs and lengths in, named terms with their units out.

An objective never divides by the size of a batch. It returns sums over pairs or tokens, so that the caller
can divide by the counts of the whole effective batch, however it is cut into micro-batches and over workers:
`ObjectiveOutput.loss_over`.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

Unit = Literal["pairs", "chosen_tokens", "rejected_tokens"]
"""What a term is averaged over."""

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


@dataclass(frozen=True)
class Term:
    """One summand of a loss: `total`, a 0-d tensor, already weighted, is its sum over the items of `unit`."""

    total: Tensor
    unit: Unit


@dataclass(frozen=True)
class ReferenceLogps:
    """Sums of the reference model's log-probs over each completion, in nats. Both tensors are (pairs,)."""

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True, kw_only=True)
class ObjectiveOutput:
    """Named terms of one batch and what is needed to average them over a larger one.

    terms: each term's weighted sum, by name; these alone carry gradients.
    counts: how many pairs, chosen tokens and rejected tokens this batch holds.
    chosen_logps, rejected_logps: (pairs,), mean log-prob over each completion's tokens, in nats, detached.
    margins: (pairs,), chosen_logps - rejected_logps, detached.
    For a batch without rejected completions (SFT), `rejected_logps` and `margins` have shape (0,).
    """

    terms: Mapping[str, Term]
    counts: Mapping[str, int]
    margins: Tensor
    chosen_logps: Tensor
    rejected_logps: Tensor

    @property
    def loss(self) -> Tensor:
        """The loss of this batch by itself, each term averaged over its pairs or tokens; 0-d."""
        return self.loss_over(self.counts)

    def loss_over(self, counts: Mapping[str, int]) -> Tensor:
        """Return this batch's share of a larger batch's loss, 0-d.

        counts: items of the larger batch. Summed over the micro-batches and workers that make up the larger batch, the
        shares are its loss, and their gradients its gradient. (DistributedDataParallel averages gradients over workers:
        there, multiply by the world size.) Raises ValueError when `counts` lacks a unit, or has fewer of its items than
        this batch.
        """
        return torch.stack([term.total / self._divisor(counts, term.unit) for term in self.terms.values()]).sum()

    def value(self, name: str) -> Tensor:
        """Average one term over this batch's own items; 0-d. Raises KeyError for an unknown name."""
        term = self.terms[name]
        return term.total / self._divisor(self.counts, term.unit)

    def _divisor(self, counts: Mapping[str, int], unit: Unit) -> int:
        if unit not in counts:
            raise ValueError(f"counts lacks {unit!r}: it holds {sorted(counts)}")
        if counts[unit] < max(1, self.counts[unit]):
            raise ValueError(f"counts[{unit!r}] is {counts[unit]}: this batch alone holds {self.counts[unit]}")
        return counts[unit]


class Objective(Protocol):
    """A preference objective: a frozen dataclass of its knobs that is called with the log-probs of one batch.

    chosen_logps, rejected_logps: (tokens,), floating-point, the log-probs of all completion tokens in pair
        order, in nats.
    chosen_lengths, rejected_lengths: (pairs,), integers, how many of those tokens belong to each completion. Training
        leaves them on the CPU, where `read_batch` checks them without waiting for a device.
    reference: needed where `needs_reference`, left unread elsewhere.
    Everything is computed in at least float32. Raises ValueError where shapes, dtypes or lengths do not fit.
    """

    name: ClassVar[str]

    @property
    def needs_reference(self) -> bool:
        """Whether calls need the reference model's log-probs."""

    @property
    def pairs_together(self) -> int | None:
        """How many pairs of an update, in order, belong into one call; None where any cut gives the same loss."""

    def __call__(
        self,
        chosen_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_logps: Tensor,
        rejected_lengths: Tensor,
        *,
        reference: ReferenceLogps | None = None,
    ) -> ObjectiveOutput:
        """Compute the terms of one batch."""
        ...


def objective_at(objective: Objective, done: float) -> Objective:
    """Return an objective as it is when a share `done` of the updates is made, from 0 to 1.

    One whose knobs change during training has a method `at(done)`, which gives an objective of fixed ones; others stay.
    """
    at: Callable[[float], Objective] | None = getattr(objective, "at", None)
    return at(done) if callable(at) else objective


def pair_sums(logps: Tensor, lengths: Tensor) -> Tensor:
    """Sum over each completion's tokens. logps: (tokens,); lengths: (pairs,); returns (pairs,).

    Added up in at least float32, which is also the dtype of the result, and on a GPU too in the same order every time:
    `index_add` would add there in whatever order threads arrive.
    """
    logps = at_least_float32(logps)
    lengths = lengths.to(logps.device, torch.int64)
    # `unsafe` leaves out a check that waits for the device; `read_batch` has made it.
    sums: Tensor = torch.segment_reduce(logps, "sum", lengths=lengths, unsafe=True)
    return sums


def at_least_float32(logps: Tensor) -> Tensor:
    """Widen float16 and bfloat16 to float32; float64 stays."""
    return logps.to(torch.promote_types(logps.dtype, torch.float32))


def zero_in_graph(tensor: Tensor) -> Tensor:
    """Return what a removed term contributes: a 0-d zero in the graph of `tensor`, of gradient exactly 0."""
    return tensor[:0].sum()


@dataclass(frozen=True)
class Batch:
    """The checked input of an objective, in at least float32. `*_lengths`, `*_sums`, `*_means`: (pairs,)."""

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    chosen_sums: Tensor
    rejected_sums: Tensor
    chosen_means: Tensor
    rejected_means: Tensor
    counts: Mapping[str, int]

    @property
    def margins(self) -> Tensor:
        """D = lw - ll of the mean log-probs, (pairs,), with its gradient."""
        return self.chosen_means - self.rejected_means

    def scores(self, reference: ReferenceLogps | None, normalization: str) -> tuple[Tensor, Tensor]:
        """Return the log-probs of chosen and rejected, (pairs,) each, as sums or means over tokens.

        With a reference they are log ratios: policy minus reference.
        """
        chosen, rejected = self.chosen_sums, self.rejected_sums
        if reference is not None:
            chosen, rejected = chosen - reference.chosen, rejected - reference.rejected
        if normalization == "mean":
            chosen, rejected = chosen / self.chosen_lengths, rejected / self.rejected_lengths
        return chosen, rejected

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the detached per-pair fields of an ObjectiveOutput."""
        chosen, rejected = self.chosen_means.detach(), self.rejected_means.detach()
        return {
            "chosen_logps": chosen,
            "rejected_logps": rejected,
            "margins": chosen - rejected if rejected.numel() else rejected,
        }


def read_batch(
    chosen_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_logps: Tensor,
    rejected_lengths: Tensor,
    *,
    rejected_optional: bool = False,
) -> Batch:
    """Check an objective's input and reduce it per pair. Raises ValueError, naming the argument.

    rejected_optional: also take a batch without any rejected token, its lengths either (0,) or all 0.
    """
    _check_side("chosen", chosen_logps, chosen_lengths)
    no_rejected = rejected_logps.numel() == 0 and not bool((rejected_lengths != 0).any())
    if rejected_optional and no_rejected:
        pairs_allowed = {0, chosen_lengths.numel()}
    else:
        _check_side("rejected", rejected_logps, rejected_lengths)
        pairs_allowed = {chosen_lengths.numel()}
    if rejected_lengths.numel() not in pairs_allowed:
        count, expected = rejected_lengths.numel(), chosen_lengths.numel()
        raise ValueError(f"rejected_lengths has {count} items: chosen_lengths has {expected}")
    if rejected_optional and no_rejected:
        rejected_lengths = rejected_lengths[:0]
    chosen, rejected = at_least_float32(chosen_logps), at_least_float32(rejected_logps)
    # Checked where they are; on the CPU that is without waiting for a device.
    chosen_lengths = chosen_lengths.to(chosen.device, torch.int64, non_blocking=True)
    rejected_lengths = rejected_lengths.to(rejected.device, torch.int64, non_blocking=True)
    chosen_sums, rejected_sums = pair_sums(chosen, chosen_lengths), pair_sums(rejected, rejected_lengths)
    return Batch(
        chosen=chosen,
        rejected=rejected,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        chosen_sums=chosen_sums,
        rejected_sums=rejected_sums,
        chosen_means=chosen_sums / chosen_lengths,
        rejected_means=rejected_sums / rejected_lengths,
        counts={
            "pairs": chosen_lengths.numel(),
            "chosen_tokens": chosen.numel(),
            "rejected_tokens": rejected.numel(),
        },
    )


def _check_side(side: str, logps: Tensor, lengths: Tensor) -> None:
    if logps.dim() != 1 or not logps.is_floating_point():
        raise ValueError(f"{side}_logps is {_describe(logps)}: must be floating-point, 1-D, one per token")
    if lengths.dim() != 1 or lengths.dtype not in _INTEGERS:
        raise ValueError(f"{side}_lengths is {_describe(lengths)}: must be integers, 1-D, one per pair")
    if lengths.numel() == 0:
        raise ValueError(f"{side}_lengths is empty: a batch holds at least one pair")
    # One transfer for both numbers: where lengths are on a device, each one waits for it.
    shortest, total = torch.stack([lengths.min().long(), lengths.sum()]).tolist()
    if shortest < 1:
        raise ValueError(f"{side}_lengths holds {shortest}: every completion has at least one token")
    if total != logps.numel():
        raise ValueError(f"{side}_lengths adds up to {total}: {side}_logps has {logps.numel()} tokens")


def check_reference(objective: str, reference: ReferenceLogps | None, like: Tensor) -> ReferenceLogps:
    """Return the reference's sums, (pairs,), detached, in the dtype of `like`; ValueError if absent or misshapen."""
    if reference is None:
        raise ValueError(f"reference is None: {objective} compares with a reference model's log-probs")
    for side, sums in (("chosen", reference.chosen), ("rejected", reference.rejected)):
        if sums.shape != like.shape or not sums.is_floating_point():
            requirement = f"floating-point sums of shape {tuple(like.shape)}"
            raise ValueError(f"reference.{side} is {_describe(sums)}: must be {requirement}")
    return ReferenceLogps(reference.chosen.detach().to(like), reference.rejected.detach().to(like))


def check_number(
    field: str,
    value: float,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
) -> None:
    """Raise ValueError, with a sentence that starts with `field`, unless `value` is finite and in the range."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Not math.isfinite: it raises OverflowError for an int beyond the floats.
    if number and abs(value) <= sys.float_info.max and at_least <= value <= at_most and value > above:
        return
    bounds = [(">=", at_least), (">", above), ("<=", at_most)]
    allowed = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    raise ValueError(f"{field} is {value!r}: must be a finite number {allowed}".rstrip())


def check_count(field: str, value: int) -> None:
    """Raise ValueError, with a sentence that starts with `field`, unless `value` is a whole number >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{field} is {value!r}: must be a whole number >= 1")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
