"""A trial as Ray Tune runs it.

With one worker it runs in the Tune actor itself, which is used again, so that imports and loaded data serve every
trial. With several, the actor holds no CPU and starts a group of workers under Ray Train, again after it has lost one.

Nothing heavy is imported here before a trial runs: an actor that takes longer to start than a short trial lasts would
be given up again and again for one that has just become free, and trials would run one after another.
"""

import math
from typing import Any

from ray import cloudpickle, tune

TOLD = (
    "status",
    "reason",
    "win_rate",
    "stability",
    "preference_accuracy",
    "mean_margin",
    "chosen_drift",
    "tokens",
    "total_seconds",
)
"""What a finished trial tells the driver; everything else is in its files."""


class Again(Exception):
    """The trial has to start again, in another process or on another node; Ray Tune sees to it."""


def tune_function(config: dict[str, Any], *, place: bytes) -> None:
    """Run one trial and report to Ray Tune once, at its end: its goals, with `finished`; or that it was paused.

    place: a `WorkerContext`, as cloudpickle packed it, so that its parts are imported here and not with the actor.
    """
    from slime_ray.config.experiment import Trial
    from slime_ray.on_ray.workers import WorkerContext, run_worker
    from slime_ray.training.orders import Paused
    from slime_ray.training.outcome import OutOfMemory, refused, what_failed

    trial = Trial.model_validate(config["trial"])
    where: WorkerContext = cloudpickle.loads(place)
    where.monitor.begin(trial.trial_id)
    try:
        if where.resources.workers == 1:
            row = run_worker(trial, where)
        else:
            from slime_ray.on_ray.group import run_group_trial

            row = run_group_trial(trial, where)
    except Paused as pause:
        if pause.order.kind == "preempt":
            raise Again(pause.order.reason) from None
        tune.report({"finished": False, "status": "paused", "reason": pause.order.reason})
        return
    except OutOfMemory as error:
        raise Again(f"out of memory: {error}") from None
    except OSError as error:
        # What a trial does wrong itself is in its row; nothing is gained by starting it again on such a storage.
        tune.report({"finished": False, "status": "paused", "reason": what_failed(refused(error))})
        return
    told = {name: row.get(name) for name in TOLD}
    finite = {
        name: value for name, value in told.items() if not (isinstance(value, float) and not math.isfinite(value))
    }
    tune.report({"finished": True, "step": row.get("updates"), **finite})
