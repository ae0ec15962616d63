"""Whether two objectives would train differently, told from their gradients on one batch that reaches every term."""

import torch

from slime_ray.objectives.base import Objective, ReferenceLogps

PAIRS, TOKENS = 32, 8


def differ(one: Objective, other: Objective) -> bool:
    """Whether the gradients of two objectives differ anywhere on a batch of all kinds of pairs.

    Completions differ in length; tokens are from almost certain to hopeless, and margins of either sign.
    """
    draw = torch.Generator().manual_seed(0)
    lengths = 1 + torch.arange(PAIRS) % TOKENS
    logps = [
        (-12 * torch.rand(int(lengths.sum()), generator=draw, dtype=torch.float64) ** 3).requires_grad_() for _ in "ab"
    ]
    reference = ReferenceLogps(chosen=torch.full((PAIRS,), -9.0), rejected=torch.full((PAIRS,), -9.0))
    found = []
    for objective in (one, other):
        loss = objective(logps[0], lengths, logps[1], lengths.flip(0), reference=reference).loss
        found.append(torch.autograd.grad(loss, logps, allow_unused=True, materialize_grads=True))
    return any(not torch.equal(a, b) for a, b in zip(*found, strict=True))
