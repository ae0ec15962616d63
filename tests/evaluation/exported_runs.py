"""Small runs to export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_ray.evaluation.win_rate import Comparison
from slime_ray.runs import results, schema

Verdicts = Sequence[tuple[str | None, str | None]]


def add_trial(
    run: Path,
    trial_id: str,
    verdicts: Verdicts,
    *,
    answer: str = "a",
    each: Sequence[dict[str, Any]] = (),
    **changes: Any,
) -> None:
    """A finished trial: `verdicts` of each prompt, with the policy as A and as B. each: other columns, a row a prompt."""
    judge = changes.pop("judge", "exact")
    about = {"trial_id": trial_id, "label": trial_id, "phase": "arm", "seed": 0}
    answers = [
        dict.fromkeys(schema.ANSWER_SCHEMA.names)
        | about
        | {
            "prompt_set": "report",
            "prompt_id": f"p{number}",
            "prompt": [{"role": "user", "content": f"question {number}\u2028é"}],
            "answer": f"{answer} {number}",
            "answer_tokens": 3,
            "baseline_answer": f"baseline {number}",
            "baseline_tokens": 2,
            "verdict_ab": ab,
            "verdict_ba": ba,
            "outcome": Comparison(ab, ba).outcome,  # type: ignore[arg-type]
        }
        | changes
        | (each[number] if each else {})
        for number, (ab, ba) in enumerate(verdicts)
    ]
    row = results.trial_row(**about, status="completed", judge=judge, overrides={}, settings={})
    results.write_trial(run, row=row, answers=answers, curves=[])


def load(run: Path) -> results.Run:
    results.write_manifest(run, {"schema": schema.RUN_SCHEMA})
    return results.load(run)
