"""Objectives without a reference model and without SLIME's terms.

In all of them m is the mean log-prob over a completion's tokens, in nats, of the chosen (w) or the rejected one (l).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_ray.objectives.base import Batch, ReferenceLogps, Term
from slime_ray.objectives.pairwise import PairwiseObjective, Published, knob

WITHOUT_NLL = "no likelihood of the chosen tokens"
LARGEST_POWER = 50.0
"""AlphaPO's exponent is cut here: e**50 nats of reward still train, more would overflow."""


@dataclass(frozen=True)
class SimpoObjective(PairwiseObjective):
    """-log sigmoid(beta * (m_w - m_l) - gamma), and optionally the likelihood of the chosen tokens.

    Meng et al. 2024, arXiv 2405.14734, eq. 6. TRL's `simpo_gamma` and `cpo_alpha` are `gamma` and `nll_weight` here.

    Args:
        beta: > 0. How steeply the loss falls with the margin.
        gamma: >= 0. Target of beta * margin. Its authors tune gamma / beta from 0 to 1 nats per token.
        nll_weight: >= 0. Weight of the chosen tokens' mean NLL.
        remove: "length_normalization" (sums in place of means), "target_margin" (gamma 0), "nll".
    """

    name: ClassVar[str] = "simpo"
    parts: ClassVar = {
        "length_normalization": "sums over tokens take the place of means",
        "target_margin": "gamma is 0",
        "nll": WITHOUT_NLL,
    }
    published: ClassVar = {
        "trl": Published("TRL 1.16, defaults of CPOConfig", {"beta": 0.1, "gamma": 0.5, "nll_weight": 1.0}),
        "gemma2": Published(
            "github.com/princeton-nlp/SimPO, training_configs/gemma-2-9b-it-simpo.yaml, gamma / beta 0.5",
            {"beta": 10.0, "gamma": 5.0, "nll_weight": 0.0},
        ),
    }

    beta: float = knob(2.0, above=0, tuned=(2.0, 10.0), scale="mean")
    gamma: float = knob(0.5, at_least=0, tuned=(0.25, 10.0))
    nll_weight: float = knob(0.0, at_least=0)
    remove: tuple[str, ...] = ()

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = batch.scores(None, "sum" if self.without("length_normalization") else "mean")
        gamma = 0.0 if self.without("target_margin") else self.gamma
        return -F.logsigmoid(self.beta * (chosen - rejected) - gamma)


@dataclass(frozen=True)
class CpoObjective(PairwiseObjective):
    """-log sigmoid(beta * (sum_w - sum_l)) and the likelihood of the chosen tokens, sum over a completion's tokens.

    Contrastive preference optimization, Xu et al. 2024, arXiv 2401.08417, eq. 3 to 5.

    Args:
        beta: > 0. How steeply the loss falls with the margin.
        nll_weight: >= 0. Weight of the chosen tokens' mean NLL.
        remove: "nll".
    """

    name: ClassVar[str] = "cpo"
    parts: ClassVar = {"nll": WITHOUT_NLL}
    published: ClassVar = {
        "released": Published(
            "beta of github.com/fe1ixxu/ALMA, runs/cpo_ft.sh; NLL of TRL 1.16, default of CPOConfig",
            {"beta": 0.1, "nll_weight": 1.0},
        )
    }

    beta: float = knob(0.1, above=0, tuned=(0.01, 1.0))
    nll_weight: float = knob(1.0, at_least=0, tuned=(0.1, 1.0))
    remove: tuple[str, ...] = ()

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        return -F.logsigmoid(self.beta * (batch.chosen_sums - batch.rejected_sums))


