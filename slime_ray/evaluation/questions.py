"""The questions of a benchmark that an experiment's trials are asked."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from slime_ray.config.experiment import Experiment
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.errors import InputError
from slime_ray.evaluation.field_files import Question, read_questions


def check_questions(experiment: Experiment) -> None:
    """Read the questions of `base` and of every arm. Raises InputError as `load_questions` does."""
    all_settings = [experiment.settings, *(experiment.settings_with(arm.set) for arm in experiment.arms)]
    for settings in {fingerprint([each.data, each.evaluation]): each for each in all_settings}.values():
        load_questions(settings)
        load_retention(settings)


def load_questions(settings: Settings) -> list[Question]:
    """The questions of `evaluation.questions`, in the file's order; none where no file is named.

    Raises InputError for a file that cannot be read, for a temperature of a category that no question has, and where
    the data is an embedded task's and a question is not.
    """
    file, temperatures = settings.evaluation.questions, settings.evaluation.decoding.temperatures
    questions = read_questions(Path(file)) if file else []
    _check_categories(temperatures, {str(question.category) for question in questions}, file)
    if questions and settings.data.task:
        _check_task(settings.data.task, questions)
    return questions


def load_retention(settings: Settings) -> list[Question]:
    """The questions of `evaluation.retention`; none where it is null. Raises InputError as `load_questions` does."""
    retention = settings.evaluation.retention
    questions = read_questions(Path(retention.prompts)) if retention else []
    if settings.data.task:
        _check_task(settings.data.task, questions, key="evaluation.retention")
    return questions


def _check_categories(categories: Iterable[str], question_categories: set[str], file: str | None) -> None:
    for category in categories:
        if file is None:
            raise InputError(
                f"evaluation.decoding.temperatures names the category {category!r}, but prompts from the data have no "
                "categories. Leave it out, or name a file of questions with evaluation.questions."
            )
        if category not in question_categories:
            raise InputError(
                f"evaluation.decoding.temperatures names the category {category!r}, which no question of {file} has. "
                f"Its categories: {', '.join(sorted(question_categories))}."
            )


def _check_task(name: str, questions: Sequence[Question], *, key: str = "evaluation.questions") -> None:
    from slime_ray.data.tasks import load_task

    task = load_task(name)
    for question in questions:
        for turn in question.turns:
            try:
                task.score(turn, "")
            except InputError:
                raise InputError(
                    f"{question.place}: {turn[:60]!r} is no prompt of the embedded task {name}, which data.train "
                    f"names. Give questions of that task, or leave {key} out."
                ) from None
