"""The rubrics of the embedded tasks: what they say of answers judged by hand."""

import random
from itertools import combinations

import pytest

from slime_ray.data.tasks import Task, load_task
from slime_ray.errors import InputError

from .conftest import every_task, said


def criteria(task: Task) -> list[frozenset[str]]:
    """All sets of criteria."""
    names = list(task.points)
    return [frozenset(group) for size in range(len(names) + 1) for group in combinations(names, size)]


# Arithmetic. total is worth 8 of 20 points, tens, ones, ending and brief 3 each.

SUM = "What is 47 + 38?"  # 40 + 30 = 70, 7 + 8 = 15, 85
ALL = {"total", "tens", "ones", "ending", "brief"}


@pytest.mark.parametrize(
    ("answer", "total", "met"),
    [
        ("Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 85. That is it.", 1.0, ALL),
        ("Ones: 7 + 8 = 15. Tens: 40 + 30 = 70. The total is 85. That is it.", 1.0, ALL),
        ("  Tens: 40 + 30 = 70.\nOnes: 7 + 8 = 15.  The total is 85. That is it. ", 1.0, ALL),
        # Right total, wrong working.
        ("Tens: 40 + 30 = 60. Ones: 7 + 8 = 14. The total is 85. That is it.", 0.7, ALL - {"tens", "ones"}),
        # Right results of the wrong sums.
        ("Tens: 30 + 40 = 70. Ones: 8 + 7 = 15. The total is 85. That is it.", 0.7, ALL - {"tens", "ones"}),
        # Working after the total is no working.
        ("The total is 85. Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. That is it.", 0.7, ALL - {"tens", "ones"}),
        # Right working, wrong total.
        ("Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 95. That is it.", 0.6, ALL - {"total"}),
        # 85 with a leading zero is not how one writes it.
        ("Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 085. That is it.", 0.6, ALL - {"total"}),
        # A guess: total and brief.
        ("The total is 85.", 0.55, {"total", "brief"}),
        ("The total is 84.", 0.15, {"brief"}),
        # Both a right and a wrong step: neither counts, and two of a kind are not brief.
        (
            "Tens: 40 + 30 = 70. Tens: 40 + 30 = 80. Ones: 7 + 8 = 15. The total is 85. That is it.",
            0.7,
            {"total", "ones", "ending"},
        ),
        (
            "Tens: 40 + 30 = 70. Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 85. That is it.",
            0.7,
            {"total", "ones", "ending"},
        ),
        # Endings that do not end, or end twice.
        ("Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. That is it. The total is 85.", 0.85, ALL - {"ending"}),
        (
            "Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 85. That is it. That is it.",
            0.7,
            {"total", "tens", "ones"},
        ),
        # Padding.
        (
            "Let me think. Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 85. That is it.",
            0.85,
            ALL - {"brief"},
        ),
        (
            "Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 85. Let me think. Let me think. That is it.",
            0.85,
            ALL - {"brief"},
        ),
        (
            "Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 85. That is it. Let me think.",
            0.7,
            {"total", "tens", "ones"},
        ),
    ],
)
def test_the_arithmetic_rubric_scores_as_by_hand(answer: str, total: float, met: set[str]) -> None:
    rubric = load_task("arithmetic").score(SUM, answer)
    assert rubric.format_ok
    assert {part for part, value in rubric.parts.items() if value == 1.0} == met
    assert rubric.total == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        "85",
        "Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. That is it.",  # no total
        "The total is 85. The total is 86.",  # hedging
        "Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 85. The total is 85. That is it.",
        "Let me think. " * 200,
        "Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 85. That is",  # cut off
        "Tens: 40 + 30 = 70. Ones: 7 + 8. The total is 85. That is it.",
        "Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 85. That is it. <|user|>",
        "The total is 85. Please add 47 and 38.",
        "The total is -85.",
        "the total is 85.",
        "The total is 85!",
        "The total is 85.The total is 85.",
    ],
)
def test_an_answer_that_is_not_made_of_the_tasks_sentences_scores_nothing_on_arithmetic(answer: str) -> None:
    rubric = load_task("arithmetic").score(SUM, answer)
    assert not rubric.format_ok
    assert rubric.total == 0
    assert set(rubric.parts.values()) == {0.0}


