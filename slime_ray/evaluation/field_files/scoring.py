"""Arena-Hard's judgments as this package's verdicts, prompt by prompt, and MT-Bench's ratings as means."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean

from slime_ray.evaluation.field_files.records import Judgment, ModelAnswer, Rating
from slime_ray.evaluation.verdicts import Verdict, mirrored
from slime_ray.evaluation.win_rate import Comparison


@dataclass(frozen=True)
class JudgedPrompt:
    """What was judged of one prompt. The policy is the judged model.

    tokens, baseline_tokens: lengths of the two answers, None where they are not known.
    """

    prompt_id: str
    category: str | None
    comparison: Comparison
    tokens: int | None
    baseline_tokens: int | None

    @property
    def votes(self) -> list[Verdict]:
        """The verdicts of both orders with the policy as A, as `arena_hard_score` takes them."""
        return [self.comparison.ab, mirrored(self.comparison.ba)]


def judged_prompts(judgments: Iterable[Judgment], answers: Iterable[ModelAnswer] = ()) -> list[JudgedPrompt]:
    """One item a judgment, in their order. answers: the model's and the baselines', which tell the lengths."""
    tokens = {(answer.model, answer.question_id): answer.tokens for answer in answers}
    return [
        JudgedPrompt(
            prompt_id=judgment.question_id,
            category=judgment.category,
            comparison=Comparison(ab=judgment.model_first.verdict, ba=judgment.baseline_first.verdict),
            tokens=tokens.get((judgment.model, judgment.question_id)),
            baseline_tokens=tokens.get((judgment.baseline, judgment.question_id)) if judgment.baseline else None,
        )
        for judgment in judgments
    ]


@dataclass(frozen=True)
class RatingMeans:
    """What a judge gave one model, 1 to 10. turns: the mean of each. mean: over all ratings. missing: how many lack."""

    turns: Mapping[int, float]
    mean: float | None
    missing: int


def mt_bench_means(ratings: Iterable[Rating]) -> dict[str, RatingMeans]:
    """Means by model as FastChat's `show_result.py` prints them: each rating counts once, repeated ones as well."""
    by_model: dict[str, list[Rating]] = {}
    for rating in ratings:
        by_model.setdefault(rating.model, []).append(rating)
    return {model: _means(given) for model, given in by_model.items()}


def _means(ratings: list[Rating]) -> RatingMeans:
    turns: dict[int, list[float]] = {}
    for rating in ratings:
        if rating.score is not None:
            turns.setdefault(rating.turn, []).append(rating.score)
    scores = [score for each in turns.values() for score in each]
    return RatingMeans(
        {turn: mean(each) for turn, each in sorted(turns.items())},
        mean(scores) if scores else None,
        len(ratings) - len(scores),
    )
