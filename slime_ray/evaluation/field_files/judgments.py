"""Read and score judgments that others made: Arena-Hard's games of two answers and MT-Bench's ratings of one.

Every error is an InputError that names the file, the line and the way out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Annotated, TypeVar, cast

from pydantic import AfterValidator, BeforeValidator, Field

from slime_ray.errors import InputError
from slime_ray.evaluation.field_files.forms import Forms, Id, Row, RowPart, Text
from slime_ray.evaluation.field_files.reading import read_records, refuse_repeat
from slime_ray.evaluation.verdicts import POINTS_OF_A, Comparison, Verdict

SAME_LABELS: dict[str, Verdict] = {"B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A", "B<A": "A>B", "B<<A": "A>>B"}
"""Spellings that Arena-Hard's script counts, too."""
MIRRORED: dict[Verdict, Verdict] = {"A>>B": "B>>A", "A>B": "B>A", "A=B": "A=B", "B>A": "A>B", "B>>A": "A>>B"}
"""The same verdict with the two answers' places exchanged."""


@dataclass(frozen=True)
class Judgment:
    """Arena-Hard's two games about one answer, the judged model being the policy of the comparison.

    baseline, category: None in older files, which do not name them. place: where it was read, as `file:line`.
    """

    question_id: str
    model: str
    judge: str
    baseline: str | None
    category: str | None
    comparison: Comparison
    place: str = field(default="", compare=False)

    @property
    def votes(self) -> list[Verdict]:
        """The verdicts of both orders with the policy as A, as `analysis.statistics.arena_hard_score` takes them."""
        return [self.comparison.ab, MIRRORED.get(self.comparison.ba)]


@dataclass(frozen=True)
class TurnRating:
    """MT-Bench's score of one turn of an answer, 1 to 10. score: None where the judge gave none (-1 in the file)."""

    question_id: str
    model: str
    judge: str
    turn: int
    score: float | None
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class RatingMeans:
    """What a judge gave one model, 1 to 10. turns: the mean of each. mean: over all ratings. missing: how many lack."""

    turns: Mapping[int, float]
    mean: float | None
    missing: int


J = TypeVar("J", Judgment, TurnRating)


class GameRow(RowPart):
    """One verdict. Text that is no label is a missing verdict."""

    score: str | None


def _check_number(games: list[GameRow | None]) -> list[GameRow | None]:
    if len(games) not in (1, 2):
        raise ValueError("there must be two games, one for each order of the answers, or the first alone")
    return games


Games = Annotated[list[GameRow | None], AfterValidator(_check_number)]
"""First the baseline is A and the model B, then the model is A and the baseline B. A game that failed is null."""


def _comparison(games: Games) -> Comparison:
    labels = [(game.score if game else None) or "" for game in [*games, None][:2]]
    ba, ab = (label if label in POINTS_OF_A else SAME_LABELS.get(label) for label in labels)
    return Comparison(ab=cast(Verdict, ab), ba=cast(Verdict, ba))


class ArenaHardJudgment(Row):
    """Arena-Hard 2."""

    uid: Id
    category: str
    judge: Text
    model: Text
    baseline: Text
    games: Games

    def record(self, place: str) -> Judgment:
        about = (self.uid, self.model, self.judge, self.baseline, self.category)
        return Judgment(*about, _comparison(self.games), place)


class OlderJudgment(Row):
    """Arena-Hard before version 2, which names neither category nor baseline."""

    question_id: Id
    model: Text
    judge: Text
    games: Games

    def record(self, place: str) -> Judgment:
        return Judgment(self.question_id, self.model, self.judge, None, None, _comparison(self.games), place)


class RatingRow(Row):
    """MT-Bench's single-answer grading. judge: the judge's name, or that and the name of its prompt."""

    question_id: Id
    model: Text
    judge: Annotated[Text, BeforeValidator(lambda value: value[0] if isinstance(value, list) and value else value)]
    judgment: str
    score: float
    turn: Annotated[int, Field(ge=1)]

    def record(self, place: str) -> TurnRating:
        score = self.score if 1 <= self.score <= 10 else None
        return TurnRating(self.question_id, self.model, self.judge, self.turn, score, place)


JUDGMENTS: Forms = {"uid": ArenaHardJudgment, "games": OlderJudgment}
RATINGS: Forms = {"turn": RatingRow}


def read_judgments(path: Path) -> list[Judgment]:
    """One judge's verdicts on one model, in the file's order; Arena-Hard has a baseline for each category."""
    judgments: list[Judgment] = list(read_records(path, JUDGMENTS))
    _refuse_several(judgments, "model", lambda judgment: judgment.model)
    _refuse_several(judgments, "judge", lambda judgment: judgment.judge)
    by_category: dict[str | None, list[Judgment]] = {}
    for judgment in judgments:
        by_category.setdefault(judgment.category, []).append(judgment)
    for category in by_category.values():
        _refuse_several(category, "baseline", lambda judgment: str(judgment.baseline))
    places: dict[str, str] = {}
    for judgment in judgments:
        refuse_repeat(places, judgment.question_id, judgment.place, f"a judgment of {judgment.question_id!r}")
    return judgments


def read_ratings(path: Path, *, repeats: bool = False) -> list[TurnRating]:
    """One judge's scores of MT-Bench in the file's order; such a file holds several models.

    repeats: whether a turn may be rated more than once; see `mt_bench_means`.
    """
    ratings: list[TurnRating] = list(read_records(path, RATINGS))
    _refuse_several(ratings, "judge", lambda rating: rating.judge)
    places: dict[str, str] = {}
    for rating in [] if repeats else ratings:
        what = f"turn {rating.turn} of {rating.question_id!r} by {rating.model!r}"
        refuse_repeat(places, what, rating.place, what)
    return ratings


def _refuse_several(records: Sequence[J], what: str, name: Callable[[J], str]) -> None:
    for record in records:
        if name(record) != name(records[0]):
            raise InputError(
                f"{record.place}: the {what} is {name(record)!r}, but {name(records[0])!r} in {records[0].place}. Give "
                f"each {what} a file of its own."
            )


def mt_bench_means(ratings: Iterable[TurnRating]) -> dict[str, RatingMeans]:
    """Means by model as FastChat's `show_result.py` prints them: each rating counts once, repeated ones as well."""
    by_model: dict[str, list[TurnRating]] = {}
    for rating in ratings:
        by_model.setdefault(rating.model, []).append(rating)
    return {model: _means(turn_scores) for model, turn_scores in by_model.items()}


def _means(ratings: list[TurnRating]) -> RatingMeans:
    turns: dict[int, list[float]] = {}
    for rating in ratings:
        if rating.score is not None:
            turns.setdefault(rating.turn, []).append(rating.score)
    scores = [score for turn_scores in turns.values() for score in turn_scores]
    return RatingMeans(
        {turn: mean(turn_scores) for turn, turn_scores in sorted(turns.items())},
        mean(scores) if scores else None,
        len(ratings) - len(scores),
    )
