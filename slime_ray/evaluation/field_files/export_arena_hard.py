"""A finished run as files of Arena-Hard 2, which its own scripts read, judge again and score.

question.jsonl                        every prompt that a policy answered
model_answer/<model>.jsonl            one model a trial, named by it, and the baseline
model_judgment/<judge>/<model>.jsonl  one for each trial that was judged
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slime_ray.errors import InputError
from slime_ray.evaluation.field_files.exported import (
    Exported,
    ExportedBaselines,
    Row,
    answer_id,
    file_name,
    judgments_of,
    prompt_text,
    write_files,
)
from slime_ray.runs import results

CATEGORY = "hard_prompt"
"""The category of every exported prompt, for runs have none: the one that Arena-Hard's script scores unless told."""


@dataclass
class _ArenaHardFiles:
    """Rows on their way into files. ExportedBaselines' answers are kept by model and prompt."""

    baselines: ExportedBaselines
    questions: dict[str, Row] = field(default_factory=dict)
    answers: dict[str, list[Row]] = field(default_factory=dict)
    judgments: dict[str, list[Row]] = field(default_factory=dict)
    baseline_answers: dict[str, dict[str, Row]] = field(default_factory=dict)

    def contents(self) -> dict[str, str]:
        models = self.answers | {name: list(rows.values()) for name, rows in self.baseline_answers.items()}
        files = {"question.jsonl": list(self.questions.values())}
        files |= {f"model_answer/{model}.jsonl": rows for model, rows in models.items()}
        files |= {f"model_judgment/{name}.jsonl": rows for name, rows in self.judgments.items()}
        return {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in files.items()}


def export_arena_hard(run: results.Run, folder: Path) -> Exported:
    """Write `run` in Arena-Hard 2's schema under `folder`; the same run gives the same bytes.

    Raises:
        InputError: no trial has answers, one has two to one prompt, or a file is there already and holds something
            else; then nothing is written.
    """
    files = _ArenaHardFiles(ExportedBaselines(frozenset(map(file_name, run.trials["trial_id"]))))
    by_trial: dict[Any, Any] = dict(iter(run.answers.groupby("trial_id", sort=False)))
    trials: list[Any] = run.trials.to_dict("records")
    for trial in trials:
        if trial["trial_id"] in by_trial:
            _add_trial(files, run, trial, by_trial[trial["trial_id"]].to_dict("records"))
    if not files.answers:
        raise InputError(f"{run.path}: no trial has answers, so there is nothing to export.")
    write_files({folder / name: content for name, content in files.contents().items()})
    judged = {name.partition("/")[2] for name in files.judgments}
    return Exported(folder, len(files.questions), len(files.answers), len(judged))


def _add_trial(
    files: _ArenaHardFiles, run: results.Run, trial: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    model = file_name(trial["trial_id"])
    prompts = {row["prompt_id"]: prompt_text(json.loads(row["prompt"])) for row in rows}
    if len(prompts) < len(rows):
        raise InputError(
            f"trial {trial['trial_id']} has {len(rows)} answers to {len(prompts)} prompts. Arena-Hard's files hold one "
            "answer to a prompt; those of MT-Bench have room for several turns: --form mt-bench."
        )
    for uid, prompt in prompts.items():
        files.questions[uid] = {"uid": uid, "category": CATEGORY, "prompt": prompt}
    files.answers[model] = [
        _answer(model, row["prompt_id"], prompts[row["prompt_id"]], row["answer"], row["answer_tokens"]) for row in rows
    ]
    baseline = files.baselines.name({row["prompt_id"]: row["baseline_answer"] for row in rows})
    for row in rows:
        uid = row["prompt_id"]
        answer = _answer(baseline, uid, prompts[uid], row["baseline_answer"], row["baseline_tokens"])
        files.baseline_answers.setdefault(baseline, {}).setdefault(uid, answer)
    for judge, judged in judgments_of(run, trial, rows).items():
        about = {"category": CATEGORY, "judge": judge, "model": model, "baseline": baseline}
        files.judgments[f"{file_name(judge)}/{model}"] = [
            # The first game shows the baseline's answer as A, the second the model's.
            {"uid": row["prompt_id"], **about, "games": [_game(row["verdict_ba"]), _game(row["verdict_ab"])]}
            for row in judged
        ]


def _answer(model: str, uid: str, prompt: str, text: str, tokens: float | None) -> Row:
    return {
        "uid": uid,
        "ans_id": answer_id(model, uid),
        "model": model,
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": {"answer": text}}],
        # A count that is not known is NaN in a frame.
        "metadata": {"token_len": int(tokens)} if tokens is not None and tokens == tokens else {},
    }


def _game(verdict: Any) -> Row:
    return {"score": verdict if isinstance(verdict, str) else None}
