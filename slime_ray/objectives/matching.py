"""Controls of an ablation: what a variant of SLIME weighs so that only the shape of a term differs, not its size.

Without the hard margin the margin term also pushes about 7 times less at the start (1.19 to 0.18 at D = 0 with the
paper's values), and another exponent scales the stabilizer as well (3.8 to 53.7 from p = 1 to 3 at a token of -5 nats).
A variant with the weight or strength given here starts where the full objective does.
"""

import dataclasses
import math
from typing import Any

import torch

from slime_ray.objectives.base import ReferenceLogps, check_number
from slime_ray.objectives.slime import SlimeObjective


def margin_push(objective: SlimeObjective, margin: float = 0.0) -> float:
    """-dL_dist/dD of one pair at D = `margin`, in 1 / nats per token: how hard the margin term pulls it apart.

    With h and s as `objective` has them, removals included (h = 1 or s = 1), appendix A of arXiv 2602.02383:
        margin_weight * (s * [-dh/dD] + h * gate_sharpness * s * (1 - s) * [0 where s = 1])
    where -dh/dD is 1 before the hard margin, 0 from it on, and 0 where h = 1.
    """
    shortfall = objective.hard_margin - margin
    clipped = "hard_margin_clip" not in objective.remove and shortfall <= 0
    if "hard_margin" in objective.remove:
        height, slope = 1.0, 0.0
    else:
        height, slope = (0.0, 0.0) if clipped else (shortfall, 1.0)
    if "soft_margin" in objective.remove:
        return objective.margin_weight * slope
    gate = _sigmoid(-objective.gate_sharpness * (margin - objective.soft_margin))
    return objective.margin_weight * (gate * slope + height * objective.gate_sharpness * gate * (1 - gate))


def matched_margin_weight(objective: SlimeObjective, remove: tuple[str, ...]) -> float:
    """The `margin_weight` with which `objective` without `remove` pushes a pair of D = 0 as hard as `objective` does.

    objective: the full one, or the centre that the variant is compared with.
    remove: the variant's `remove`, in place of the objective's own; what is not of the margin term changes nothing.
    With the paper's values 1.19 without the soft margin, 6.77 without the hard margin, 1 without its clip alone.

    Raises ValueError where no weight can: the variant pushes nothing at D = 0 whatever its weight.
    """
    variant = dataclasses.replace(objective, remove=remove, margin_weight=1.0)
    push = margin_push(variant)
    weight = margin_push(objective) / push if push > 0 else math.inf
    if not math.isfinite(weight):
        raise ValueError(
            f"remove is {list(remove)}: without these the margin term pushes nothing at D = 0, so no margin_weight "
            "matches the full objective's"
        )
    return weight


def pushes_of(objective: Any, *, logp: float, tokens: int) -> dict[str, float]:
    """Norm of the gradient of each of an objective's terms by the log-probs of one pair's tokens, at step 0.

    logp: of every token of both completions, in nats. tokens: of each. The reference is the policy itself.
    """
    lengths = torch.tensor([tokens])
    sides = [torch.full((tokens,), logp, dtype=torch.float64, requires_grad=True) for _ in "ab"]
    reference = ReferenceLogps(*(side.detach().sum()[None] for side in sides))
    pushes = {}
    for name, term in objective(sides[0], lengths, sides[1], lengths, reference=reference).terms.items():
        if term.total.requires_grad:
            slopes = torch.autograd.grad(
                term.total, sides, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            pushes[name] = float(torch.cat(slopes).norm())
    return pushes


def matched_knobs(objective: Any, remove: tuple[str, ...], *, logp: float, tokens: int) -> dict[str, float]:
    """The knob with which `objective` without `remove` pushes as hard beside its other terms as the whole does.

    SLIME's is `margin_weight`, that of others their `push_knob`, or else `nll_weight` by the inverse. Empty where the
    push is the same, where it is gone, and where it is the only term: Adam divides by the size of that.

    Args:
        objective: The full one, which has `push_term` or is SLIME.
        remove: The variant's `remove`.
        logp: Mean log-prob at which pushes are compared, in nats. SLIME's follow from D = 0 alone.
        tokens: Of a completion there.

    Raises:
        ValueError: SLIME's margin term pushes nothing whatever its weight, or the other terms change as well, each by
            another factor.
    """
    if isinstance(objective, SlimeObjective):
        weight = matched_margin_weight(objective, remove)
        return {} if weight == objective.margin_weight else {"margin_weight": weight}
    variant = dataclasses.replace(objective, remove=remove)
    pushes, left = (pushes_of(each, logp=logp, tokens=tokens) for each in (objective, variant))
    whole, reduced = (each.pop(objective.push_term, 0.0) for each in (pushes, left))
    # An anchor on scores is rescaled with them.
    changes = [left[name] / pushes[name] for name in pushes if pushes[name] and left.get(name)]
    if changes and not math.isclose(min(changes), max(changes), rel_tol=1e-9):
        raise ValueError(f"without {', '.join(remove)} its other terms push harder or less, each by another factor")
    whole *= changes[0] if changes else 1.0
    if not (whole and reduced) or math.isclose(whole, reduced, rel_tol=1e-9):
        return {}
    if (knob := getattr(objective, "push_knob", None)) is not None:
        try:
            dataclasses.replace(variant, **{knob: 0.0})
        except ValueError:  # nothing else is trained
            return {}
        return {knob: getattr(objective, knob) * whole / reduced}
    if getattr(objective, "nll_weight", 0) and "nll" not in remove:
        return {"nll_weight": objective.nll_weight * reduced / whole}
    return {}


def matched_strength(objective: SlimeObjective, exponent: float, at_logp: float = -5.0) -> float:
    """The `stabilizer_strength` with which exponent p = `exponent` penalises a token as much as `objective` does.

    at_logp: that token's log-probability in nats, <= 0. With u = -at_logp - stabilizer_threshold and the objective's
    own exponent q it is stabilizer_strength * softplus(u) ** (q - p): equal terms, eq. 7, at that token. Their
    gradients then are as p to q.

    Raises ValueError for an exponent or a log-probability out of range, and where the strength is no finite number.
    """
    dataclasses.replace(objective, stabilizer_exponent=exponent)
    check_number("at_logp", at_logp, at_most=0)
    penalty = _softplus(-at_logp - objective.stabilizer_threshold)
    try:
        strength = objective.stabilizer_strength * penalty ** (objective.stabilizer_exponent - exponent)
    except (OverflowError, ZeroDivisionError):
        strength = math.inf
    if not math.isfinite(strength):
        raise ValueError(
            f"at_logp is {at_logp:g}: there the stabilizer's terms of the exponents {objective.stabilizer_exponent:g} "
            f"and {exponent:g} are too far apart to be matched"
        )
    return strength


def _softplus(number: float) -> float:
    return max(number, 0.0) + math.log1p(math.exp(-abs(number)))


def _sigmoid(number: float) -> float:
    small = math.exp(-abs(number))
    return 1 / (1 + small) if number >= 0 else small / (1 + small)
