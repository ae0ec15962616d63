"""What a judge is: prompts and two answers each go in, one verdict each comes out."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

Messages = Sequence[dict[str, Any]]
"""One conversation: mappings with `role` and `content`."""

Verdict = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"] | None
"""Arena-Hard's labels; None is an invalid verdict, which is missing, never a loss."""

POINTS_OF_A: dict[str, float] = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}


class Judge(Protocol):
    """Compares two answers to each prompt.

    name: stands in the results. prompts, answers_a, answers_b have equal lengths; so has what is returned.
    """

    name: str

    def __call__(
        self, prompts: Sequence[Messages], answers_a: Sequence[str], answers_b: Sequence[str]
    ) -> list[Verdict]: ...
