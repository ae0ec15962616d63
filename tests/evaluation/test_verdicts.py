"""What two scores say, whatever a scorer calls a number."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slime_ray.errors import InputError
from slime_ray.evaluation.judges import ExactJudge
from slime_ray.evaluation.verdicts import read_score, verdict_of_scores
from tests.evaluation.judges.judge_server import pairs

INF, NAN = float("inf"), float("nan")
PROMPTS = [[{"role": "user", "content": f"Question {n}?"}] for n in range(3)]


@pytest.mark.parametrize(
    ("score", "number"),
    [
        (3, 3.0), (True, 1.0), (2.5, 2.5), (Decimal("0.5"), 0.5), (Fraction(1, 4), 0.25), (-INF, -INF),
        (np.float32(0.5), 0.5), (np.int64(7), 7.0), (np.bool_(True), 1.0), (np.array(2), 2.0), (np.array([[2.0]]), 2.0),
        (torch.tensor(1.5), 1.5), (torch.tensor([1.5], requires_grad=True), 1.5), (torch.tensor(True), 1.0),
        (None, None), (NAN, None), (np.float32("nan"), None), (torch.tensor(NAN), None), (Decimal("NaN"), None),
    ],
)  # fmt: skip
def test_a_score_is_a_number_of_any_library_or_missing(score, number):
    assert read_score(score) == number


@pytest.mark.parametrize(
    "score",
    [
        "7", "nan", b"7", 1 + 0j, [1.0], (1.0, "why"), {"score": 1}, object(), np.array([1.0, 2.0]), np.array([]),
        np.array("7"), np.complex64(1), torch.ones(2), torch.tensor(1j), np.datetime64("2026-01-01"), 10**400,
    ],
    ids=lambda score: type(score).__name__,
)  # fmt: skip
def test_what_is_no_number_is_refused_with_the_prompt_and_the_answer(score):
    judge = ExactJudge(lambda prompt, answer: score if answer == "odd" else 1, name="exact:my:score")
    with pytest.raises(InputError, match=r"exact:my:score fails on the answer 'odd' to the prompt 'Question 1\?'"):
        judge.scores(list(zip(PROMPTS, ["a", "odd", "a"], strict=True)))


NUMBERS = st.floats(allow_nan=False) | st.sampled_from([INF, -INF, 0.0, -0.0])


@given(NUMBERS | st.none(), NUMBERS | st.none(), st.sampled_from([0.0, 0.5]))
def test_equal_scores_tie_others_are_ordered_and_sides_mirror(a, b, band):
    verdict = verdict_of_scores(a, b, tie_band=band)
    assert verdict_of_scores(b, a, tie_band=band) == {"A>B": "B>A", "B>A": "A>B"}.get(verdict, verdict)
    if a is None or b is None:
        assert verdict is None
    elif a == b:
        assert verdict == "A=B"
    elif band == 0:
        assert verdict == ("A>B" if a > b else "B>A")


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [(INF, INF, "A=B"), (-INF, -INF, "A=B"), (INF, -INF, "A>B"), (-INF, 0.0, "B>A"), (0.0, -0.0, "A=B"),
     (NAN, NAN, None), (NAN, 1.0, None), (INF, NAN, None), (None, INF, None)],
)  # fmt: skip
def test_infinite_scores_and_those_that_are_missing(a, b, verdict):
    assert verdict_of_scores(a, b) == verdict
    assert verdict_of_scores(a, b, tie_band=1.0) == verdict


@pytest.mark.parametrize("missing", [NAN, None, np.float32("nan"), torch.tensor(NAN)])
def test_an_answer_without_a_score_has_missing_verdicts_that_are_counted(missing):
    judge = ExactJudge(lambda prompt, answer: missing if "bad" in answer else len(answer))
    judged = judge.compare(pairs(PROMPTS, ["long one", "bad", "x"], ["bad", "bad as well", "longer"]))
    assert [(one.ab, one.ba) for one in judged.comparisons] == [(None, None), (None, None), ("B>A", "A>B")]
    assert [one.score for one in judged.comparisons] == [8.0, None, 1.0]
    assert (judged.summary.new, sum(judged.summary.missing.values())) == (3, 3)
    assert "3 scores are missing: the scorer gave an answer no score" in judged.summary.sentence


def test_infinite_scores_of_a_scorer_tie_with_each_other_alone():
    judge = ExactJudge(lambda prompt, answer: math.inf if "best" in answer else 0.0)
    judged = judge.compare(pairs(PROMPTS, ["best", "best", "so"], ["best, too", "so", "best"]))
    assert [one.ab for one in judged.comparisons] == ["A=B", "A>B", "B>A"]
