"""Read questions and answers of Arena-Hard and MT-Bench, and of our own plain form. Their keys say which form they are.

Every error is an InputError that names the file, the line and the way out.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slime_ray.errors import InputError
from slime_ray.evaluation.field_files.forms import ANSWERS, QUESTIONS, Forms, ModelAnswer, Question, Row


def read_questions(path: Path) -> list[Question]:
    """Questions in the file's order. A file of answers in our own form is one of questions, too."""
    questions: list[Question] = list(read_records(path, QUESTIONS))
    places: dict[str, str] = {}
    for question in questions:
        refuse_repeat(places, question.id, question.place, f"question {question.id!r}")
    return questions


def read_answers(path: Path) -> list[ModelAnswer]:
    """One model's answers in the file's order."""
    answers: list[ModelAnswer] = list(read_records(path, ANSWERS))
    places: dict[str, str] = {}
    for answer in answers:
        refuse_repeat(places, answer.question_id, answer.place, f"an answer to {answer.question_id!r}")
        if answer.model != answers[0].model:
            raise InputError(
                f"{answer.place}: the model is {answer.model!r}, but {answers[0].model!r} in {answers[0].place}. Give "
                "each model a file of its own."
            )
    return answers


def refuse_repeat(places: dict[str, str], name: str, place: str, what: str) -> None:
    """Note where a name was read. Raises InputError where it was read before."""
    if name in places:
        raise InputError(f"{place}: {what} stands in {places[name]} already. Keep one of the two.")
    places[name] = place


def read_records(path: Path, forms: Forms) -> Iterator[Any]:
    """Read each row of a file, all in one of the forms. Raises InputError."""
    first: type[Row] | None = None
    for place, row in _read_objects(path):
        form = next((form for key, form in forms.items() if key in row), None)
        if form is None:
            key_lists = "; or ".join(map(_keys, forms.values()))
            raise InputError(f"{place}: the keys are {', '.join(row) or 'none'}. A row has the keys {key_lists}.")
        first = first or form
        if form is not first:
            raise InputError(f"{place}: the rows before have the keys {_keys(first)}, this one has not. Keep one form.")
        try:
            yield form.model_validate(row).record(place)
        except ValidationError as error:
            raise InputError(f"{place}: {_complaint(error)}. Such a row has the keys {_keys(form)}.") from None


def _keys(form: type[Row]) -> str:
    return ", ".join(name for name, field in form.model_fields.items() if field.is_required())


def _read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file with its place, `file:line`; blank lines are passed over. Raises InputError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file. Give a file with one JSON object a line.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Give a file with one JSON object a line.") from None
    nothing = True
    # Of bytes, for lines of text also end at characters that stand in JSON as they are.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if line.strip():
            nothing = False
            yield f"{path}:{number}", _object(line, f"{path}:{number}")
    if nothing:
        raise InputError(f"{path} is empty. Give a file with one JSON object a line.")


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8: {error.reason} at byte {error.start + 1}. Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON: {error}. Every line must be one whole JSON object.") from None
    if not isinstance(value, dict):
        raise InputError(f"{place}: {_short(value)} is no JSON object. Every line must be one whole JSON object.")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _complaint(error: ValidationError) -> str:
    """Begin a sentence with the first thing that a schema has against a row."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{key} is missing"
    message = str(first.get("ctx", {}).get("error") or first["msg"])
    return f"{key} is {_short(first['input'])}: {message[0].lower()}{message[1:]}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def answers_to(questions: Sequence[Question], answers: Sequence[ModelAnswer]) -> list[ModelAnswer]:
    """Return the answers in the order of the questions, one to each.

    Raises:
        InputError: an answer to no question, a question without an answer, another number of turns, or an answer that
            was given to another prompt than the question of its id.
    """
    questions_by_id = {question.id: question for question in questions}
    for answer in answers:
        question = questions_by_id.get(answer.question_id)
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
    answers_by_id = {answer.question_id: answer for answer in answers}
    lacking = [question for question in questions if question.id not in answers_by_id]
    if lacking:
        raise InputError(
            f"{_file(answers[0])} has no answer to {len(lacking)} of {len(questions)} questions, the first "
            f"{lacking[0].id!r} ({lacking[0].place}). Answer every question, or leave it out of the questions."
        )
    return [answers_by_id[question.id] for question in questions]


def _file(record: Question | ModelAnswer) -> str:
    return record.place.rpartition(":")[0]
