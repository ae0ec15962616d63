"""Answers beside the baseline's, as a page shows them: text that models wrote, to be escaped by who prints it."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from slime_ray.runs.results import Run

from .printing import Table
from .rows import of_label

EXAMPLES = 5
LONGEST_ANSWER = 2000
SHOWN = ["prompt", "answer", "baseline_answer", "outcome", "broken_reason", "baseline_broken"]
"""Columns of an answer that a pair is made of."""


def examples(run: Run, main: Table) -> dict[str, Any] | None:
    """Answers of the best row's first seed to the first prompts in the order of their ids: not chosen by content."""
    for label in main.frame["label"] if len(main.frame) else run.trials["label"]:
        answers = of_label(run, run.answers, label)
        if answers.empty:
            continue
        seed = answers["seed"].min()
        pairs = first_pairs(answers[answers["seed"] == seed])
        return {"label": label, "seed": int(seed), "pairs": next(iter(pairs.values()))}
    return None


def first_pairs(answers: pd.DataFrame, *, longest: int = LONGEST_ANSWER) -> dict[str, list[dict[str, str]]]:
    """By trial its first answers in the order of their prompts' ids, each at most so many characters long."""
    first = answers.sort_values("prompt_id", kind="stable").groupby("trial_id", sort=False).head(EXAMPLES)
    pairs: dict[str, list[dict[str, str]]] = {}
    for row in first[["trial_id", *SHOWN]].to_dict("records"):
        pairs.setdefault(row["trial_id"], []).append(_pair(row, longest))
    return pairs


def _pair(row: Mapping[Any, Any], longest: int) -> dict[str, str]:
    words = {1.0: "wins", 0.5: "ties", 0.0: "loses", 0.25: "ties and loses", 0.75: "wins and ties"}
    outcome = row["outcome"]
    return {
        "prompt": _prompt(row["prompt"]),
        "answer": _cut(row["answer"], longest),
        "baseline": _cut(row["baseline_answer"], longest),
        "verdict": "no verdict" if pd.isna(outcome) else words.get(outcome, str(outcome)),
        "broken": f"broken: {row['broken_reason']}" if pd.notna(row["broken_reason"]) else "",
        "baseline_broken": "broken" if row["baseline_broken"] is True else "",
    }


def _prompt(text: Any) -> str:
    try:
        messages = json.loads(text)
        if len(messages) == 1:
            return str(messages[0]["content"])
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    except (TypeError, ValueError, KeyError):
        return str(text)


def _cut(text: Any, longest: int) -> str:
    if pd.isna(text):
        return ""
    return text if len(text) <= longest else text[:longest] + f" … ({len(text)} characters)"
