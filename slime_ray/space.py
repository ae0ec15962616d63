"""Search dimensions and the requirements between knobs: data, and the little arithmetic on it. No sampler here."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from slime_ray.settings import Strict

Scalar = float | int | bool | str
Bounds = Annotated[tuple[float, float], Field(strict=False)]
IntegerBounds = Annotated[tuple[int, int], Field(strict=False)]


class Dimension(Strict):
    """How one knob is drawn: exactly one of the four ways, bounds inclusive.

    uniform, log_uniform: a float between two bounds. integer: an integer between two bounds. choice: one of a list.
    """

    uniform: Bounds | None = None
    log_uniform: Bounds | None = None
    integer: IntegerBounds | None = None
    choice: list[Scalar] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Dimension":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(type(self).model_fields)}; this has {' and '.join(given) or 'none'}"
            )
        if self.choice is not None:
            if len(self.choice) < 2 or len({repr(value) for value in self.choice}) < len(self.choice):
                raise ValueError("choice needs at least two values, each once")
            return self
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"low {low} is not below high {high}. Swap them, or give one value in base to fix it")
        if self.log_uniform is not None and low <= 0:
            raise ValueError(f"log_uniform starts at {low}: a logarithmic range needs a low above 0")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Low and high of a numeric dimension."""
        bounds = self.uniform or self.log_uniform or self.integer
        if bounds is None:
            raise TypeError("a choice has no bounds")
        return bounds

    @property
    def ends(self) -> list[Scalar]:
        """The values that must all be legal for the dimension to be: both bounds, or every choice."""
        return self.choice if self.choice is not None else list(self.bounds)

    def contains(self, value: Any) -> bool:
        """Whether `value` could have been drawn."""
        if self.choice is not None:
            return any(type(value) is type(option) and value == option for option in self.choice)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        low, high = self.bounds
        return low <= value <= high and (self.integer is None or float(value).is_integer())

    def at(self, quantile: float) -> Scalar:
        """The value at a quantile in [0, 1) of the dimension's own scale."""
        if self.choice is not None:
            return self.choice[int(quantile * len(self.choice))]
        low, high = self.bounds
        if self.integer is not None:
            return int(low) + int(quantile * (high - low + 1))
        if self.log_uniform is not None:
            return math.exp(math.log(low) + quantile * (math.log(high) - math.log(low)))
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
