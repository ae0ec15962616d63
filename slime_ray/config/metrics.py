"""What is measured of a trial: the columns of its row that may be goals of a search, or be held to a limit."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

JUDGED = ("win_rate",)
"""Columns that need a judge."""
METRICS = (
    *JUDGED, "stability", "preference_accuracy", "mean_margin", "unlearning", "rejected_collapse", "entropy_shift",
    "broken_outputs", "length_shift", "training_spikes", "kl_to_sft", "chosen_drift", "rejected_drift", "format_valid",
    "retention", "tokens", "train_seconds", "evaluation_seconds", "total_seconds",
)  # fmt: skip
"""Numeric columns of a trial's row that follow from what it does."""
Way = Literal["maximize", "minimize"]
Estimate = Literal["win_rate", "stability", "preference_accuracy", "mean_margin", "chosen_drift", "chosen_logp"]
"""What a trial tells of itself at every evaluation, the first two as the sentinel sees them."""
UNMEASURED_EXCESS = 1.0
"""By how much a constraint is broken where the trial has no such number."""
_CONSTRAINT = re.compile(r"^\s*(\w+)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*$")


@dataclass(frozen=True)
class Constraint:
    """A limit on a column of a trial's row: at most, or at least, so much."""

    column: str
    at_most: bool
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Read `column <= number` or `column >= number`. Raises ValueError for anything else."""
        match = _CONSTRAINT.match(text)
        if match is None or not math.isfinite(float(match[3])):
            raise ValueError(f"{text!r} is not understood: write `column <= number`, such as `broken_outputs <= 0.05`")
        return cls(match[1], match[2] == "<=", float(match[3]))

    def excess(self, row: Mapping[Any, Any]) -> float:
        """By how much it is broken; at most 0 where it is kept. A number that is missing breaks it."""
        value = row.get(self.column)
        if not isinstance(value, Real) or value != value:
            return UNMEASURED_EXCESS
        return float(value) - self.limit if self.at_most else self.limit - float(value)

    def __str__(self) -> str:
        # An experiment keeps this text, so it has to be read as the very same limit.
        limit = f"{self.limit:g}" if float(f"{self.limit:g}") == self.limit else repr(self.limit)
        return f"{self.column} {'<=' if self.at_most else '>='} {limit}"


ConstraintText = Annotated[str, AfterValidator(lambda text: str(Constraint.parse(text)))]


def violation(row: Mapping[Any, Any], constraints: Sequence[Constraint]) -> float:
    """By how much a trial breaks its constraints, added up; 0 where it keeps all."""
    return sum(max(0.0, constraint.excess(row)) for constraint in constraints)


def contradiction(constraints: Sequence[Constraint]) -> tuple[Constraint, Constraint] | None:
    """Two constraints that no trial can keep together, if there are any."""
    lows = [constraint for constraint in constraints if not constraint.at_most]
    highs = [constraint for constraint in constraints if constraint.at_most]
    return next(
        ((low, high) for low in lows for high in highs if low.column == high.column and low.limit > high.limit), None
    )
