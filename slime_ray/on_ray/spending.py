"""What a sweep has spent of its budget: time, GPU-hours, calls of a judge that is paid, and what they cost."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slime_ray.config.experiment import Experiment, Resources
from slime_ray.config.judge import Llm
from slime_ray.errors import RunError
from slime_ray.evaluation.verdict_cache import Spending, Verdicts
from slime_ray.training import attempts

JUDGE_SECONDS = 5.0
"""How often the requests to the judge are counted again."""


@dataclass(frozen=True)
class SweepSpending:
    """hours: of this start of the sweep; all else of the whole run. cost: None where nothing has a price."""

    hours: float
    gpu_hours: float
    judge_calls: int
    cost: float | None

    def __str__(self) -> str:
        parts = [f"{self.hours:.2f} hours"]
        parts += [f"{self.gpu_hours:.2f} GPU-hours"] if self.gpu_hours else []
        parts += [f"{self.judge_calls} calls of the judge"] if self.judge_calls else []
        parts += [f"cost {self.cost:.2f}"] if self.cost is not None else []
        return f"spent: {', '.join(parts)}"

    def as_json(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        return {name: value if value is None else round(value, 4) for name, value in asdict(self).items()}


class Meter:
    """Counts what is spent, while trials run and from the attempts of earlier starts of the run.

    now: of a monotonic clock, in seconds. verdicts: of the run.
    """

    def __init__(self, experiment: Experiment, *, run: Path, verdicts: Verdicts, now: float):
        self.budget, self.resources = experiment.budget, experiment.resources
        self.verdicts = verdicts
        judge = experiment.settings.evaluation.judge
        self.judge = judge if isinstance(judge, Llm) else None
        self.started = self.looked = now
        self.asked = float("-inf")
        self.gpu_hours = held_before(run, self.resources)
        self.judged = Spending()

    def look(self, at_work: Iterable[str], now: float) -> None:
        """Trials that have held their GPUs since the last look."""
        each = self.resources.workers * self.resources.gpu_per_worker
        self.gpu_hours += each * len(list(at_work)) * (now - self.looked) / 3600
        self.looked = now
        if self.judge is not None and now - self.asked > JUDGE_SECONDS:
            self.asked = now
            # A damaged file is told by the trials that need it.
            with suppress(RunError):
                self.judged = self.verdicts.spent(self.judge.identity)

    @property
    def spent(self) -> SweepSpending:
        """All of it, as of the last look."""
        price = self.budget.price_per_gpu_hour
        parts = [
            None if price is None else price * self.gpu_hours,
            None if self.judge is None else self.judged.cost(self.judge.prices),
        ]
        known = [part for part in parts if part is not None]
        return SweepSpending(
            hours=(self.looked - self.started) / 3600,
            gpu_hours=self.gpu_hours,
            judge_calls=self.judged.requests,
            cost=sum(known) if known else None,
        )

    def over(self) -> str | None:
        """The part of the budget that is spent, such as `gpu_hours`; None while all of them have something left."""
        spent = self.spent
        for name in ("hours", "gpu_hours", "judge_calls", "cost"):
            limit, reached = getattr(self.budget, name), getattr(spent, name)
            if limit is not None and reached is not None and reached >= limit:
                return name
        return None

    def sentence(self, name: str) -> str:
        """That a part of the budget is spent."""
        limit, reached = getattr(self.budget, name), getattr(self.spent, name)
        if name == "hours":
            return f"its time, budget.hours {limit:g}, is spent"
        return f"budget.{name} {limit:g} is spent ({reached:.4g})"


def held_before(run: Path, resources: Resources) -> float:
    """GPU-hours that the attempts at all trials of a run have held, those that led nowhere included."""
    made = [one for folder in sorted((run / "trials").glob("*/")) for one in attempts.read(folder)]
    seconds = sum(one.workers * max(0.0, one.alive - one.started) for one in made)
    return seconds * resources.gpu_per_worker / 3600
