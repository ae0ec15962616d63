"""What a judge is: prompts and two answers each go in, one verdict each comes out."""

from collections.abc import Sequence
from typing import Any, Protocol

from slime_ray.evaluation.verdicts import POINTS_OF_A, Verdict

__all__ = ["POINTS_OF_A", "Judge", "Messages", "Verdict"]

Messages = Sequence[dict[str, Any]]
"""One conversation: mappings with `role` and `content`."""


class Judge(Protocol):
    """Compares two answers to each prompt.

    name: stands in the results. prompts, answers_a, answers_b have equal lengths; so has what is returned. prompts_b:
    the conversations that answers_b end, where they are others than those of answers_a, `prompts`: before a later turn
    each side has its own answers.
    """

    name: str

    def __call__(
        self,
        prompts: Sequence[Messages],
        answers_a: Sequence[str],
        answers_b: Sequence[str],
        prompts_b: Sequence[Messages] | None = None,
    ) -> list[Verdict]: ...
