"""A finished run as files of Arena-Hard 2, which its own scripts read, judge again and score.

question.jsonl                        every prompt that a policy answered
model_answer/<model>.jsonl            one model a trial, named by it, and the baseline
model_judgment/<judge>/<model>.jsonl  one for each trial that was judged
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from slime_ray import results
from slime_ray.data.forms import Messages
from slime_ray.errors import InputError

CATEGORY = "hard_prompt"
"""The category of every exported prompt, for runs have none: the one that Arena-Hard's script scores unless told."""

BASELINE = "baseline"
"""The baseline's name as a model. Where trials of a run have different baselines, the later ones are numbered."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """What an export wrote. models: trials with answers. judged: how many of them have judgments."""

    folder: Path
    questions: int
    models: int
    judged: int

    def __str__(self) -> str:
        """One sentence for the terminal."""
        judged = f"judgments of {self.judged}" if self.judged else "no judgments, for no answer was judged"
        return f"{self.folder}: {self.questions} questions, answers of {self.models} trials and the baseline, {judged}."


@dataclass
class _Files:
    """Rows on their way into files. trials: names that no baseline may have. Baselines' answers are kept by prompt."""

    trials: frozenset[str]
    questions: dict[str, Row] = field(default_factory=dict)
    answers: dict[str, list[Row]] = field(default_factory=dict)
    judgments: dict[str, list[Row]] = field(default_factory=dict)
    baselines: dict[str, dict[str, Row]] = field(default_factory=dict)

    def contents(self) -> dict[str, str]:
        models = self.answers | {name: list(rows.values()) for name, rows in self.baselines.items()}
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
    files = _Files(trials=frozenset(map(_file_name, run.trials["trial_id"])))
    by_trial: dict[Any, Any] = dict(iter(run.answers.groupby("trial_id", sort=False)))
    trials: list[Any] = run.trials.to_dict("records")
    for trial in trials:
        if trial["trial_id"] in by_trial:
            _add_trial(files, trial, by_trial[trial["trial_id"]].to_dict("records"))
    if not files.answers:
        raise InputError(f"{run.path}: no trial has answers, so there is nothing to export.")
    _write({folder / name: content for name, content in files.contents().items()})
    return Exported(folder, len(files.questions), len(files.answers), len(files.judgments))


def _add_trial(files: _Files, trial: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    model = _file_name(trial["trial_id"])
    prompts = {row["prompt_id"]: _prompt_text(json.loads(row["prompt"])) for row in rows}
    if len(prompts) < len(rows):
        raise InputError(
            f"trial {trial['trial_id']} has {len(rows)} answers to {len(prompts)} prompts. Arena-Hard's files hold one "
            "answer to a prompt, so this run cannot be exported."
        )
    for uid, prompt in prompts.items():
        files.questions[uid] = {"uid": uid, "category": CATEGORY, "prompt": prompt}
    files.answers[model] = [
        _answer(model, row["prompt_id"], prompts[row["prompt_id"]], row["answer"], row["answer_tokens"]) for row in rows
    ]
    baseline = _baseline(files, {row["prompt_id"]: row["baseline_answer"] for row in rows})
    for row in rows:
        uid = row["prompt_id"]
        answer = _answer(baseline, uid, prompts[uid], row["baseline_answer"], row["baseline_tokens"])
        files.baselines[baseline].setdefault(uid, answer)
    if isinstance(judge := trial["judge"], str) and judge not in ("", "none"):
        about = {"category": CATEGORY, "judge": judge, "model": model, "baseline": baseline}
        files.judgments[f"{_file_name(judge)}/{model}"] = [
            # The first game shows the baseline's answer as A, the second the model's.
            {"uid": row["prompt_id"], **about, "games": [_game(row["verdict_ba"]), _game(row["verdict_ab"])]}
            for row in rows
        ]


def _baseline(files: _Files, answers: Mapping[str, str]) -> str:
    """The name of the baseline that gave `answers`: a known one that gave no others to these prompts, or a new one."""
    for name, known in files.baselines.items():
        if all(_said(known[uid]) == text for uid, text in answers.items() if uid in known):
            return name
    names = (BASELINE if number == 1 else f"{BASELINE}-{number}" for number in count(1))
    name = next(name for name in names if name not in files.baselines and name not in files.trials)
    files.baselines[name] = {}
    return name


def _answer(model: str, uid: str, prompt: str, text: str, tokens: float | None) -> Row:
    return {
        "uid": uid,
        "ans_id": hashlib.sha256(f"{model}\n{uid}".encode()).hexdigest()[:22],
        "model": model,
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": {"answer": text}}],
        # A count that is not known is NaN in a frame.
        "metadata": {"token_len": int(tokens)} if tokens is not None and tokens == tokens else {},
    }


def _said(answer: Row) -> Any:
    return answer["messages"][-1]["content"]["answer"]


def _game(verdict: Any) -> Row:
    return {"score": verdict if isinstance(verdict, str) else None}


def _prompt_text(messages: Messages) -> str:
    """Arena-Hard's prompts are one text: that of a lone user message, else every message under its role."""
    if [message["role"] for message in messages] == ["user"]:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _file_name(name: str) -> str:
    """`name` as a model or judge is called in file names; one that had to change gets a digest, and stays unique."""
    plain = re.sub(r"[^\w.=+-]+", "-", name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _write(contents: Mapping[Path, str]) -> None:
    try:
        for path, content in contents.items():
            if path.exists() and path.read_bytes() != content.encode():
                raise InputError(f"{path} is there already and holds something else. Give another folder, or move it.")
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            results.write_text(path, content)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written: {error.strerror}. Give another folder.") from None
