"""What gradients tell of objectives: which terms still push, whether two differ, and controls that push alike."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from slime_ray.objectives.base import Objective, ReferenceLogps, objective_at, read_batch
from slime_ray.objectives.slime import SlimeObjective

PAIRS, TOKENS = 32, 8
"""Size of the batch on which objectives are told apart."""
STEP_0_LOGP, STEP_0_TOKENS = -1.0, 64
"""Mean log-prob in nats, and length, of the two completions on which a control pushes as the whole objective does."""
STABILIZED_LOGP = -5.0
"""Log-prob in nats of the rejected token that exponents of matched strength penalise alike."""


def component_activity(
    objective: Objective,
    chosen_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_logps: Tensor,
    rejected_lengths: Tensor,
    *,
    reference: ReferenceLogps | None = None,
) -> dict[str, float]:
    """Measure what the terms of `objective` do on these pairs; see `Objective` for the arguments' shapes.

    gradient_share.<term>: |g| of the term over the sum of all terms' |g|, where g is the gradient of the term, as it
        stands in the loss of these pairs, with respect to all their token log-probs, chosen and rejected, and |g| its
        Euclidean norm. The shares add up to 1; where no term has a gradient all are 0. A removed term has exactly 0.
    chosen_share.<term>: of the term's |g| squared, the part on the chosen tokens: which side the term moves. 0 where
        the term has no gradient.
    gradient_ratio: |g| of the whole loss on the chosen tokens over that on the rejected ones (arXiv 2604.18239 keeps it
        in a band where chosen stays likely). Absent where the loss does not reach the rejected tokens.
    past_hard_margin: the share of pairs of D >= hard_margin, for SLIME alone, whatever is removed from it. There the
        margin term pushes nothing, unless the hard margin or its clip is removed.

    Exact for the log-probs given, by autograd, and without any pass through a model: what a parameter feels of a term
    is not in it. Raises what the objective raises.
    """
    chosen = chosen_logps.detach().requires_grad_()
    rejected = rejected_logps.detach().requires_grad_()
    with torch.enable_grad():
        output = objective(chosen, chosen_lengths, rejected, rejected_lengths, reference=reference)
        sides = torch.stack([_norms(output.value(name), chosen, rejected) for name in output.terms])
        whole = _norms(output.loss, chosen, rejected).tolist()
    norms = torch.linalg.vector_norm(sides, dim=1)
    total = norms.sum()
    shares = norms if total == 0 else norms / total
    on_chosen = torch.where(norms > 0, sides[:, 0] / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0) ** 2
    activity = {f"gradient_share.{name}": share for name, share in zip(output.terms, shares.tolist(), strict=True)}
    activity |= {f"chosen_share.{name}": share for name, share in zip(output.terms, on_chosen.tolist(), strict=True)}
    if whole[1] > 0:
        activity["gradient_ratio"] = whole[0] / whole[1]
    if isinstance(objective, SlimeObjective):
        batch = read_batch(chosen_logps, chosen_lengths, rejected_logps, rejected_lengths)
        margins = torch.sub(*batch.scores(None, objective.normalization))
        activity["past_hard_margin"] = float((margins >= objective.hard_margin).double().mean())
    return activity


def _norms(value: Tensor, *logps: Tensor) -> Tensor:
    """Compute Euclidean norms of the gradient of `value` over each of `logps`; (2,)."""
    gradients = torch.autograd.grad(value, logps, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])


def differ(first: Objective, second: Objective) -> bool:
    """Tell whether the gradients of two objectives differ on a varied batch."""
    # The first of each three is the loss itself.
    return any(
        not torch.equal(a, b) for index, (a, b) in enumerate(zip(probe(first), probe(second), strict=True)) if index % 3
    )


def probe(objective: Objective) -> tuple[Tensor, ...]:
    """Return an objective's loss and its gradients by chosen and by rejected tokens, on a fixed batch.

    At its start and at its end, between which its knobs may change. Completions and their references differ; tokens are
    from almost certain to hopeless, and margins of either sign.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = 1 + torch.arange(PAIRS) % TOKENS
    logps = [
        (-12 * torch.rand(int(lengths.sum()), generator=generator, dtype=torch.float64) ** 3).requires_grad_()
        for _ in "ab"
    ]
    reference = ReferenceLogps(*(-18 * torch.rand(2, PAIRS, generator=generator, dtype=torch.float64)))
    values: list[Tensor] = []
    for done in (0.0, 1.0):
        loss = objective_at(objective, done)(logps[0], lengths, logps[1], lengths.flip(0), reference=reference).loss
        values += (loss.detach(), *torch.autograd.grad(loss, logps, allow_unused=True, materialize_grads=True))
    return tuple(values)


