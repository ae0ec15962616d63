"""Searches made up in memory: trials whose goals follow from their knobs in a known way."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.runs import results, schema
from slime_ray.runs.results import Run

SPACE: dict[str, dict[str, Any]] = {
    "objective.hard_margin": {"uniform": [0.5, 3.0]},
    "objective.anchor_weight": {"log_uniform": [0.01, 2.0]},
    "training.pairs_per_update": {"integer": [8, 16]},
    "training.schedule": {"choice": ["linear", "cosine"]},
    "training.warmup_fraction": {"uniform": [0.0, 0.5]},
}
GOALS = {"win_rate": "maximize", "stability": "maximize"}


def search_run(
    count: int, *, prompts: int = 0, seed: int = 0, goals: dict[str, str] = GOALS, path: Path = Path("search")
) -> Run:
    """`count` completed search trials.

    The win rate rises with the hard margin, the stability with the anchor and, less, with a low margin; the other knobs
    do nothing, and only cosine schedules have a warm-up. prompts: how many answers each trial has.
    """
    rng = np.random.default_rng(seed)
    trials: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        margin, anchor = rng.uniform(0.5, 3.0), float(np.exp(rng.uniform(np.log(0.01), np.log(2.0))))
        schedule = ("linear", "cosine")[rng.integers(2)]
        knobs: dict[str, Any] = {
            "objective.hard_margin": margin,
            "objective.anchor_weight": anchor,
            "training.pairs_per_update": float(rng.integers(8, 17)),
            "training.schedule": f'"{schedule}"',
            "training.warmup_fraction": rng.uniform(0, 0.5) if schedule == "cosine" else None,
        }
        name = f"search-{number:04}"
        win = float(np.clip(0.3 + 0.15 * margin + 0.02 * rng.normal(), 0, 1))
        if prompts:
            outcomes = (rng.random(prompts) < win).astype(float)
            win = float(outcomes.mean())
            about = dict.fromkeys(schema.ANSWER_SCHEMA.names) | {"trial_id": name, "phase": "search", "turn": 1}
            answers += [{**about, "prompt_id": f"p{i:03}", "outcome": value} for i, value in enumerate(outcomes)]
        stability = float(np.clip(0.55 + 0.08 * np.log(anchor) - 0.08 * margin + 0.02 * rng.normal(), 0, 1))
        row = results.trial_row(
            trial_id=name, phase="search", label=name, seed=1000, status="completed", objective="slime",
            prompt_set="selection", judge="exact", win_rate=win, prompts=prompts or 24, stability=stability,
            preference_accuracy=win, chosen_drift=0.0, tokens=1000, total_seconds=1.0,
        )  # fmt: skip
        trials.append(row | {results.KNOB + path: value for path, value in knobs.items()})
    manifest = {
        "schema": schema.RUN_SCHEMA,
        "name": "made-up",
        "judge": "exact",
        "goals": goals,
        "finished": "2026-01-01T00:00:00+00:00",
        "experiment": {"search": {"dimensions": SPACE}, "budget": {"trials": count}},
        "stability_version": "stability-v1",
    }
    empty = {name: pd.DataFrame(columns=schema.names) for name, schema in schema.SCHEMAS.items()}
    frame = pd.DataFrame(trials).astype({"reason": object, "win_rate": float})
    told = pd.DataFrame(answers, columns=schema.ANSWER_SCHEMA.names)
    return Run(path=path, trials=frame, answers=told, curves=empty["curves"], pairs=empty["pairs"], manifest=manifest)


def points_run(points: list[tuple[float, float]], **columns: Any) -> Run:
    """A search whose trials have just these win rates and stabilities, in this order; a column per further name."""
    run = search_run(len(points))
    run.trials["win_rate"], run.trials["stability"] = zip(*points, strict=True)
    for name, values in columns.items():
        run.trials[name] = values
    return run
