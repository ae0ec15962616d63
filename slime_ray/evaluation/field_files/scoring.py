"""Arena-Hard's judgments as this package's verdicts, prompt by prompt, for the statistics that every run has."""

from collections.abc import Iterable
from dataclasses import dataclass

from slime_ray.evaluation.field_files.records import Judgment, ModelAnswer
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
