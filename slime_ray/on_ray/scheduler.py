"""The rules of early stopping as a scheduler of Ray Tune, for a Tuner of one's own.

A sweep of ours does not use it. Tune ends a trial from outside, which loses what it could have written down and, where
it is a group of workers, may leave their resources held; the monitor tells the same rule's order to the trial instead.
"""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from slime_ray.on_ray.stopping import Rule


class RuleScheduler(FIFOScheduler):
    """Stops the trials that a rule says to stop.

    rule: `Halving` with a ranking, or anything else that decides by reports. updates: at which `time_attr` a trial is
    trained to its end. reasons: why each trial that was stopped was, by Tune's id.

    A trial that goes on after a restore must not count its `time_attr` anew.
    """

    def __init__(self, rule: Rule, *, updates: int, time_attr: str = "training_iteration"):
        super().__init__()
        self.rule, self.updates, self.time_attr = rule, updates, time_attr
        self.reasons: dict[str, str] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Called by Tune at every report."""
        told = {**result, "step": result.get(self.time_attr), "updates": self.updates}
        order = self.rule.decide(trial.trial_id, told)
        if order is None:
            return str(TrialScheduler.CONTINUE)
        self.reasons[trial.trial_id] = order.reason
        return str(TrialScheduler.STOP)
