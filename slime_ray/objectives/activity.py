"""Component activity: which terms of an objective still push a policy, and how hard beside each other."""

import torch
from torch import Tensor

from slime_ray.objectives.base import Objective, ReferenceLogps
from slime_ray.objectives.slime import SlimeOutput


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
    past_hard_margin: the share of pairs of D >= hard_margin, for SLIME alone. There the margin term pushes nothing,
        unless the hard margin or its clip is removed from it.

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
    if isinstance(output, SlimeOutput):
        activity["past_hard_margin"] = float(output.past_hard_margin.double().mean())
    return activity


def _norms(value: Tensor, *logps: Tensor) -> Tensor:
    """Euclidean norms of the gradient of `value` over each of `logps`. (2,)."""
    gradients = torch.autograd.grad(value, logps, retain_graph=True, materialize_grads=True)
    return torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