# ---------------------------------------------------------------------------------------------------------------------
# Controls of an ablation: variants of which only the shape of a term differs, not its size


def pushes_of(objective: Any) -> dict[str, float]:
    """Measure how hard each term of an objective pushes one pair at step 0.

    A push is the norm of the term's gradient by the log-probs of the pair's tokens. Both completions have STEP_0_TOKENS
    tokens of STEP_0_LOGP. The reference is the policy itself.
    """
    lengths = torch.tensor([STEP_0_TOKENS])
    sides = [torch.full((STEP_0_TOKENS,), STEP_0_LOGP, dtype=torch.float64, requires_grad=True) for _ in "ab"]
    reference = ReferenceLogps(*(side.detach().sum()[None] for side in sides))
    terms = objective(sides[0], lengths, sides[1], lengths, reference=reference).terms
    return {
        name: float(torch.linalg.vector_norm(_norms(term.total, *sides)))
        for name, term in terms.items()
        if term.total.requires_grad
    }


def matched_knobs(objective: Any, remove: tuple[str, ...]) -> dict[str, float]:
    """Return the knob with which `objective` without `remove` pushes as hard next to its other terms as the whole.

    Its `push_knob`, or else `nll_weight` by the inverse. Empty where the push is the same, where it is gone, and where
    it is the only term: Adam divides by the size of that. SLIME pushes, with the paper's values, 7 times less without
    the hard margin.

    Args:
        objective: The full one, which has `push_term`.
        remove: The variant's `remove`.

    Raises:
        ValueError: The other terms change as well, each by another factor.
    """
    variant = dataclasses.replace(objective, remove=remove)
    pushes, variant_pushes = pushes_of(objective), pushes_of(variant)
    whole, reduced = (pushes_by_term.pop(objective.push_term, 0.0) for pushes_by_term in (pushes, variant_pushes))
    # An anchor on scores is rescaled with them.
    changes = [variant_pushes[name] / pushes[name] for name in pushes if pushes[name] and variant_pushes.get(name)]
    if changes and not math.isclose(min(changes), max(changes), rel_tol=1e-9):
        raise ValueError(f"without {', '.join(remove)} its other terms push harder or less, each by another factor")
    whole *= changes[0] if changes else 1.0
    if not (whole and reduced and any(variant_pushes.values())) or math.isclose(whole, reduced, rel_tol=1e-9):
        return {}
    if (knob := getattr(objective, "push_knob", None)) is not None:
        return {knob: getattr(objective, knob) * whole / reduced}
    if getattr(objective, "nll_weight", 0) and "nll" not in remove:
        return {"nll_weight": objective.nll_weight * reduced / whole}
    return {}


def matched_strength(objective: SlimeObjective, exponent: float) -> float:
    """Return the `stabilizer_strength` with which p = `exponent` penalises a token as much as `objective` does.

    The token has STABILIZED_LOGP. With u = -STABILIZED_LOGP - stabilizer_threshold and the objective's own exponent q
    it is stabilizer_strength * softplus(u) ** (q - p): equal terms, eq. 7, at that token. Their gradients then are as p
    to q.

    Raises ValueError for an exponent out of range, and where the strength is no finite number.
    """
    dataclasses.replace(objective, stabilizer_exponent=exponent)
    u = torch.tensor(-STABILIZED_LOGP - objective.stabilizer_threshold, dtype=torch.float64)
    penalty = torch.logaddexp(u, torch.zeros_like(u))
    strength = float(objective.stabilizer_strength * penalty ** (objective.stabilizer_exponent - exponent))
    if not math.isfinite(strength):
        raise ValueError(
            f"stabilizer_threshold is {objective.stabilizer_threshold:g}: the stabilizer's terms of the exponents "
            f"{objective.stabilizer_exponent:g} and {exponent:g} are too far apart to be matched"
        )
    return strength
