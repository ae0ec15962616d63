"""A small experiment whose trials are run whole, what to tell them on the way, and what came of them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from slime_ray import cli
from slime_ray.config.experiment import Trial
from slime_ray.runs import results
from slime_ray.training.orders import Command

TEXT = """\
name: trial
preset: arithmetic
base:
  data: {sft_examples: 200, pairs: 40, held_out_pairs: 24}
  model: {lora: {rank: 4, alpha: 8.0, dropout: 0.2, targets: [q_proj, v_proj]}}
  sft: {updates: 10}
  training: {updates: 6, pairs_per_update: 16, evaluations: 3, learning_rate: 1e-3, max_grad_norm: 1.0}
  evaluation: {prompts: 16, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 12, batch: 6}}
arms: {slime: {}, dpo: {objective: {name: dpo}}}
"""
CLOCKS = {"started", "host", "train_seconds", "evaluation_seconds", "total_seconds", "attempts", "lost_seconds"}


def evaluated(*arguments: Any, storage: Path, name: str) -> results.Run:
    """Evaluate by the command, and load what it wrote."""
    assert cli.main(["evaluate", *map(str, arguments), "--storage", str(storage), "--name", name]) == 0
    return results.load(storage / name)


def changed(trial: Trial, values: dict[str, Any]) -> Trial:
    """The trial with other settings, given by path."""
    settings = trial.settings.model_dump()
    for path, value in values.items():
        *above, last = path.split(".")
        place = settings
        for name in above:
            place = place[name]
        place[last] = value
    return Trial.model_validate(trial.model_dump() | {"settings": settings})


def nothing(told: Any) -> None:
    return None


def computed(run: Path, trial: Trial) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What does not depend on clocks: the row, the curves, the answers and the pairs."""
    folder = run / "trials" / trial.trial_id
    row = json.loads((folder / "trial.json").read_text())
    curves, answers, pairs = (pd.read_parquet(folder / f"{name}.parquet") for name in ("curves", "answers", "pairs"))
    return {name: value for name, value in row.items() if name not in CLOCKS}, curves, answers, pairs


def assert_same(run: Path, expected: Path, trial: Trial) -> None:
    """What one run computed of a trial is what another did, bit for bit."""
    (row, *tables), (expected_row, *expected_tables) = computed(run, trial), computed(expected, trial)
    assert row == expected_row
    for one, other in zip(tables, expected_tables, strict=True):
        assert one.equals(other)


class Orders:
    """Answers the report of one step with an order, or raises there, and nothing before or after."""

    def __init__(self, step: int, answer: Any):
        self.step, self.answer = step, answer
        self.steps: list[int] = []

    def __call__(self, told: Any) -> Command | None:
        if told.get("doing") != "training":
            return None
        self.steps.append(told["step"])
        if told["step"] != self.step:
            return None
        if isinstance(self.answer, BaseException):
            raise self.answer
        answer: Command | None = self.answer
        return answer
