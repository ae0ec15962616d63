"""Search dimensions and the requirements between knobs: data, and the little arithmetic on it. No sampler here."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from slime_ray.config.strict import Once, Strict

Scalar = float | int | bool | str
Bounds = Annotated[tuple[float, float], Field(strict=False)]
IntegerBounds = Annotated[tuple[int, int], Field(strict=False)]
WAYS = ("uniform", "log_uniform", "integer", "log_integer", "choice")


def _as_list(value: Any) -> Any:
    """One value may stand without its brackets."""
    return value if isinstance(value, list) else [value]


Values = Annotated[
    list[Scalar], BeforeValidator(_as_list, json_schema_input_type=list[Scalar] | Scalar), Field(min_length=1)
]


class Dimension(Strict):
    """How a knob is drawn: one of five ways, bounds included."""

    uniform: Bounds | None = None
    """`[low, high]`: a float."""
    log_uniform: Bounds | None = None
    """`[low, high]`: a float, on a logarithmic scale."""
    integer: IntegerBounds | None = None
    """`[low, high]`: an integer."""
    log_integer: IntegerBounds | None = None
    """`[low, high]`: an integer, on a logarithmic scale."""
    choice: Annotated[list[Scalar], Once] | None = None
    """One of a list."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Step of `uniform` and `integer`, from the low bound on."""
    when: dict[str, Values] = {}
    """Searched paths, with the values at which the knob exists."""

    @model_validator(mode="after")
    def _one_way(self) -> "Dimension":
        ways = [name for name in WAYS if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError(f"give exactly one of {', '.join(WAYS)}; this has {' and '.join(ways) or 'none'}")
        if self.step is not None and ways[0] not in ("uniform", "integer"):
            raise ValueError(f"step goes with uniform and integer, and this is {ways[0]}. Leave it out")
        if self.choice is not None:
            if len(self.choice) < 2:
                raise ValueError("choice needs at least two values. Give one value in base to fix it")
            return self
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"low {low} is not below high {high}. Swap them, or give one value in base to fix it")
        if not math.isfinite(self._steps):
            raise ValueError(f"from {low:g} to {high:g} is more than a number can tell. Narrow it, or make step larger")
        if self.is_log and low <= 0:
            raise ValueError(f"{ways[0]} starts at {low}: a logarithmic range needs a low above 0")
        if self.is_integer and self.step is not None and not self.step.is_integer():
            raise ValueError(f"step is {self.step:g}: between integers it has to be one")
        if self.step is not None and abs(self._steps - round(self._steps)) > 1e-9 * self._steps:
            last = low + int(self._steps) * self.step
            raise ValueError(
                f"steps of {self.step:g} from {low:g} miss {high:g}. Make the last one, {last:.12g}, the high bound"
            )
        return self

    @property
    def is_integer(self) -> bool:
        """Whether it draws integers."""
        return self.integer is not None or self.log_integer is not None

    @property
    def is_log(self) -> bool:
        """Whether what it draws is even on a logarithmic scale."""
        return self.log_uniform is not None or self.log_integer is not None

    @property
    def bounds(self) -> tuple[float, float]:
        """Low and high of a numeric dimension."""
        bounds = self.uniform or self.log_uniform or self.integer or self.log_integer
        if bounds is None:
            raise TypeError("a choice has no bounds")
        return bounds

    @property
    def ends(self) -> list[Scalar]:
        """The values that must all be legal for the dimension to be: both bounds, or every choice."""
        return self.choice if self.choice is not None else list(self.bounds)

    @property
    def size(self) -> int | None:
        """How many values there are; None for a continuous range."""
        if self.choice is not None:
            return len(self.choice)
        if self.step is None and not self.is_integer:
            return None
        return round(self._steps) + 1

    @property
    def values(self) -> Iterator[Scalar]:
        """All of them, in order. Raises TypeError for a continuous range."""
        if self.size is None:
            raise TypeError("a continuous range has no list of values")
        return map(self._nth, range(self.size))

    @property
    def _steps(self) -> float:
        low, high = self.bounds
        # A step may be so small that the quotient is none.
        return (high - low) / (self.step or 1) if math.isfinite(high - low) else math.inf

    def _nth(self, place: int) -> Scalar:
        if self.choice is not None:
            return self.choice[place]
        value = self.bounds[0] + place * (self.step or 1)
        # 0.1 + 2 * 0.1 is to be what people write: 0.3.
        return int(value) if self.is_integer else float(f"{value:.12g}")

    def contains(self, value: Any) -> bool:
        """Whether `value` could have been drawn."""
        if self.choice is not None:
            return any(type(value) is type(option) and value == option for option in self.choice)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.size is not None:
            return math.isclose(value, float(self.snap(value)), rel_tol=1e-9, abs_tol=1e-12)
        low, high = self.bounds
        return low <= value <= high

    def snap(self, value: Scalar) -> Scalar:
        """The nearest value that it has: what samplers add up in floating point is then one and the same."""
        if self.choice is not None or self.size is None:
            return value
        place = round((float(value) - self.bounds[0]) / (self.step or 1))
        return self._nth(min(max(place, 0), self.size - 1))

    def at(self, quantile: float) -> Scalar:
        """The value at a quantile in [0, 1) of the dimension's own scale."""
        if self.choice is not None:
            return self.choice[int(quantile * len(self.choice))]
        low, high = self.bounds
        if self.is_log:
            # An integer stands for all that is rounded to it.
            rounded = 0.5 if self.is_integer else 0.0
            first, last = math.log(low - rounded), math.log(high + rounded)
            value = math.exp(first + quantile * (last - first))
            return self.snap(value) if self.is_integer else min(max(value, low), high)
        if self.size is not None:
            return self._nth(int(quantile * self.size))
        return low + quantile * (high - low)


_PATH = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_REQUIREMENT = re.compile(rf"^\s*({_PATH})\s*<=\s*({_PATH}|{_NUMBER})\s*$")


@dataclass(frozen=True)
class Requirement:
    """`smaller <= larger`, where smaller is a path into the settings and larger a path or a number."""

    smaller: str
    larger: str | float

    @classmethod
    def parse(cls, text: str) -> "Requirement":
        """Read `path <= path` or `path <= number`. Raises ValueError for anything else; nothing is ever evaluated."""
        match = _REQUIREMENT.match(text)
        if not match:
            raise ValueError(
                f"{text!r} is not understood: write `path <= path` or `path <= number`, "
                "such as `objective.soft_margin <= objective.hard_margin`"
            )
        smaller, larger = match.groups()
        return cls(smaller, float(larger) if re.fullmatch(_NUMBER, larger) else larger)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths it speaks of."""
        return (self.smaller, self.larger) if isinstance(self.larger, str) else (self.smaller,)

    def excess(self, values: Mapping[str, Any]) -> float:
        """By how much it is broken: smaller - larger, so at most 0 when it holds. `values` maps paths to numbers."""
        larger = values[self.larger] if isinstance(self.larger, str) else self.larger
        return float(values[self.smaller]) - float(larger)

    def __str__(self) -> str:
        return f"{self.smaller} <= {self.larger}"


def _requirement(text: str) -> str:
    Requirement.parse(text)
    return text


RequirementText = Annotated[str, AfterValidator(_requirement)]
