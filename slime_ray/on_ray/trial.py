"""A trial as Ray Tune runs it: one worker in a reused actor, so that imports and loaded data serve every trial.

Nothing heavy is imported here before a trial runs: an actor that takes longer to start than a short trial lasts would
be given up again and again for one that has just become free, and trials would run one after another.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

TOLD = (
    "status",
    "reason",
    "win_rate",
    "stability",
    "preference_accuracy",
    "mean_margin",
    "chosen_drift",
    "total_seconds",
)
"""What a finished trial tells the driver; everything else is in its files."""


def tune_function(config: dict[str, Any], *, run: str, cache: str, threads: int) -> None:
    """Run one trial and report to Ray Tune: progress as it goes, then its goals with `finished`."""
    from slime_ray.experiment import Trial
    from slime_ray.training.worker import run_trial

    def report(progress: Mapping[str, Any]) -> str | None:
        tune.report({"finished": False, **progress})
        return None

    trial = Trial.model_validate(config["trial"])
    row = run_trial(trial, run=Path(run), cache=Path(cache), report=report, threads=threads)
    told = {name: row.get(name) for name in TOLD}
    finite = {
        name: value for name, value in told.items() if not (isinstance(value, float) and not math.isfinite(value))
    }
    tune.report({"finished": True, "step": row.get("updates"), **finite})