@dataclass(frozen=True)
class AlphapoObjective(PairwiseObjective):
    """-log sigmoid(beta * (v_w - v_l) - gamma), v = (1 - exp(-alpha * m)) / alpha: SimPO with a shaped reward.

    Gupta et al. 2025, arXiv 2501.03884. alpha = 0 is SimPO. alpha * m is cut at -50, below which nothing pushes.

    Args:
        beta: > 0. How steeply the loss falls with the margin.
        gamma: >= 0. Target of beta * margin.
        alpha: Above 0 improbable completions weigh more, below 0 less.
        nll_weight: >= 0. Weight of the chosen tokens' mean NLL.
        remove: "shape" (SimPO is left), "target_margin" (gamma 0), "nll".
    """

    name: ClassVar[str] = "alphapo"
    parts: ClassVar = {"shape": "SimPO", "target_margin": "gamma is 0", "nll": WITHOUT_NLL}

    beta: float = knob(2.5, above=0)
    gamma: float = knob(0.25, at_least=0)
    alpha: float = knob(0.25, at_least=-5, at_most=5)
    nll_weight: float = knob(0.0, at_least=0)
    remove: tuple[str, ...] = ()

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        alpha = 0.0 if self.without("shape") else self.alpha
        chosen, rejected = alphapo_rewards(batch.chosen_means, alpha), alphapo_rewards(batch.rejected_means, alpha)
        gamma = 0.0 if self.without("target_margin") else self.gamma
        return -F.logsigmoid(self.beta * (chosen - rejected) - gamma)


@dataclass(frozen=True)
class OrpoObjective(PairwiseObjective):
    """NLL of the chosen tokens - beta * log sigmoid(o_w - o_l), o = m - log(1 - exp(m)), the log odds.

    Hong et al. 2024, arXiv 2403.07691, eqs. 6 and 7. TRL's NLL is of the prompt's tokens, too.

    Args:
        beta: lambda, >= 0. Weight of the odds ratio.
        nll_weight: >= 0. Weight of the chosen tokens' mean NLL.
        remove: "odds_ratio" or "nll".
    """

    name: ClassVar[str] = "orpo"
    push_knob: ClassVar[str | None] = "beta"
    parts: ClassVar = {"odds_ratio": "NLL alone", "nll": WITHOUT_NLL}
    published: ClassVar = {
        "released": Published(
            "github.com/xfactlab/orpo, scripts/run_mistral_orpo_beta.sh, whose alpha is beta",
            {"beta": 0.1, "nll_weight": 1.0},
        )
    }

    beta: float = knob(0.1, at_least=0, tuned=(0.05, 1.0))
    nll_weight: float = knob(1.0, at_least=0)
    remove: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        has_odds = self.beta > 0 and not self.without("odds_ratio")
        if not has_odds and (self.without("nll") or not self.nll_weight):
            raise ValueError("remove, or weights of 0, leave nothing to train: keep odds_ratio or nll")

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        if self.without("odds_ratio"):
            return 0.0 * batch.margins
        return -self.beta * F.logsigmoid(log_odds(batch.chosen_means) - log_odds(batch.rejected_means))


@dataclass(frozen=True)
class SimperObjective(PairwiseObjective):
    """exp(m_l) - exp(m_w): no reference and no knobs (Xiao et al. 2025, arXiv 2502.00883, eq. 3)."""

    name: ClassVar[str] = "simper"

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        return torch.exp(batch.rejected_means) - torch.exp(batch.chosen_means)


@dataclass(frozen=True)
class SftObjective(PairwiseObjective):
    """Mean over all chosen tokens of -log p(token). Rejected completions are ignored and may be absent."""

    name: ClassVar[str] = "sft"
    rejected_optional: ClassVar[bool] = True

    def terms(self, batch: Batch, reference: ReferenceLogps | None) -> dict[str, Term]:
        """Return the one term `nll` of a batch."""
        return {"nll": Term(-batch.chosen.sum(), "chosen_tokens")}


def alphapo_rewards(means: Tensor, alpha: float) -> Tensor:
    """Compute AlphaPO's rewards (1 - exp(-alpha * m)) / alpha of mean log-probs m, (pairs,); m where alpha is 0."""
    if alpha == 0:
        return means
    return -torch.expm1((-alpha * means).clamp(max=LARGEST_POWER)) / alpha


def log_odds(means: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of p = exp(m), (pairs,) each.

    The odds of a certain completion are infinite. It counts as of log-prob -eps of the dtype, with the gradient there.
    """
    eps = torch.finfo(means.dtype).eps
    means = means - (means + eps).clamp(min=0).detach()
    return means - torch.log(-torch.expm1(means))
