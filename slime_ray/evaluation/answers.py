"""One policy's answers beside the baseline's: verdicts, broken outputs, lengths, and the rows of answers.parquet."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from slime_ray.evaluation import stability
from slime_ray.evaluation.conversations import Prompt, side_conversations
from slime_ray.evaluation.generate import Answer
from slime_ray.evaluation.judges import AnswerPair, Judge, Judged, Messages, question
from slime_ray.evaluation.verdicts import FAILED, Comparison, Pooled, win_rate
from slime_ray.world import World

FormatCheck = Callable[[str, str], bool]
"""The task's own check of an answer's form: (last user message, answer) -> well-formed."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Answered(Judged):
    """Answers to prompts, judged against the baseline's. All sequences have one item a prompt and turn.

    broken: the reason, or None.
    """

    prompts: Sequence[Prompt]
    answers: Sequence[Answer]
    baseline: Sequence[Answer]
    broken: Sequence[str | None]
    baseline_broken: Sequence[str | None]
    format_valid: float | None

    @property
    def win_rate(self) -> float | None:
        """Mean outcome over the judged prompts."""
        return win_rate(self.comparisons, [prompt.id for prompt in self.prompts])

    @property
    def judged_prompts(self) -> int:
        """Count the prompts with at least one valid verdict."""
        judged = zip(self.prompts, self.comparisons, strict=True)
        return len({prompt.id for prompt, comparison in judged if comparison and comparison.outcome is not None})

    @property
    def score_change(self) -> float | None:
        """Mean over prompts of a score minus the baseline's to the same turn; None where no turn has both."""
        changes: dict[str, list[float]] = {}
        for prompt, comparison in zip(self.prompts, self.comparisons, strict=True):
            if comparison and comparison.score is not None and comparison.baseline_score is not None:
                changes.setdefault(prompt.id, []).append(comparison.score - comparison.baseline_score)
        return mean(map(mean, changes.values())) if changes else None

    @property
    def broken_outputs(self) -> float:
        """B of stability-v1."""
        return stability.broken_outputs([bool(b) for b in self.broken], [bool(b) for b in self.baseline_broken])

    @property
    def length_shift(self) -> float:
        """L of stability-v1."""
        return stability.length_shift(*([len(a.token_ids) for a in side] for side in (self.answers, self.baseline)))

    def rows(self, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of answers.parquet; `about` holds the trial's columns."""
        rows = zip(self.prompts, self.answers, self.baseline, self.comparisons, strict=True)
        return [
            {
                **about,
                "prompt_id": prompt.id,
                "turn": prompt.turn,
                "category": prompt.category,
                "prompt": prompt.messages,
                "answer": answer.text,
                "answer_tokens": len(answer.token_ids),
                "baseline_answer": baseline.text,
                "baseline_tokens": len(baseline.token_ids),
                "verdict_ab": comparison.ab if comparison else None,
                "verdict_ba": comparison.ba if comparison else None,
                "outcome": comparison.outcome if comparison else None,
                "score": comparison.score if comparison else None,
                "baseline_score": comparison.baseline_score if comparison else None,
                "broken": self.broken[i] is not None,
                "broken_reason": self.broken[i],
                "baseline_broken": self.baseline_broken[i] is not None,
            }
            for i, (prompt, answer, baseline, comparison) in enumerate(rows)
        ]

    def verdict_rows(self, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of verdicts.parquet, where a panel judged; `about` holds the trial's columns."""
        return [
            {
                **about,
                "prompt_id": prompt.id,
                "turn": prompt.turn,
                "judge": rating.judge,
                "repeat": rating.repeat,
                "verdict_ab": rating.comparison.ab,
                "verdict_ba": rating.comparison.ba,
                "outcome": rating.comparison.outcome,
                "score": rating.comparison.score,
                "baseline_score": rating.comparison.baseline_score,
            }
            for prompt, comparison in zip(self.prompts, self.comparisons, strict=True)
            for rating in (comparison.ratings if isinstance(comparison, Pooled) else ())
        ]


def judge_answers(
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    baseline: Sequence[Answer],
    *,
    judge: Judge | None,
    format_check: FormatCheck | None,
    markers: Sequence[str],
    first: int | None = None,
) -> Answered:
    """Compare answers with the baseline's to the same turns. markers: special tokens as text, which none may hold.

    first: judge only so many of them; the others have no verdict. None judges all. Where an answer is FAILED, or one
    before it in its conversation, nothing is judged and both verdicts are missing.
    Of the ranks of a process group the first one judges, for all of them. Raises RunError where the judge cannot go on.
    """
    conversations = [prompt.messages for prompt in prompts]

    def reasons(side: Sequence[Answer]) -> list[str | None]:
        return broken_reasons(conversations, side, format_check=format_check, markers=markers)

    well_formed = _well_formed(conversations, answers, format_check)
    judged = Judged([None] * len(answers))
    if judge is not None:
        pairs = [
            AnswerPair(prompt, answer.text, baseline_prompt, baseline_answer.text)
            for prompt, answer, baseline_prompt, baseline_answer in zip(
                conversations, answers, side_conversations(prompts, baseline), baseline, strict=True
            )
        ]
        judged = World.current().from_main(lambda: _compare(judge, pairs, first))
    return Answered(
        **vars(judged),
        prompts=prompts,
        answers=answers,
        baseline=baseline,
        broken=reasons(answers),
        baseline_broken=reasons(baseline),
        format_valid=sum(map(bool, well_formed)) / len(well_formed) if format_check and well_formed else None,
    )


def _compare(judge: Judge, pairs: Sequence[AnswerPair], first: int | None) -> Judged:
    """Judge the first of them, as far as they did not fail, and log what a reader of the verdicts has to know."""
    count = len(pairs[:first])
    sound = [place for place, pair in enumerate(pairs[:first]) if not _failed(*pair[:2]) and not _failed(*pair[2:])]
    judged = judge.compare([pairs[place] for place in sound])
    comparisons: list[Comparison | Pooled | None] = [*[Comparison(None, None)] * count, *[None] * (len(pairs) - count)]
    for place, comparison in zip(sound, judged.comparisons, strict=True):
        comparisons[place] = comparison
    summary = judged.summary
    if summary is not None:
        empty = sum(not (pairs[place].answer.strip() and pairs[place].baseline.strip()) for place in sound)
        summary = replace(summary, failed=count - len(sound), empty=empty)
        logger.log(logging.INFO if summary.complete else logging.WARNING, "%s: %s", judge.name, summary.sentence)
    return Judged(comparisons, summary)


def _failed(messages: Messages, answer: str) -> bool:
    earlier = [str(message["content"]) for message in messages if message["role"] == "assistant"]
    return any(text.strip() == FAILED for text in (*earlier, answer))


def broken_reasons(
    conversations: Sequence[Messages],
    answers: Sequence[Answer],
    *,
    format_check: FormatCheck | None,
    markers: Sequence[str],
) -> list[str | None]:
    """Why each answer counts as broken, or None; see `stability.broken_reason`."""
    well_formed = _well_formed(conversations, answers, format_check)
    return [
        stability.broken_reason(answer, markers=markers, format_ok=ok)
        for answer, ok in zip(answers, well_formed, strict=True)
    ]


def _well_formed(
    conversations: Sequence[Messages], answers: Sequence[Answer], format_check: FormatCheck | None
) -> list[bool | None]:
    return [
        format_check(question(messages), answer.text) if format_check else None
        for messages, answer in zip(conversations, answers, strict=True)
    ]
