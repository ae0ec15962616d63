"""Win rates that a few strong verdicts correct: prediction-powered inference over the judge's many cheap ones.

The judge says something of every prompt, people (or a stronger judge) of a few. With y their outcomes, f the judge's
on the same answers, n labelled prompts and N others, the corrected rate is

    mean(y) + l (mean_N(f) - mean_n(f)),    l = cov(y, f) / ((1 + n / N) var(f)),

whatever the judge's bias is (Angelopoulos et al. 2023, PPI++, arXiv 2311.01453, with its power tuning). Labelled
prompts have to be drawn at random from all.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.errors import InputError
from slime_ray.runs import results

from . import rows, statistics
from .printing import Column, Table, cells, interval_cells, numbers

FEWEST_LABELLED = 20
"""Labelled prompts that a corrected rate takes: the spread of fewer says too little of its error."""
UNSEEN = 0.25
"""Labels that are added at either extreme of what judge and label may differ by: rare errors may not have been seen."""
KEYS = ("trial_id", "prompt_id")
COLUMNS = (
    *("label", "win_rate", "corrected", "corrected_low", "corrected_high", "labels_alone", "bias", "weight"),
    *("labelled", "prompts"),
)


@dataclass(frozen=True)
class Corrected:
    """A corrected rate. weight: l, how much the judge's verdicts count. labelled: n."""

    rate: statistics.Interval
    weight: float
    labelled: int


def corrected_rate(labels: np.ndarray, judged: np.ndarray, unlabelled: np.ndarray) -> Corrected | None:
    """Correct a judge's rate; None of fewer than FEWEST_LABELLED labels.

    Args:
        labels: (n,) outcomes of labelled prompts, 0 to 1.
        judged: (n,) the judge's outcomes of the same answers.
        unlabelled: (N,) the judge's outcomes of the other prompts, maybe none.

    Returns:
        The rate with Wilson's score interval on the effective number of labels.
    """
    n = len(labels)
    if n < FEWEST_LABELLED:
        return None
    weight = gain = spread_of_gain = 0.0
    if len(unlabelled) > 1 and (spread := float(np.concatenate([judged, unlabelled]).var(ddof=1))) > 0:
        weight = float(np.clip(np.cov(labels, judged)[0, 1] / ((1 + n / len(unlabelled)) * spread), 0.0, 1.0))
        gain, spread_of_gain = weight * unlabelled.mean(), weight**2 * unlabelled.var(ddof=1) / len(unlabelled)
    rectified = labels - weight * judged
    mean = rectified.mean()
    squares = ((rectified - mean) ** 2).sum() + UNSEEN * ((1 - mean) ** 2 + (-weight - mean) ** 2)
    variance = squares / (n - 1 + 2 * UNSEEN) / n + spread_of_gain
    rate = float(np.clip(mean + gain, 0.0, 1.0))
    return Corrected(statistics.score_interval(rate, statistics.Scatter(variance, n - 1, n)), weight, n)


def read_labels(path: Path) -> pd.DataFrame:
    """Read labels: a CSV or JSONL file with `trial_id`, `prompt_id` and `outcome` (1 win, 0.5 tie, 0 loss), and `turn`.

    Raises:
        InputError: The file cannot be read, or a label is none.
    """
    with rows.reading(f"--labels {path}", "a CSV or JSONL file with trial_id, prompt_id and outcome"):
        if path.suffix == ".csv":
            labels = pd.read_csv(path, dtype=dict.fromkeys(KEYS, str))
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            labels = pd.DataFrame([_object(line, number) for number, line in enumerate(lines, 1) if line.strip()])
    missing = [name for name in (*KEYS, "outcome") if name not in labels]
    if missing:
        raise InputError(f"--labels {path}: lacks {', '.join(missing)}. Give trial_id, prompt_id and outcome.")
    outcomes = pd.to_numeric(labels["outcome"], errors="coerce")
    if len(bad := np.flatnonzero(~outcomes.between(0, 1))):
        raise InputError(
            f"--labels {path}: label {bad[0] + 1} has the outcome {labels['outcome'].iloc[bad[0]]!r}. "
            "Give 1 for a win of the trial's answer over the baseline's, 0.5 for a tie, 0 for a loss."
        )
    return labels.assign(outcome=outcomes, **{key: labels[key].astype(str) for key in KEYS})


