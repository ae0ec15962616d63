"""A finished run as files of MT-Bench, which FastChat's own scripts read, judge again and score.

question.jsonl                       every prompt that a policy answered, with all its turns
model_answer/<model>.jsonl           one model a trial, named by it, and the baseline
model_judgment/<judge>_pair.jsonl    the verdicts on all trials, in both orders
model_judgment/<judge>_single.jsonl  the ratings of all trials and baselines, where the judge's scores are ratings
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
from slime_ray.evaluation.verdicts import POINTS_OF_A
from slime_ray.runs import results

CATEGORY = "general"
"""Of a prompt without a category; one that FastChat's judging has no reference answers for."""
MISSING, ERROR = -1, "error"
"""How the files call a rating and a verdict that there is not. Their script leaves both out."""

Turn = tuple[str, int]
"""Id of a prompt, and which turn of it."""


@dataclass
class _MtBenchFiles:
    """Rows on their way into files. turns: what was asked. answers: of models. ratings: of a judge, by model."""

    baselines: ExportedBaselines
    turns: dict[Turn, str] = field(default_factory=dict)
    categories: dict[str, str] = field(default_factory=dict)
    answers: dict[str, dict[Turn, str]] = field(default_factory=dict)
    pairs: dict[str, list[Row]] = field(default_factory=dict)
    ratings: dict[str, dict[str, dict[Turn, float | None]]] = field(default_factory=dict)
    judged: set[str] = field(default_factory=set)

    def contents(self) -> dict[str, str]:
        files: dict[str, list[Row]] = {
            "question.jsonl": [
                {"question_id": _id(name), "category": self.categories[name], "turns": turns}
                for name, turns in _by_prompt(self.turns).items()
            ]
        }
        for model, answers in self.answers.items():
            files[f"model_answer/{model}.jsonl"] = [
                {
                    "question_id": _id(name),
                    "answer_id": answer_id(model, name),
                    "model_id": model,
                    "choices": [{"index": 0, "turns": turns}],
                }
                for name, turns in _by_prompt(answers).items()
            ]
        for judge, pairs in self.pairs.items():
            files[f"model_judgment/{file_name(judge)}_pair.jsonl"] = pairs
        for judge, models in self.ratings.items():
            known = [score for scores in models.values() for score in scores.values() if score is not None]
            if known and all(1 <= score <= 10 for score in known):
                files[f"model_judgment/{file_name(judge)}_single.jsonl"] = [
                    _rating(judge, model, turn, score)
                    for model, scores in models.items()
                    for turn, score in scores.items()
                ]
        return {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in files.items()}


def export_mt_bench(run: results.Run, folder: Path) -> Exported:
    """Write `run` in MT-Bench's schema under `folder`; the same run gives the same bytes.

    Raises:
        InputError: no trial has answers, or a file is there already and holds something else; then nothing is written.
    """
    files = _MtBenchFiles(ExportedBaselines(frozenset(map(file_name, run.trials["trial_id"]))))
    by_trial: dict[Any, Any] = dict(iter(run.answers.groupby("trial_id", sort=False)))
    trials: list[Any] = run.trials.to_dict("records")
    for trial in trials:
        if trial["trial_id"] in by_trial:
            _add_trial(files, run, trial, by_trial[trial["trial_id"]].to_dict("records"))
    models = len(files.answers)
    if not models:
        raise InputError(f"{run.path}: no trial has answers, so there is nothing to export.")
    files.answers |= files.baselines.answers  # type: ignore[arg-type]
    write_files({folder / name: content for name, content in files.contents().items()})
    return Exported(folder, len(files.categories), models, len(files.judged))


def _add_trial(
    files: _MtBenchFiles, run: results.Run, trial: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    model = file_name(trial["trial_id"])
    turns = [_turn(row) for row in rows]
    for (name, turn), row in zip(turns, rows, strict=True):
        messages = json.loads(row["prompt"])
        # A later turn follows the policy's own answers; the question is what the user says then.
        files.turns[name, turn] = prompt_text(messages) if turn == 1 else messages[-1]["content"]
        category = row["category"]
        files.categories[name] = category if isinstance(category, str) else CATEGORY
    files.answers[model] = {turn: row["answer"] for turn, row in zip(turns, rows, strict=True)}
    baseline = files.baselines.name({turn: row["baseline_answer"] for turn, row in zip(turns, rows, strict=True)})
    for judge, judged in judgments_of(run, trial, rows).items():
        files.judged.add(model)
        files.pairs.setdefault(judge, []).extend(_pair(judge, model, baseline, _turn(row), row) for row in judged)
        ratings = files.ratings.setdefault(judge, {})
        for rated, column in ((model, "score"), (baseline, "baseline_score")):
            for row in judged:
                score = row[column]
                known = None if score is None or score != score else float(score)
                ratings.setdefault(rated, {}).setdefault(_turn(row), known)


def _turn(row: Mapping[str, Any]) -> Turn:
    return row["prompt_id"], int(row["turn"])


def _pair(judge: str, model: str, baseline: str, turn: Turn, row: Mapping[str, Any]) -> Row:
    """The first game shows the model's answer as A, the second the baseline's."""
    return {
        "question_id": _id(turn[0]),
        "model_1": model,
        "model_2": baseline,
        "g1_winner": _winner(row["verdict_ab"], "model_1", "model_2"),
        "g2_winner": _winner(row["verdict_ba"], "model_2", "model_1"),
        "judge": [judge, "pair"],
        "turn": turn[1],
    }


def _winner(verdict: Any, a: str, b: str) -> str:
    points = POINTS_OF_A.get(verdict) if isinstance(verdict, str) else None
    return ERROR if points is None else {1.0: a, 0.5: "tie", 0.0: b}[points]


def _rating(judge: str, model: str, turn: Turn, score: float | None) -> Row:
    return {
        "question_id": _id(turn[0]),
        "model": model,
        "judge": [judge, "single"],
        # The words stand in the cache of verdicts.
        "judgment": "",
        "score": MISSING if score is None else score,
        "turn": turn[1],
    }


def _by_prompt(said: Mapping[Turn, str]) -> dict[str, list[str]]:
    """The texts of each prompt in the order of its turns."""
    found: dict[str, dict[int, str]] = {}
    for (name, turn), text in said.items():
        found.setdefault(name, {})[turn] = text
    return {name: [turns[turn] for turn in sorted(turns)] for name, turns in found.items()}


def _id(name: str) -> int | str:
    """MT-Bench numbers its questions."""
    return int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else name
