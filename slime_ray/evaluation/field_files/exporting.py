"""A finished run as files of Arena-Hard 2 or MT-Bench, which the field's own scripts read, judge again and score.

question.jsonl                        every prompt that a policy answered, with all its turns
model_answer/<model>.jsonl            one model a trial, named by it, and the baseline
model_judgment/<judge>/<model>.jsonl  Arena-Hard: one for each trial that was judged
model_judgment/<judge>_pair.jsonl     MT-Bench: the verdicts on all trials, in both orders
model_judgment/<judge>_single.jsonl   MT-Bench: ratings of trials and baselines, where scores are ratings
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from slime_ray.data.forms import Messages
from slime_ray.data.messages import shown_text
from slime_ray.errors import InputError
from slime_ray.evaluation.verdicts import POINTS_OF_A
from slime_ray.runs import files, results

BASELINE = "baseline"
"""The baseline's name as a model. Where trials of a run have different baselines, the later ones are numbered."""
HARD_PROMPT, GENERAL = "hard_prompt", "general"
"""Categories of prompts without one: what Arena-Hard's script scores unless told, and what FastChat has no references
for."""
MISSING, ERROR = -1, "error"
"""How MT-Bench's files call a rating and a verdict that there is not. Their script leaves both out."""

Form = Literal["arena-hard", "mt-bench"]
Row = dict[str, Any]
Turn = tuple[str, int]
"""Id of a prompt, and which turn of it."""
Baselines = dict[str, dict[Turn, Row]]
"""By name, the rows of answers that hold a baseline's answer to each turn."""


@dataclass(frozen=True)
class _Trial:
    """A trial's answers. judgments: the verdicts on them as rows, by judge."""

    id: str
    model: str
    baseline: str
    rows: Sequence[Row]
    judgments: Mapping[str, Sequence[Row]]


def export_run(run: results.Run, folder: Path, form: Form) -> str:
    """Write `run` under `folder` and return a sentence that says what was written. The same run gives the same bytes.

    Raises:
        InputError: No trial has answers, Arena-Hard's form has no room for them, or a file is there already and holds
            something else; then nothing is written.
    """
    trials, baselines = _trials_of(run)
    if not trials:
        raise InputError(f"{run.path}: no trial has answers, so there is nothing to export.")
    contents = (_arena_hard if form == "arena-hard" else _mt_bench)(trials, baselines)
    _write({folder / name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in contents.items()})
    judged = sum(bool(trial.judgments) for trial in trials)
    judgments = f"judgments of {judged}" if judged else "no judgments, for no answer was judged"
    questions = len(contents["question.jsonl"])
    return f"{folder}: {questions} questions, answers of {len(trials)} trials and the baseline, {judgments}."


def _trials_of(run: results.Run) -> tuple[list[_Trial], Baselines]:
    by_trial: dict[Any, Any] = dict(iter(run.answers.groupby("trial_id", sort=False)))
    trial_names = set(map(_file_name, run.trials["trial_id"]))
    trials: list[_Trial] = []
    baselines: Baselines = {}
    for trial in run.trials.to_dict("records"):
        name = str(trial["trial_id"])
        if name in by_trial:
            rows = by_trial[name].to_dict("records")
            baseline = _baseline(rows, baselines, trial_names)
            trials.append(_Trial(name, _file_name(name), baseline, rows, _judgments(run, trial, rows)))
    return trials, baselines


def _baseline(rows: Sequence[Row], baselines: Baselines, trial_names: set[str]) -> str:
    """Name the baseline in these rows: a known one that gave no other answers to these turns, or a new one."""
    answers = {_turn(row): row for row in rows}
    for name, baseline_rows in baselines.items():
        if all(
            baseline_rows.get(turn, row)["baseline_answer"] == row["baseline_answer"] for turn, row in answers.items()
        ):
            baselines[name] = {
                **baseline_rows,
                **{turn: row for turn, row in answers.items() if turn not in baseline_rows},
            }
            return name
    names = (BASELINE if number == 1 else f"{BASELINE}-{number}" for number in count(1))
    name = next(name for name in names if name not in baselines and name not in trial_names)
    baselines[name] = answers
    return name


