"""What exports of a run share: the prompts as text, names that files can have, and writing without overwriting."""

import hashlib
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from slime_ray.data.forms import Messages
from slime_ray.data.messages import shown_text
from slime_ray.errors import InputError
from slime_ray.runs import files, results

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
class ExportedBaselines:
    """The baselines of a run, each with its answers by prompt. taken: names that no baseline may have."""

    taken: Collection[str]
    answers: dict[str, dict[Hashable, str]] = field(default_factory=dict)

    def name(self, answers: Mapping[Hashable, str]) -> str:
        """The name of the baseline that gave `answers`: a known one that gave no others to these prompts, or a new one.

        answers: by prompt, or by whatever tells one answer from another.
        """
        for name, known in self.answers.items():
            if all(known.get(prompt, text) == text for prompt, text in answers.items()):
                known.update(answers)
                return name
        names = (BASELINE if number == 1 else f"{BASELINE}-{number}" for number in count(1))
        name = next(name for name in names if name not in self.answers and name not in self.taken)
        self.answers[name] = dict(answers)
        return name


def judge_of(trial: Mapping[str, Any]) -> str | None:
    """Who judged a trial's answers, None where nobody did. trial: its row of trials.parquet."""
    judge = trial["judge"]
    return judge if isinstance(judge, str) and judge not in ("", "none") else None


def judgments_of(
    run: results.Run, trial: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]
) -> dict[str, Sequence[Mapping[Any, Any]]]:
    """The verdicts on a trial's answers as rows, by the judge that gave them; of a judge's repeats the first."""
    own = run.verdicts[(run.verdicts["trial_id"] == trial["trial_id"]) & (run.verdicts["repeat"] == 1)]
    if len(own):
        return {str(judge): rows.to_dict("records") for judge, rows in own.groupby("judge")}
    judge = judge_of(trial)
    return {judge: answers} if judge else {}


def prompt_text(messages: Messages) -> str:
    """A prompt as one text, as the field's files have it: a lone user message, else every message under its role."""
    if [message["role"] for message in messages] == ["user"]:
        return shown_text(messages[0])
    return "\n\n".join(f"{message['role']}: {shown_text(message)}" for message in messages)


def file_name(name: str) -> str:
    """`name` as a model or judge is called in file names; one that had to change gets a digest, and stays unique."""
    plain = re.sub(r"[^\w.=+-]+", "-", name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def answer_id(*named: object) -> str:
    """Tells an answer by what names it."""
    return hashlib.sha256("\n".join(map(str, named)).encode()).hexdigest()[:22]


def write_files(contents: Mapping[Path, str]) -> None:
    """Write files, in folders that are made. Raises InputError where one is there already and holds something else.

    Then nothing is written.
    """
    try:
        for path, content in contents.items():
            if path.exists() and path.read_bytes() != content.encode():
                raise InputError(f"{path} is there already and holds something else. Give another folder, or move it.")
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, content)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written: {error.strerror}. Give another folder.") from None
