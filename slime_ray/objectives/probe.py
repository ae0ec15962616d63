"""Whether two objectives would train differently, told from their gradients on one batch that reaches every term."""

import torch
from torch import Tensor

from slime_ray.objectives.base import Objective, ReferenceLogps, objective_at

PAIRS, TOKENS = 32, 8


def differ(one: Objective, other: Objective) -> bool:
    """Return whether the gradients of two objectives differ anywhere on a batch of all kinds of pairs."""
    return any(not torch.equal(a, b) for a, b in zip(gradients(one), gradients(other), strict=True))


def gradients(objective: Objective) -> tuple[Tensor, ...]:
    """Return the gradients of an objective's loss on a fixed batch, by the chosen and by the rejected tokens.

    At its start and at its end, between which its knobs may change. Completions and their references differ; tokens are
    from almost certain to hopeless, and margins of either sign.
    """
    draw = torch.Generator().manual_seed(0)
    lengths = 1 + torch.arange(PAIRS) % TOKENS
    logps = [
        (-12 * torch.rand(int(lengths.sum()), generator=draw, dtype=torch.float64) ** 3).requires_grad_() for _ in "ab"
    ]
    reference = ReferenceLogps(*(-18 * torch.rand(2, PAIRS, generator=draw, dtype=torch.float64)))
    found: list[Tensor] = []
    for done in (0.0, 1.0):
        loss = objective_at(objective, done)(logps[0], lengths, logps[1], lengths.flip(0), reference=reference).loss
        found += torch.autograd.grad(loss, logps, allow_unused=True, materialize_grads=True)
    return tuple(found)
