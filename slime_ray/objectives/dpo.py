"""Objectives that compare with a reference model: DPO and what others made of it.

In all of them w and l are the chosen and the rejected completion, and r is a completion's log ratio: its log-prob under
the policy minus that under the reference, in nats, a sum over tokens unless `normalization` is mean.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_ray.objectives.base import Batch, ReferenceLogps
from slime_ray.objectives.pairwise import PairwiseObjective, Published, knob

WITHOUT_REFERENCE = "log-probs of the policy take the place of log ratios"
WITHOUT_NLL = "no likelihood of the chosen tokens"


@dataclass(frozen=True)
class DpoObjective(PairwiseObjective):
    """-log sigmoid(beta * (r_w - r_l)), and optionally the likelihood of the chosen tokens.

    Rafailov et al. 2023, arXiv 2305.18290, eq. 7. With `nll_weight` RPO or IRPO (arXiv 2404.19733), whose NLL is a mean
    over pairs; with `normalization: mean` length-normalized DPO.

    Args:
        beta: > 0. Larger keeps the policy closer to the reference.
        label_smoothing: from 0 to 0.5, assumed share of swapped labels (conservative DPO).
        nll_weight: >= 0. Weight of the chosen tokens' mean NLL.
        normalization: "sum" or "mean" of log ratios over tokens.
        remove: "reference" (log-probs in place of log ratios), "nll".
    """

    name: ClassVar[str] = "dpo"
    uses_reference: ClassVar[bool] = True
    parts: ClassVar = {"reference": WITHOUT_REFERENCE, "nll": WITHOUT_NLL}
    published: ClassVar = {
        "paper": Published("arXiv 2305.18290, appendix B", {"beta": 0.1}),
        "rpo": Published(
            "arXiv 2404.19733: beta 0.1, alpha 1; its NLL is a mean per pair", {"beta": 0.1, "nll_weight": 1.0}
        ),
    }

    beta: float = knob(0.1, above=0, tuned=(0.01, 1.0), scale="sum")
    label_smoothing: float = knob(0.0, at_least=0, at_most=0.5)
    nll_weight: float = knob(0.0, at_least=0, tuned=(0.1, 1.0))
    normalization: Literal["mean", "sum"] = "sum"
    remove: tuple[str, ...] = ()

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = batch.scores(reference, self.normalization)
        logits = self.beta * (chosen - rejected)
        return -F.logsigmoid(logits) * (1 - self.label_smoothing) - F.logsigmoid(-logits) * self.label_smoothing


@dataclass(frozen=True)
class IpoObjective(PairwiseObjective):
    """(r_w - r_l - 1 / (2 * beta)) ** 2: a finite target margin by a square.

    Azar et al. 2023, arXiv 2310.12036, eq. 17, whose tau is `beta`.

    Args:
        beta: > 0. Larger aims at a smaller margin, 1 / (2 * beta) nats: per token where means are taken.
        normalization: "mean" of log ratios over tokens, as TRL and the authors have it, or "sum".
        remove: "reference" (log-probs in place of log ratios).
    """

    name: ClassVar[str] = "ipo"
    uses_reference: ClassVar[bool] = True
    parts: ClassVar = {"reference": WITHOUT_REFERENCE}
    published: ClassVar = {"trl": Published("TRL 1.16, default of DPOConfig", {"beta": 0.1, "normalization": "mean"})}

    beta: float = knob(0.1, above=0, tuned=(0.01, 1.0))
    normalization: Literal["mean", "sum"] = "mean"
    remove: tuple[str, ...] = ()

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = batch.scores(reference, self.normalization)
        return (chosen - rejected - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True)
class HingeObjective(PairwiseObjective):
    """max(0, 1 - beta * (r_w - r_l)): SLiC's hard margin on DPO's log ratios (arXiv 2305.10425; RSO, 2309.06657).

    Args:
        beta: > 0. Larger aims at a smaller margin, 1 / beta nats.
        remove: "reference" (log-probs in place of log ratios).
    """

    name: ClassVar[str] = "hinge"
    uses_reference: ClassVar[bool] = True
    parts: ClassVar = {"reference": WITHOUT_REFERENCE}
    published: ClassVar = {"trl": Published("TRL 1.16, default of DPOConfig", {"beta": 0.1})}

    beta: float = knob(0.1, above=0, tuned=(0.01, 1.0))
    remove: tuple[str, ...] = ()

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = batch.scores(reference, "sum")
        return F.relu(1 - self.beta * (chosen - rejected))


@dataclass(frozen=True)
class RobustObjective(PairwiseObjective):
    """DPO's loss, unbiased under labels that are swapped at a known rate (Chowdhury et al., arXiv 2403.00409, eq. 12).

    [-(1 - e) * log sigmoid(z) + e * log sigmoid(-z)] / (1 - 2e), z = beta * (r_w - r_l).

    Args:
        beta: > 0. Larger keeps the policy closer to the reference.
        label_smoothing: e, from 0 to 0.49, share of swapped labels. A pair's push is beta * e / (1 - 2e) or more.
    """

    name: ClassVar[str] = "robust"
    uses_reference: ClassVar[bool] = True
    published: ClassVar = {
        "paper": Published(
            "arXiv 2403.00409, appendix B and section 6, as TRL's paper index reads it",
            {"beta": 0.01, "label_smoothing": 0.1},
        )
    }

    beta: float = knob(0.1, above=0, tuned=(0.01, 1.0))
    label_smoothing: float = knob(0.1, at_least=0, at_most=0.49)

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = batch.scores(reference, "sum")
        logits, rate = self.beta * (chosen - rejected), self.label_smoothing
        return (rate * F.logsigmoid(-logits) - (1 - rate) * F.logsigmoid(logits)) / (1 - 2 * rate)


@dataclass(frozen=True)
class ExoObjective(PairwiseObjective):
    """Reverse KL divergence from smoothed labels to the policy's preference (Ji et al., arXiv 2402.00856, eq. 16).

    With q = sigmoid(beta * (r_w - r_l)): q * (log q - log(1 - e)) + (1 - q) * (log(1 - q) - log e).

    Args:
        beta: > 0. Larger keeps the policy closer to the reference.
        label_smoothing: e, above 0 and up to 0.5. Larger aims at a smaller margin.
    """

    name: ClassVar[str] = "exo"
    uses_reference: ClassVar[bool] = True
    published: ClassVar = {
        "paper": Published(
            "arXiv 2402.00856, appendix B, and its label smoothing as TRL 1.16 cites it",
            {"beta": 0.1, "label_smoothing": 1e-3},
        )
    }

    beta: float = knob(0.1, above=0, tuned=(0.01, 1.0))
    label_smoothing: float = knob(1e-3, above=0, at_most=0.5)

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = batch.scores(reference, "sum")
        logits = self.beta * (chosen - rejected)
        likely, unlikely = math.log1p(-self.label_smoothing), math.log(self.label_smoothing)
        chosen_part = torch.sigmoid(logits) * (F.logsigmoid(logits) - likely)
        return chosen_part + torch.sigmoid(-logits) * (F.logsigmoid(-logits) - unlikely)


@dataclass(frozen=True)
class NcaObjective(PairwiseObjective):
    """-log sigmoid(z_w) - log sigmoid(-z_w) / 2 - log sigmoid(-z_l) / 2, z = beta * r: absolute rewards.

    Noise contrastive alignment, Chen et al., arXiv 2402.05369.

    Args:
        beta: > 0. Larger keeps the policy closer to the reference.
    """

    name: ClassVar[str] = "nca"
    uses_reference: ClassVar[bool] = True
    published: ClassVar = {"paper": Published("arXiv 2402.05369, appendix C, whose alpha is beta", {"beta": 0.01})}

    beta: float = knob(0.1, above=0, tuned=(0.01, 1.0))

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = (self.beta * score for score in batch.scores(reference, "sum"))
        return -F.logsigmoid(chosen) - F.logsigmoid(-chosen) / 2 - F.logsigmoid(-rejected) / 2


@dataclass(frozen=True)
class SppoObjective(PairwiseObjective):
    """(r_w - 1 / (2 * beta)) ** 2 + (r_l + 1 / (2 * beta)) ** 2: both completions have a target.

    Self-play preference optimization with hard labels, Wu et al., arXiv 2405.00675, eq. 4.7; one iteration of it.

    Args:
        beta: > 0. Larger aims at smaller log ratios. Its authors' eta is 1 / beta.
    """

    name: ClassVar[str] = "sppo"
    uses_reference: ClassVar[bool] = True
    published: ClassVar = {"released": Published("github.com/uclaml/SPPO, scripts/pipeline.sh", {"beta": 0.001})}

    beta: float = knob(0.1, above=0, tuned=(0.001, 0.1))

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = batch.scores(reference, "sum")
        return (chosen - 0.5 / self.beta) ** 2 + (rejected + 0.5 / self.beta) ** 2


@dataclass(frozen=True)
class ApoObjective(PairwiseObjective):
    """Anchored preference optimization: says which way each completion moves (D'Oosterlinck et al., arXiv 2408.06266).

    zero, eq. 7: 1 - sigmoid(beta * r_w) + sigmoid(beta * r_l), chosen up and rejected down
    down, eq. 8: sigmoid(beta * r_w) + 1 - sigmoid(beta * (r_w - r_l)), both down, rejected more

    Args:
        beta: > 0. Larger saturates at smaller log ratios.
        variant: "zero" where chosen answers are better than the model's, "down" where they are worse.
    """

    name: ClassVar[str] = "apo"
    uses_reference: ClassVar[bool] = True
    published: ClassVar = {
        variant: Published("arXiv 2408.06266, section 5.2", {"beta": 0.1, "variant": variant})
        for variant in ("zero", "down")
    }

    beta: float = knob(0.1, above=0, tuned=(0.01, 1.0))
    variant: Literal["zero", "down"] = "zero"

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = (self.beta * score for score in batch.scores(reference, "sum"))
        if self.variant == "zero":
            return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)
        return torch.sigmoid(chosen) + 1 - torch.sigmoid(chosen - rejected)


@dataclass(frozen=True)
class DpopObjective(PairwiseObjective):
    """-log sigmoid(beta * (r_w - r_l - guard * max(0, -r_w))): DPO-Positive, which penalizes a fall of chosen.

    Pal et al. 2024, arXiv 2402.13228, eq. 3.

    Args:
        beta: > 0. Larger keeps the policy closer to the reference.
        guard: lambda, >= 0. More holds chosen at the reference's log-prob.
        remove: "guard" (DPO is left).
    """

    name: ClassVar[str] = "dpop"
    uses_reference: ClassVar[bool] = True
    parts: ClassVar = {"guard": "DPO"}

    beta: float = knob(0.3, above=0, tuned=(0.1, 0.5))
    guard: float = knob(50.0, at_least=0, tuned=(5.0, 50.0))
    remove: tuple[str, ...] = ()

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = batch.scores(reference, "sum")
        penalty = 0.0 if self.without("guard") else self.guard * F.relu(-chosen)
        return -F.logsigmoid(self.beta * (chosen - rejected - penalty))


@dataclass(frozen=True)
class DpoShiftObjective(PairwiseObjective):
    """-log sigmoid(beta * (r_w - shift * r_l)): trades margin for the likelihood of chosen.

    Yang et al. 2025, arXiv 2502.07599, whose f(lambda) is `shift`. A call has that of the start, `at` gives later ones.

    Args:
        beta: > 0. Larger keeps the policy closer to the reference.
        shift: f, above 0 and up to 1. Smaller pushes rejected less; 1 is DPO.
        schedule: "fixed", or "linear" in the share of updates, from `shift` to `final_shift`.
        final_shift: f at the end of a linear schedule, above 0 and up to 1.
        remove: "shift" (DPO is left).
    """

    name: ClassVar[str] = "dpo_shift"
    uses_reference: ClassVar[bool] = True
    parts: ClassVar = {"shift": "DPO"}
    published: ClassVar = {
        "released": Published(
            "github.com/Meaquadddd/DPO-Shift, recipes/llama-3-8b/dpo/config_full_ultrafeedback.yaml",
            {"beta": 0.01, "shift": 0.7},
        ),
        "increasing": Published(
            "github.com/Meaquadddd/DPO-Shift, increase_linear-0.75to1.0",
            {"beta": 0.01, "shift": 0.75, "schedule": "linear", "final_shift": 1.0},
        ),
        "decreasing": Published(
            "github.com/Meaquadddd/DPO-Shift, decrease_linear-1.0to0.75",
            {"beta": 0.01, "shift": 1.0, "schedule": "linear", "final_shift": 0.75},
        ),
    }

    beta: float = knob(0.1, above=0, tuned=(0.01, 1.0))
    shift: float = knob(0.75, above=0, at_most=1, tuned=(0.5, 0.95))
    schedule: Literal["fixed", "linear"] = "fixed"
    final_shift: float = knob(1.0, above=0, at_most=1)
    remove: tuple[str, ...] = ()

    def at(self, done: float) -> "DpoShiftObjective":
        """Return the objective of fixed shift after a share `done` of the updates."""
        if self.schedule == "fixed":
            return self
        return replace(self, schedule="fixed", shift=(1 - done) * self.shift + done * self.final_shift)

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = batch.scores(reference, "sum")
        return -F.logsigmoid(self.beta * (chosen - (1.0 if self.without("shift") else self.shift) * rejected))


@dataclass(frozen=True)
class DiscopopObjective(PairwiseObjective):
    """A blend of the logistic and the exponential loss, found by search (Lu et al., arXiv 2406.08414, eq. 5).

    With x = beta * (r_w - r_l) and s = sigmoid(x / temperature): -(1 - s) * log sigmoid(x) + s * exp(-x).

    Args:
        beta: > 0. Larger keeps the policy closer to the reference.
        temperature: tau, above 0 and up to 1. Smaller switches more suddenly.
    """

    name: ClassVar[str] = "discopop"
    uses_reference: ClassVar[bool] = True
    published: ClassVar = {
        "paper": Published("arXiv 2406.08414, appendices B.1 and E", {"beta": 0.05, "temperature": 0.05})
    }

    beta: float = knob(0.05, above=0)
    temperature: float = knob(0.05, above=0, at_most=1)

    def pair_losses(self, batch: Batch, reference: ReferenceLogps | None) -> Tensor:
        chosen, rejected = batch.scores(reference, "sum")
        logits = self.beta * (chosen - rejected)
        # One exponent: exp(-x) alone overflows where its weight is 0.
        exponential = torch.exp(F.logsigmoid(logits / self.temperature) - logits)
        return exponential - torch.sigmoid(-logits / self.temperature) * F.logsigmoid(logits)