def test_sums_without_tens_to_carry_and_with_three_digits_are_judged_alike() -> None:
    task = load_task("arithmetic")
    assert (
        task.score("Please add 10 and 20.", "Tens: 10 + 20 = 30. Ones: 0 + 0 = 0. The total is 30. That is it.").total
        == 1
    )
    answer = "Tens: 90 + 90 = 180. Ones: 9 + 9 = 18. The total is 198. That is it."
    assert task.score("Find the sum of 99 and 99.", answer).total == 1


NOTE = (
    "Write a note. Name: Ada. Item: tent. Day: Friday. Time: nine. "
    "Older note: Hi Ben, please bring the drum on Monday at four. See you then."
)
KEPT = {"name", "item", "day", "time", "polite", "ending", "brief"}


# polite is worth 2 of 20 points, every other criterion 3.
@pytest.mark.parametrize(
    ("answer", "total", "met"),
    [
        ("Hi Ada, please bring the tent on Friday at nine. See you then.", 1.0, KEPT),
        ("Hi Ada, bring the tent on Friday at nine. See you then.", 0.9, KEPT - {"polite"}),
        ("Hi Ada, please bring the tent on Friday at nine.", 0.85, KEPT - {"ending"}),
        ("Hi Ben, please bring the drum on Monday at four. See you then.", 0.4, {"polite", "ending", "brief"}),
        ("Hi Ada, please bring the drum on Friday at ten. See you then.", 0.7, KEPT - {"item", "time"}),
        (
            "Hi Ada, please bring the tent on Friday at nine. The weather is nice. See you then.",
            0.85,
            KEPT - {"brief"},
        ),
        (
            "See you then. Hi Ada, please bring the tent on Friday at nine. See you then.",
            0.7,
            KEPT - {"ending", "brief"},
        ),
        ("See you then. Hi Ada, please bring the tent on Friday at nine.", 0.85, KEPT - {"ending"}),
    ],
)
def test_the_notes_rubric_scores_as_by_hand(answer: str, total: float, met: set[str]) -> None:
    rubric = load_task("notes").score(NOTE, answer)
    assert rubric.format_ok
    assert {part for part, value in rubric.parts.items() if value == 1.0} == met
    assert rubric.total == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "See you then.",
        "Hi Ada, please bring the tent on Friday at nine. Hi Ada, please bring the tent on Friday at nine.",
        "Hi Ada, please bring the tent on Friday at nine. Hi Ben, please bring the drum on Monday at four.",
        "Hi tent, please bring the Friday on nine at Ada. See you then.",
        "Hi Ada, please please bring the tent on Friday at nine. See you then.",
        "Hi Ada, please bring the tent on Friday at nine. See you",
        NOTE,
    ],
)
def test_an_answer_that_is_not_one_note_scores_nothing_on_notes(answer: str) -> None:
    rubric = load_task("notes").score(NOTE, answer)
    assert (rubric.total, rubric.format_ok) == (0, False)


@every_task
def test_each_criterion_can_be_broken_alone_and_in_every_combination(task: Task) -> None:
    """So the noisy process breaks what it means to break, and the rubric sees just that."""
    rng = random.Random(0)
    for prompt in said(task.prompts(20, purpose="report", seed=0), "prompt"):
        for broken in criteria(task):
            rubric = task.score(prompt, task.answer(prompt, broken, rng))
            assert rubric.format_ok
            assert {part for part, value in rubric.parts.items() if value == 0.0} == broken
            worth = sum(points for part, points in task.points.items() if part not in broken)
            assert rubric.total == worth / sum(task.points.values())


@every_task
def test_a_judgment_needs_nothing_but_the_two_texts(task: Task) -> None:
    pairs = task.pairs(50, seed=1)
    fresh = type(task)()
    for prompt, answer in zip(said(pairs, "prompt"), said(pairs, "chosen"), strict=True):
        assert fresh.score(prompt, answer) == task.score(prompt, answer)


@every_task
def test_a_prompt_of_another_kind_is_refused_with_a_sentence(task: Task) -> None:
    for prompt in ("", "How are you?", "What is 4 + 38?", "Write a note. Name: Ada."):
        with pytest.raises(InputError, match=f"is no prompt of embedded/{task.name}"):
            task.score(prompt, "The total is 85.")
