"""Reading the files of Arena-Hard and MT-Bench, and our own plain form. Which of them a file is, its keys say.

Every error is an InputError that names the file, the line and the way out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from slime_ray.errors import InputError
from slime_ray.evaluation.field_files import schemas
from slime_ray.evaluation.field_files.jsonl import complaint, read_objects
from slime_ray.evaluation.field_files.records import Judgment, ModelAnswer, Question, Rating

Record = Question | ModelAnswer | Judgment | Rating
R = TypeVar("R", Question, ModelAnswer, Judgment, Rating)

Forms = Mapping[tuple[str, ...], type[schemas.Row]]
"""Forms of rows by the keys that tell each from those after it."""

_QUESTIONS: Forms = {
    ("uid",): schemas.ArenaHardQuestion, ("question_id",): schemas.TurnsQuestion, ("prompt",): schemas.PlainQuestion
}  # fmt: skip
_ANSWERS: Forms = {
    ("uid",): schemas.ArenaHardAnswer, ("question_id",): schemas.TurnsAnswer, ("prompt",): schemas.PlainAnswer
}  # fmt: skip
_JUDGMENTS: Forms = {("uid",): schemas.ArenaHardJudgment, ("question_id", "games"): schemas.OlderJudgment}
_RATINGS: Forms = {("question_id", "turn"): schemas.RatingRow}


def read_questions(path: Path) -> list[Question]:
    """Questions in the file's order. A file of answers in our own form is one of questions, too."""
    questions: list[Question] = list(_records(path, _QUESTIONS))
    _refuse_repeats(questions, lambda question: f"question {question.id!r}")
    return questions


def read_answers(path: Path) -> list[ModelAnswer]:
    """One model's answers in the file's order."""
    answers: list[ModelAnswer] = list(_records(path, _ANSWERS))
    _refuse_repeats(answers, lambda answer: f"an answer to {answer.question_id!r}")
    _refuse_several(answers, "model", lambda answer: answer.model)
    return answers


def read_judgments(path: Path) -> list[Judgment]:
    """One judge's verdicts on one model, in the file's order; Arena-Hard has a baseline for each category."""
    judgments: list[Judgment] = list(_records(path, _JUDGMENTS))
    _refuse_several(judgments, "model", lambda judgment: judgment.model)
    _refuse_several(judgments, "judge", lambda judgment: judgment.judge)
    baselines: dict[str | None, list[Judgment]] = {}
    for judgment in judgments:
        baselines.setdefault(judgment.category, []).append(judgment)
    for category in baselines.values():
        _refuse_several(category, "baseline", lambda judgment: str(judgment.baseline))
    _refuse_repeats(judgments, lambda judgment: f"a judgment of {judgment.question_id!r}")
    return judgments


def read_ratings(path: Path, *, repeats: bool = False) -> list[Rating]:
    """One judge's scores of MT-Bench in the file's order; such a file holds several models.

    repeats: whether a turn may be rated more than once; see `mt_bench_means`.
    """
    ratings: list[Rating] = list(_records(path, _RATINGS))
    _refuse_several(ratings, "judge", lambda rating: rating.judge)
    if repeats:
        return ratings
    _refuse_repeats(ratings, lambda rating: f"turn {rating.turn} of {rating.question_id!r} by {rating.model!r}")
    return ratings


def _records(path: Path, forms: Forms) -> Iterator[Any]:
    first: type[schemas.Row] | None = None
    for place, row in read_objects(path):
        form = next((form for keys, form in forms.items() if all(key in row for key in keys)), None)
        if form is None:
            known = "; or ".join(_keys(form) for form in forms.values())
            raise InputError(f"{place}: the keys are {', '.join(row) or 'none'}. A row has the keys {known}.")
        first = first or form
        if form is not first:
            raise InputError(f"{place}: the rows before have the keys {_keys(first)}, this one has not. Keep one form.")
        try:
            yield form.model_validate(row).record(place)
        except ValidationError as error:
            raise InputError(f"{place}: {complaint(error)}. Such a row has the keys {_keys(form)}.") from None


def _keys(form: type[schemas.Row]) -> str:
    return ", ".join(name for name, field in form.model_fields.items() if field.is_required())


def _refuse_repeats(records: Iterable[R], name: Callable[[R], str]) -> None:
    places: dict[str, str] = {}
    for record in records:
        said = name(record)
        if said in places:
            raise InputError(f"{record.place}: {said} stands in {places[said]} already. Keep one of the two.")
        places[said] = record.place


def _refuse_several(records: Sequence[R], what: str, name: Callable[[R], str]) -> None:
    for record in records:
        if name(record) != name(records[0]):
            raise InputError(
                f"{record.place}: the {what} is {name(record)!r}, but {name(records[0])!r} in {records[0].place}. Give "
                f"each {what} a file of its own."
            )


def answers_to(questions: Sequence[Question], answers: Sequence[ModelAnswer]) -> list[ModelAnswer]:
    """The answers in the order of the questions, one to each.

    Raises:
        InputError: an answer to no question, a question without an answer, another number of turns, or an answer that
            was given to another prompt than the question of its id.
    """
    asked = {question.id: question for question in questions}
    for answer in answers:
        question = asked.get(answer.question_id)
        if question is None:
            raise InputError(
                f"{answer.place}: this answers {answer.question_id!r}, which is none of the questions of "
                f"{_file(questions[0])}. Give answers to the same questions, or delete those to others."
            )
        if len(answer.turns) != len(question.turns):
            raise InputError(
                f"{answer.place}: the answer has {len(answer.turns)} turns, but {question.place} asks for "
                f"{len(question.turns)}. Answer every turn, once."
            )
        if answer.prompt is not None and answer.prompt != question.turns[-1]:
            raise InputError(
                f"{answer.place}: this answers another prompt than {question.place} has under the id "
                f"{question.id!r}. Give answers to the same questions."
            )
    given = {answer.question_id: answer for answer in answers}
    lacking = [question for question in questions if question.id not in given]
    if lacking:
        raise InputError(
            f"{_file(answers[0])} has no answer to {len(lacking)} of {len(questions)} questions, the first "
            f"{lacking[0].id!r} ({lacking[0].place}). Answer every question, or leave it out of the questions."
        )
    return [given[question.id] for question in questions]


def _file(record: Record) -> str:
    return record.place.rpartition(":")[0]
