"""The judges by name. A new one is a file next to `exact.py`, a class in `config/judge.py` and a branch here."""

from slime_ray.config.judge import Exact, Llm, RewardModel
from slime_ray.config.settings import Settings
from slime_ray.data.tasks import load_task
from slime_ray.evaluation.judges.asking import Asker
from slime_ray.evaluation.judges.base import AnswerPair, Judge, Judged, Messages, Progress, ScoringJudge, Summary
from slime_ray.evaluation.judges.batches import BatchAsker
from slime_ray.evaluation.judges.endpoint import Endpoint
from slime_ray.evaluation.judges.exact import ExactJudge, load_scorer, question
from slime_ray.evaluation.judges.llm import PairwiseLlmJudge, RatingLlmJudge
from slime_ray.evaluation.judges.panel import Panel, Rater
from slime_ray.evaluation.verdict_cache import Verdicts

__all__ = [
    "AnswerPair",
    "ExactJudge",
    "Judge",
    "Judged",
    "Messages",
    "Panel",
    "Rater",
    "ScoringJudge",
    "Summary",
    "build_judge",
    "load_scorer",
    "question",
]


def build_judge(
    settings: Settings,
    *,
    verdicts: Verdicts,
    offline: bool = False,
    live: bool = False,
    progress: Progress = lambda done, of: None,
) -> Judge | None:
    """The judge that the settings name; None where answers are not judged.

    verdicts: where those that cost something are kept. offline: they alone answer. live: nothing waits for a
    batch. progress: told while it judges.
    Raises InputError for a scorer, model, package or key that is missing or cannot be used.
    """
    raters: list[Rater] = []
    for judge in settings.evaluation.judge.members:
        if isinstance(judge, Exact):
            raters.append(Rater(_exact(settings, judge)))
        elif isinstance(judge, RewardModel):
            # Here, since transformers' classifiers are of use to nobody else.
            from slime_ray.evaluation.judges.reward_model import RewardModelJudge

            raters.append(Rater(RewardModelJudge(judge, verdicts=verdicts, offline=offline, progress=progress)))
        elif isinstance(judge, Llm):
            asking = BatchAsker if judge.mode == "batch" and not live else Asker
            endpoint = None if offline else Endpoint(judge)
            asker = asking(judge, verdicts=verdicts, endpoint=endpoint, progress=progress)
            build = PairwiseLlmJudge if judge.template.pairwise else RatingLlmJudge
            for repeat in range(1, judge.repeats.times + 1):
                share = judge.repeats.share if repeat > 1 else 1.0
                raters.append(Rater(build(judge, asker, repeat=repeat), repeat, share))
    if len(raters) > 1:
        return Panel(settings.judge_identity, raters)
    return raters[0].judge if raters else None


def _exact(settings: Settings, judge: Exact) -> ExactJudge:
    if judge.scorer:
        return ExactJudge(load_scorer(judge.scorer), name=settings.name_of(judge))
    task = load_task(str(settings.data.task))
    return ExactJudge(lambda prompt, answer: task.score(prompt, answer).total, name=settings.name_of(judge))
