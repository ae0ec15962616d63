"""A figure that is not known exactly: what is expected, and what it may as well be."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """low <= expected <= high. Sums and products take all lows together and all highs: whatever makes one part cheaper
    or dearer than expected is assumed to do the same to the others."""

    low: float
    expected: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.expected <= self.high:
            raise ValueError(f"{self.low}, {self.expected} and {self.high} are not in order")

    @classmethod
    def exactly(cls, value: float) -> "Range":
        """A figure without doubt."""
        return cls(value, value, value)

    @classmethod
    def about(cls, value: float, *, less: float, more: float) -> "Range":
        """A figure that may be lower or higher by these shares of itself."""
        return cls(value * (1 - less), value, value * (1 + more))

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, factor: "Range | float") -> "Range":
        """For figures and factors that are not negative."""
        by = factor if isinstance(factor, Range) else Range.exactly(factor)
        return Range(self.low * by.low, self.expected * by.expected, self.high * by.high)

    __rmul__ = __mul__

    def as_dict(self) -> dict[str, float]:
        """As JSON has it."""
        return {"low": self.low, "expected": self.expected, "high": self.high}


NOTHING = Range.exactly(0.0)


def total(parts: Iterable[Range]) -> Range:
    """The sum."""
    return sum(parts, NOTHING)
