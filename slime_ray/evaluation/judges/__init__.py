"""The judges by name. A new one is a file beside `exact.py`, a class in `judge_settings.py` and a branch here."""

from slime_ray.config.judge import Exact, Llm, RewardModel
from slime_ray.config.settings import Settings
from slime_ray.data.tasks import load_task
from slime_ray.evaluation.judges.asking import Asker
from slime_ray.evaluation.judges.base import (
    POINTS_OF_A,
    Judge,
    Messages,
    Progress,
    ScoringJudge,
    Summary,
    Verdict,
)
from slime_ray.evaluation.judges.endpoint import Endpoint
from slime_ray.evaluation.judges.exact import ExactJudge, load_scorer, question
from slime_ray.evaluation.judges.llm import PairwiseLlmJudge, RatingLlmJudge
from slime_ray.evaluation.verdict_cache import Verdicts

__all__ = [
    "POINTS_OF_A",
    "ExactJudge",
    "Judge",
    "Messages",
    "ScoringJudge",
    "Summary",
    "Verdict",
    "build_judge",
    "load_scorer",
    "question",
]


def build_judge(
    settings: Settings,
    *,
    verdicts: Verdicts,
    offline: bool = False,
    progress: Progress = lambda done, of: None,
) -> Judge | None:
    """The judge that the settings name; None where answers are not judged.

    verdicts: where those that cost something are kept. offline: they alone answer. progress: told while it judges.
    Raises InputError for a scorer, model, package or key that is missing or cannot be used.
    """
    judge = settings.evaluation.judge
    if isinstance(judge, Exact):
        if judge.scorer:
            return ExactJudge(load_scorer(judge.scorer), name=settings.judge_identity)
        task = load_task(str(settings.data.task))
        return ExactJudge(lambda prompt, answer: task.score(prompt, answer).total, name=settings.judge_identity)
    if isinstance(judge, RewardModel):
        # Here, since transformers' classifiers are of use to nobody else.
        from slime_ray.evaluation.judges.reward_model import RewardModelJudge

        return RewardModelJudge(judge, verdicts=verdicts, offline=offline, progress=progress)
    if isinstance(judge, Llm):
        asker = Asker(judge, verdicts=verdicts, endpoint=None if offline else Endpoint(judge), progress=progress)
        return PairwiseLlmJudge(judge, asker) if judge.template.pairwise else RatingLlmJudge(judge, asker)
    return None
