"""What most objectives share: numbers declared with their ranges, parts that can be removed, one loss a pair."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from slime_ray.objectives.base import (
    Batch,
    ObjectiveOutput,
    ReferenceLogps,
    Term,
    check_number,
    check_reference,
    read_batch,
    zero_in_graph,
)


def knob(
    default: float,
    *,
    tuned: tuple[float, float] | None = None,
    scale: Literal["mean", "sum"] | None = None,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
) -> Any:
    """Declare a number of an objective's dataclass.

    Args:
        default: The value where nothing is set.
        tuned: The range in which the literature tunes it. None where none is known.
        scale: Whether that range is for "mean" or "sum" log-probs, where the objective can take both.
        at_least: Smallest value allowed.
        above: Value that must be exceeded.
        at_most: Largest value allowed.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most}
    return dataclasses.field(default=default, metadata={"bounds": bounds, "tuned": tuned, "scale": scale})


def tuned_ranges(objective: type) -> dict[str, tuple[float, float]]:
    """Return the range in which the literature tunes each knob, where it is known."""
    ranges = {field.name: field.metadata.get("tuned") for field in dataclasses.fields(objective)}
    return {name: tuned for name, tuned in ranges.items() if tuned is not None}


@dataclasses.dataclass(frozen=True)
class Published:
    """Knobs of an objective as somebody published them, and where. Each is a preset, OBJECTIVE-NAME."""

    source: str
    knobs: Mapping[str, Any]

    def summary(self, objective: str) -> str:
        """Return one line about it."""
        knobs = ", ".join(f"{knob} {value}" for knob, value in self.knobs.items())
        return f"{objective} with {knobs}, as published: {self.source}"


class PairwiseObjective:
    """Base of an objective with one loss a pair and, where it has `nll_weight`, the chosen tokens' likelihood.

    A subclass is a frozen dataclass whose numbers are declared by `knob`, and choices as Literal. `parts` names what
    `remove` takes away, each with a sentence about what is left. Values that are not allowed raise ValueError, its
    sentence starting with the field's name.
    """

    name: ClassVar[str]
    uses_reference: ClassVar[bool] = False
    rejected_optional: ClassVar[bool] = False
    """Whether a batch may hold no rejected completions."""
    parts: ClassVar[Mapping[str, str]] = {}
    published: ClassVar[Mapping[str, Published]] = {}
    push_knob: ClassVar[str | None] = None
    """The knob that multiplies the loss of pairs, where there is one."""

    @property
    def push_term(self) -> str:
        """The term that pulls chosen and rejected completions apart."""
        return self.name

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if "bounds" in field.metadata:
                check_number(field.name, value, **field.metadata["bounds"])
            elif field.name == "remove":
                object.__setattr__(self, "remove", check_removals(value, self.parts))
            elif get_origin(kinds[field.name]) is Literal and value not in (choices := get_args(kinds[field.name])):
                raise ValueError(f"{field.name} is {value!r}: must be {', '.join(choices[:-1])} or {choices[-1]}")

    @property
    def pairs_together(self) -> int | None:
        """None: any cut of an update gives the same loss."""
        return None

    @property
    def needs_reference(self) -> bool:
        """Whether calls need the reference model's log-probs."""
        return self.uses_reference and not self.without("reference")

    def without(self, part: str) -> bool:
        """Return whether a part is removed."""
        return part in getattr(self, "remove", ())

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        """Return each pair's loss, (pairs,)."""
        raise NotImplementedError

    def terms(self, batch: Batch, reference: ReferenceLogps | None) -> dict[str, Term]:
        """Return the terms of one batch: one of the objective's own name, and `nll` where it has such a weight."""
        terms = {self.name: Term(self.pair_losses(batch, reference).sum(), "pairs")}
        weight = getattr(self, "nll_weight", None)
        if weight is not None:
            nll = zero_in_graph(batch.chosen) if self.without("nll") or not weight else -weight * batch.chosen.sum()
            terms["nll"] = Term(nll, "chosen_tokens")
        return terms

    def __call__(
        self,
        chosen_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_logps: Tensor,
        rejected_lengths: Tensor,
        *,
        reference: ReferenceLogps | None = None,
    ) -> ObjectiveOutput:
        """Return the terms of one batch. See `Objective` for shapes."""
        batch = read_batch(
            chosen_logps, chosen_lengths, rejected_logps, rejected_lengths, rejected_optional=self.rejected_optional
        )
        base = check_reference(self.name, reference, batch.chosen_sums) if self.needs_reference else None
        return ObjectiveOutput(terms=self.terms(batch, base), counts=batch.counts, **batch.diagnostics())


def check_removals(remove: object, parts: Mapping[str, str]) -> tuple[str, ...]:
    """Return `remove` in the order of `parts` without repetitions, so that equal objectives compare equal.

    Raises:
        ValueError: Something else than a list of these parts.
    """
    names = ", ".join(parts)
    if isinstance(remove, str) or not isinstance(remove, (tuple, list, set, frozenset)):
        raise ValueError(f"remove is {remove!r}: must be a list of any of {names}")
    for part in remove:
        if part not in parts:
            raise ValueError(f"remove holds {part!r}: must be a list of any of {names}")
    return tuple(part for part in parts if part in remove)
