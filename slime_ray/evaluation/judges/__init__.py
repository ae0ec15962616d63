"""The judges by name. A new one is a file beside `exact.py` and a branch here."""

from slime_ray.data.tasks import load_task
from slime_ray.evaluation.judges.base import POINTS_OF_A, Judge, Messages, Verdict
from slime_ray.evaluation.judges.exact import ExactJudge, load_scorer, question
from slime_ray.settings import Settings

__all__ = ["POINTS_OF_A", "ExactJudge", "Judge", "Messages", "Verdict", "build_judge", "load_scorer", "question"]


def build_judge(settings: Settings) -> ExactJudge | None:
    """The judge that the settings name; None where answers are not judged. Raises InputError for a bad scorer."""
    judge = settings.evaluation.judge
    if judge.name == "none":
        return None
    if judge.scorer:
        return ExactJudge(load_scorer(judge.scorer), name=f"exact:{judge.scorer}")
    task = load_task(str(settings.data.task))
    return ExactJudge(lambda prompt, answer: task.score(prompt, answer).total, name=f"exact:{task.name}")
