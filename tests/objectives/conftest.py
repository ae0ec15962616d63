"""Batches of log-probs for the objectives' tests."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from slime_ray.objectives import Objective, ObjectiveOutput, ReferenceLogps


@dataclass(frozen=True)
class Pairs:
    """A batch as lists of (tokens,) tensors, one per pair, which is easy to shuffle and to cut."""

    chosen: list[Tensor]
    rejected: list[Tensor]
    reference_chosen: Tensor
    reference_rejected: Tensor

    def pick(self, order: list[int]) -> "Pairs":
        """The pairs at these positions, in this order."""
        return Pairs(
            [self.chosen[i] for i in order],
            [self.rejected[i] for i in order],
            self.reference_chosen[order],
            self.reference_rejected[order],
        )

    def flat(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four positional arguments of an objective, in the graph of the lists."""
        return (
            torch.cat(self.chosen),
            torch.tensor([len(row) for row in self.chosen]),
            torch.cat(self.rejected),
            torch.tensor([len(row) for row in self.rejected]),
        )

    @property
    def reference(self) -> ReferenceLogps:
        return ReferenceLogps(self.reference_chosen, self.reference_rejected)

    def feed(self, objective: Objective) -> ObjectiveOutput:
        """The objective's output of this batch, its reference included."""
        return objective(*self.flat(), reference=self.reference)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """d loss / d token, per completion: all chosen, then all rejected ones. Zeros where independent."""
        tokens = [*self.chosen, *self.rejected]
        grads = torch.autograd.grad(loss, tokens, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, tokens, strict=True)]


def _draw(seed: int, *, pairs: int = 4, dtype: torch.dtype = torch.float64, longest: int = 6) -> Pairs:
    generator = torch.Generator().manual_seed(seed)

    def rows() -> list[Tensor]:
        lengths = torch.randint(1, longest + 1, (pairs,), generator=generator).tolist()
        return [-torch.empty(length, dtype=torch.float64).exponential_(0.6, generator=generator) for length in lengths]

    chosen, rejected = rows(), rows()

    def sums(lists: list[Tensor]) -> Tensor:
        noise = 2 * torch.randn(pairs, dtype=torch.float64, generator=generator)
        return (torch.stack([row.sum() for row in lists]) + noise).to(dtype)

    reference = sums(chosen), sums(rejected)
    leaves = [[row.to(dtype).requires_grad_() for row in side] for side in (chosen, rejected)]
    return Pairs(leaves[0], leaves[1], *reference)


@pytest.fixture(scope="session")
def draw() -> Callable[..., Pairs]:
    """`draw(seed, pairs=4, dtype=float64, longest=6)`: random pairs whose tokens are leaves."""
    return _draw
