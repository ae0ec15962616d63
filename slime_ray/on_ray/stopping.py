"""Early stopping: asynchronous successive halving over the trials of a search (Li et al. 2020, ASHA, stopping variant).

A trial that reaches a rung is stopped unless its value is among the best 1/reduction of those that reached it before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slime_ray.experiment import EarlyStopping
from slime_ray.training.orders import Order


@dataclass
class Asha:
    """Decides, report by report, which trials go on. Trials that report no number for the metric always do."""

    rule: EarlyStopping
    rungs: list[float] = field(init=False)
    reached: list[dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        shares = [self.rule.first * self.rule.reduction**k for k in range(64)]
        self.rungs = [share for share in shares if share < 1]
        self.reached = [{} for _ in self.rungs]

    def decide(self, trial_id: str, told: Mapping[str, Any]) -> Order | None:
        """An order to stop, or None. told: a report with `step`, `updates` and the metric."""
        value, step, updates = told.get(self.rule.metric), told.get("step"), told.get("updates")
        if value is None or not step or not updates:
            return None
        for rung, others in zip(self.rungs, self.reached, strict=True):
            # A trial that started again passes the same rungs again; what it was there does not change.
            if step / updates < rung or trial_id in others:
                continue
            others[trial_id] = float(value)
            kept = max(1, len(others) // self.rule.reduction)
            better = sum(other > value for other in others.values())
            if len(others) >= self.rule.reduction and better >= kept:
                return Order(
                    "stop",
                    f"early: {self.rule.metric} {value:.4g} at update {step} of {updates}, better in {better} of "
                    f"{len(others) - 1} other trials",
                )
        return None
