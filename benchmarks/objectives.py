"""What the loss and its gradient take of a training step, for every objective at the demo's sizes."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from slime_ray.bench.machine import Machine, Say, describe_machine, now, threads
from slime_ray.config.presets import preset_base
from slime_ray.config.settings import Settings
from slime_ray.data.packing import Rows
from slime_ray.data.pairs import TokenPair
from slime_ray.model.loading import load_model, make_policy
from slime_ray.model.lora import make_trainable
from slime_ray.objectives import OBJECTIVES, Objective, ReferenceLogps
from slime_ray.planning.material import read_material
from slime_ray.planning.tables import table
from slime_ray.training.trainer import GO_ON, Metrics, Next, PreferenceTrainer

LIMIT = 0.02
"""Share of a step that a loss may take."""
WARM = 3
"""Steps that are not counted."""
REPEATS = 5
"""Calls of an objective after each step; their median counts."""
PRESET = "arithmetic"


@dataclass(frozen=True)
class ObjectiveCost:
    """Seconds of an objective's loss and gradient, one median after each step."""

    name: str
    seconds: list[float]


@dataclass(frozen=True)
class ObjectivesReport:
    """One run. steps: seconds of each step. pairs, tokens: of the last step's, tokens those of completions."""

    date: str
    machine: Machine
    pairs: int
    tokens: int
    steps: list[float]
    costs: list[ObjectiveCost]


def measure_objectives(steps: int, say: Say) -> ObjectivesReport:
    """Train the demo's model with SLIME and time every objective on the log-probs' sizes after each step."""
    settings = Settings.model_validate(preset_base(PRESET))
    say("reading the data, making the model")
    pairs = [TokenPair(*ids) for ids in read_material(settings)[1].train]
    model = settings.model
    policy = make_policy(make_trainable(load_model(model, seed=0), model.lora), model)
    calls = {name: _call(kind()) for name, kind in OBJECTIVES.items()}
    taken: list[float] = []
    costs: dict[str, list[float]] = defaultdict(list)
    counts: list[tuple[int, int]] = []
    clock = [time.perf_counter()]

    def after_update(step: int, metrics: Metrics) -> Next:
        ended = time.perf_counter()
        rows = [batch.rows for batch in trainer.loader.update(pairs[: settings.training.pairs_per_update]).batches]
        counts.append((sum(row.counts["pairs"] for row in rows), sum(map(_tokens, rows))))
        for name, call in calls.items():
            seconds = statistics.median(_seconds(call, rows) for _ in range(REPEATS))
            if step > WARM:
                costs[name].append(seconds)
        if step > WARM:
            taken.append(ended - clock[0])
        clock[0] = time.perf_counter()
        return GO_ON

    with threads(1), tempfile.TemporaryDirectory() as scratch:
        trainer = PreferenceTrainer(
            policy=policy,
            objective=settings.objective.build(),
            pairs=pairs,
            schedule=settings.training.model_copy(update={"updates": WARM + steps}),
            pairs_per_update=settings.training.pairs_per_update,
            row_tokens=settings.data.row_budget(gpu=False),
            seed=0,
            scratch=Path(scratch),
            after_update=after_update,
        )
        say("timing")
        trainer.train()
    return ObjectivesReport(
        date=now(),
        machine=describe_machine(torch.device("cpu")),
        pairs=counts[-1][0],
        tokens=counts[-1][1],
        steps=taken,
        costs=[ObjectiveCost(name, seconds) for name, seconds in costs.items()],
    )


def _tokens(rows: Rows) -> int:
    return rows.counts["chosen_tokens"] + rows.counts["rejected_tokens"]


def _call(objective: Objective) -> Callable[[Rows], None]:
    """Loss and gradient of made-up log-probs of one row's sizes."""
    generator = torch.Generator().manual_seed(0)

    def call(rows: Rows) -> None:
        chosen, rejected = (
            (-torch.rand(rows.counts[unit], generator=generator)).requires_grad_()
            for unit in ("chosen_tokens", "rejected_tokens")
        )
        pairs = rows.counts["pairs"]
        base = ReferenceLogps(torch.full((pairs,), -10.0), torch.full((pairs,), -10.0))
        objective(
            chosen, rows.chosen_lengths, rejected, rows.rejected_lengths,
            reference=base if objective.needs_reference else None,
        ).loss_over(rows.counts).backward()  # fmt: skip

    return call


def _seconds(call: Callable[[Rows], None], rows: Sequence[Rows]) -> float:
    begun = time.perf_counter()
    for row in rows:
        call(row)
    return time.perf_counter() - begun


def objectives_table(report: ObjectivesReport) -> str:
    """The report in text."""
    step = statistics.median(report.steps)
    lines = []
    for cost in sorted(report.costs, key=lambda cost: -statistics.median(cost.seconds)):
        middle = statistics.median(cost.seconds)
        least, most = min(cost.seconds), max(cost.seconds)
        over = "over the limit" if middle > LIMIT * step else ""
        lines.append((cost.name, f"{1e3 * middle:.2f}", f"{1e3 * least:.2f}-{1e3 * most:.2f}", f"{middle / step:.2%}",
                      over))  # fmt: skip
    return "\n\n".join(
        [
            f"{report.machine.processor}, one thread; {report.date}. A step of the preset {PRESET} takes "
            f"{1e3 * step:.0f} ms (median of {len(report.steps)}; {1e3 * min(report.steps):.0f} to "
            f"{1e3 * max(report.steps):.0f}): {report.pairs} pairs, {report.tokens:,} completion tokens.",
            table(("objective", "ms", "least-most", f"of a step (limit {LIMIT:.0%})", ""), lines),
        ]
    )


if __name__ == "__main__":
    from .common import run

    run(
        "objectives",
        "What the loss and its gradient take of a training step, for every objective.",
        {"steps": (30, 1, "steps that count; after each, every objective is timed")},
        measure_objectives,
        objectives_table,
    )