def _judgments(run: results.Run, trial: Mapping[Any, Any], answers: Sequence[Row]) -> Mapping[str, Sequence[Row]]:
    """Return the verdicts on a trial's answers by judge; of a judge's repeats the first."""
    verdicts = run.verdicts[(run.verdicts["trial_id"] == trial["trial_id"]) & (run.verdicts["repeat"] == 1)]
    if len(verdicts):
        panel: dict[str, Any] = {str(judge): rows.to_dict("records") for judge, rows in verdicts.groupby("judge")}
        return panel
    judge = trial["judge"]
    return {judge: answers} if isinstance(judge, str) and judge not in ("", "none") else {}


def _arena_hard(trials: Sequence[_Trial], baselines: Baselines) -> dict[str, list[Row]]:
    questions: dict[str, Row] = {}
    answers: dict[str, list[Row]] = {}
    judgments: dict[str, list[Row]] = {}
    for trial in trials:
        prompts = {row["prompt_id"]: _prompt_text(json.loads(row["prompt"])) for row in trial.rows}
        if len(prompts) < len(trial.rows):
            raise InputError(
                f"trial {trial.id} has {len(trial.rows)} answers to {len(prompts)} prompts. Arena-Hard's files hold "
                "one answer to a prompt; those of MT-Bench have room for several turns: --form mt-bench."
            )
        categories = {row["prompt_id"]: _category(row, HARD_PROMPT) for row in trial.rows}
        for uid, prompt in prompts.items():
            questions[uid] = {"uid": uid, "category": categories[uid], "prompt": prompt}
        answers[trial.model] = [
            _conversation(trial.model, questions[row["prompt_id"]], row["answer"], row["answer_tokens"])
            for row in trial.rows
        ]
        for judge, verdicts in trial.judgments.items():
            about = {"judge": judge, "model": trial.model, "baseline": trial.baseline}
            judgments[f"model_judgment/{_file_name(judge)}/{trial.model}.jsonl"] = [
                # The first game shows the baseline's answer as A, the second the model's.
                {
                    "uid": (uid := row["prompt_id"]),
                    "category": categories[uid],
                    **about,
                    "games": [_game(row["verdict_ba"]), _game(row["verdict_ab"])],
                }
                for row in verdicts
            ]
    for name, rows in baselines.items():
        answers[name] = [
            _conversation(name, questions[uid], row["baseline_answer"], row["baseline_tokens"])
            for (uid, _), row in rows.items()
        ]
    models = {f"model_answer/{model}.jsonl": rows for model, rows in answers.items()}
    return {"question.jsonl": list(questions.values()), **models, **judgments}


def _conversation(model: str, question: Row, text: str, tokens: float | None) -> Row:
    return {
        "uid": question["uid"],
        "ans_id": _answer_id(model, question["uid"]),
        "model": model,
        "messages": [
            {"role": "user", "content": question["prompt"]},
            {"role": "assistant", "content": {"answer": text}},
        ],
        # A count that is not known is NaN in a frame.
        "metadata": {"token_len": int(tokens)} if tokens is not None and tokens == tokens else {},
    }


def _category(row: Mapping[str, Any], without: str) -> str:
    return row["category"] if isinstance(row["category"], str) else without


def _game(verdict: Any) -> Row:
    return {"score": verdict if isinstance(verdict, str) else None}