def _object(line: str, number: int) -> dict[str, Any]:
    """Read a line of JSON. A list or an object in it is no label's, and read as missing. Raises ValueError."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"line {number} holds no object")
    return {name: None if isinstance(item, (list, dict)) else item for name, item in value.items()}


def corrected(run: results.Run, main: Table, labels: pd.DataFrame) -> Table:
    """A row for each row of the main table that has labels.

    Raises:
        InputError: Labels are of trials or prompts that the run has no judged answer of.
    """
    answers = _answers_with_labels(run, labels)
    shown, few, unjudged = [], [], 0
    for row in main.frame.to_dict("records"):
        answered = answers[answers["label"] == row["label"]]
        unjudged += int(answered[answered["outcome"].isna()]["strong"].count())
        answered = answered.dropna(subset="outcome")
        by_prompt = answered.groupby("prompt_id")["outcome"].mean()
        labelled = answered.dropna(subset="strong").groupby("prompt_id")[["strong", "outcome"]].mean()
        if labelled.empty:
            continue
        strong, judged = labelled.to_numpy(dtype=float).T
        rate = corrected_rate(strong, judged, by_prompt.drop(labelled.index).to_numpy(dtype=float))
        if rate is None:
            few.append(f"{row['label']} ({len(labelled)})")
            continue
        shown.append(
            {
                "label": row["label"],
                "win_rate": row["win_rate"],
                **statistics.columns({"corrected": rate.rate}),
                "labels_alone": strong.mean(),
                "bias": (judged - strong).mean(),
                "weight": rate.weight,
                "labelled": rate.labelled,
                "prompts": len(by_prompt),
            }
        )
    return _table(run, pd.DataFrame(shown, columns=COLUMNS), few, unjudged)


def _answers_with_labels(run: results.Run, labels: pd.DataFrame) -> pd.DataFrame:
    """Answers to report prompts with the judge's `outcome`, and the labels' as `strong`."""
    keys = [*KEYS, "turn"] if "turn" in labels else list(KEYS)
    # Of a prompt with several turns, or labelled by several people, the mean.
    judged = rows.judged_answers(run).groupby([*keys, "label"], as_index=False)["outcome"].mean()
    strong = labels.rename(columns={"outcome": "strong"}).groupby(keys, as_index=False)["strong"].mean()
    both = judged.merge(strong, on=keys, how="outer", indicator=True)
    if len(strange := both[both["_merge"] == "right_only"]):
        first = strange.iloc[0]
        raise InputError(
            f"{len(strange)} of {len(strong)} labels are of no answer of {rows.name_of(run)} to a report prompt, the "
            f"first of trial {first['trial_id']}, prompt {first['prompt_id']}. Take both from its answers.parquet."
        )
    return both


def _table(run: results.Run, frame: pd.DataFrame, few: list[str], unjudged: int) -> Table:
    lacking = [f"Fewer than {FEWEST_LABELLED} labelled prompts: {', '.join(few)}."] if few else []
    if unjudged:
        lacking.append(f"{unjudged} labels count for nothing: the judge has no valid verdict on their answers.")
    return Table(
        frame=frame,
        caption=f"{rows.name_of(run)}: the win rate of {rows.judge_of(run)}, corrected by labels "
        "(prediction-powered inference).",
        notes=[
            "Intervals are over prompts, of these checkpoints; labelled prompts are taken to be drawn at random. bias: "
            "what the judge gives more than the labels. weight: how much its verdicts on the other prompts count.",
            *lacking,
        ],
        columns=(
            Column("label", tuple(frame["label"]), numeric=False, keep=10),
            Column("judge %", numbers(frame, "win_rate", 1, scale=100)),
            Column("corrected % [95 %]", interval_cells(frame, "corrected", 1, scale=100), keep=9),
            Column("labels alone %", numbers(frame, "labels_alone", 1, scale=100)),
            Column("bias", numbers(frame, "bias", 1, scale=100, signed=True)),
            Column("weight", numbers(frame, "weight", 2)),
            Column("labelled", cells(frame, lambda row: f"{row['labelled']} of {row['prompts']}")),
        ),
    )