def _mt_bench(trials: Sequence[_Trial], baselines: Baselines) -> dict[str, list[Row]]:
    questions: dict[Turn, str] = {}
    categories: dict[str, str] = {}
    answers: dict[str, dict[Turn, str]] = {}
    pairs: dict[str, list[Row]] = {}
    ratings: dict[str, dict[str, dict[Turn, float | None]]] = {}
    for trial in trials:
        for row in trial.rows:
            name, turn = _turn(row)
            messages = json.loads(row["prompt"])
            # A later turn follows the policy's own answers; the question is what the user says then.
            questions[name, turn] = _prompt_text(messages) if turn == 1 else messages[-1]["content"]
            categories[name] = _category(row, GENERAL)
        answers[trial.model] = {_turn(row): row["answer"] for row in trial.rows}
        for judge, verdicts in trial.judgments.items():
            pairs.setdefault(judge, []).extend(_pair(judge, trial, row) for row in verdicts)
            model_ratings = ratings.setdefault(judge, {})
            for model, column in ((trial.model, "score"), (trial.baseline, "baseline_score")):
                for row in verdicts:
                    score = None if row[column] is None or row[column] != row[column] else float(row[column])
                    model_ratings.setdefault(model, {}).setdefault(_turn(row), score)
    for name, rows in baselines.items():
        answers[name] = {turn: row["baseline_answer"] for turn, row in rows.items()}
    files: dict[str, list[Row]] = {
        "question.jsonl": [
            {"question_id": _number(name), "category": categories[name], "turns": turns}
            for name, turns in _by_prompt(questions).items()
        ]
    }
    for model, texts in answers.items():
        files[f"model_answer/{model}.jsonl"] = [
            {
                "question_id": _number(name),
                "answer_id": _answer_id(model, name),
                "model_id": model,
                "choices": [{"index": 0, "turns": turns}],
            }
            for name, turns in _by_prompt(texts).items()
        ]
    for judge, rows_of_pairs in pairs.items():
        files[f"model_judgment/{_file_name(judge)}_pair.jsonl"] = rows_of_pairs
    for judge, model_ratings in ratings.items():
        present_scores = [score for scores in model_ratings.values() for score in scores.values() if score is not None]
        if present_scores and all(1 <= score <= 10 for score in present_scores):
            files[f"model_judgment/{_file_name(judge)}_single.jsonl"] = [
                {
                    "question_id": _number(name),
                    "model": model,
                    "judge": [judge, "single"],
                    # The words stand in the cache of verdicts.
                    "judgment": "",
                    "score": MISSING if score is None else score,
                    "turn": turn,
                }
                for model, scores in model_ratings.items()
                for (name, turn), score in scores.items()
            ]
    return files


def _pair(judge: str, trial: _Trial, row: Row) -> Row:
    """The first game shows the model's answer as A, the second the baseline's."""
    name, turn = _turn(row)
    return {
        "question_id": _number(name),
        "model_1": trial.model,
        "model_2": trial.baseline,
        "g1_winner": _winner(row["verdict_ab"], "model_1", "model_2"),
        "g2_winner": _winner(row["verdict_ba"], "model_2", "model_1"),
        "judge": [judge, "pair"],
        "turn": turn,
    }


def _winner(verdict: Any, a: str, b: str) -> str:
    points = POINTS_OF_A.get(verdict) if isinstance(verdict, str) else None
    return ERROR if points is None else {1.0: a, 0.5: "tie", 0.0: b}[points]


def _by_prompt(texts: Mapping[Turn, str]) -> dict[str, list[str]]:
    """Return the texts of each prompt in the order of its turns."""
    by_prompt: dict[str, list[str]] = {name: [] for name, _ in texts}
    for name, turn in sorted(texts, key=lambda key: key[1]):
        by_prompt[name].append(texts[name, turn])
    return by_prompt


def _number(name: str) -> int | str:
    """MT-Bench numbers its questions."""
    return int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else name


def _turn(row: Mapping[str, Any]) -> Turn:
    return row["prompt_id"], int(row["turn"])


def _prompt_text(messages: Messages) -> str:
    """A prompt as one text, as the field's files have it: a lone user message, else every message under its role."""
    if [message["role"] for message in messages] == ["user"]:
        return shown_text(messages[0])
    return "\n\n".join(f"{message['role']}: {shown_text(message)}" for message in messages)


def _file_name(name: str) -> str:
    """`name` as a model or judge is called in file names; one that had to change gets a digest, and stays unique."""
    plain = re.sub(r"[^\w.=+-]+", "-", name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _answer_id(model: str, prompt: str) -> str:
    return hashlib.sha256(f"{model}\n{prompt}".encode()).hexdigest()[:22]


def _write(contents: Mapping[Path, str]) -> None:
    """Write files, in folders that are made; none where one is there already and holds something else."""
    try:
        for path, content in contents.items():
            if path.exists() and path.read_bytes() != content.encode():
                raise InputError(f"{path} is there already and holds something else. Give another folder, or move it.")
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, content)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written: {error.strerror}. Give another folder.") from None
