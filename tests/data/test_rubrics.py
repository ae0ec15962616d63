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


# Of 20 points. Arithmetic: total is worth 8, all others 3. Notes: polite is worth 2, all others 3.
SUM = "What is 47 + 38?"
TENS, ONES, TOTAL, END, FILLER = (
    "Tens: 40 + 30 = 70.", "Ones: 7 + 8 = 15.", "The total is 85.", "That is it.", "Let me think.",
)  # fmt: skip
WORKING = f"{TENS} {ONES}"
ALL = {"total", "tens", "ones", "ending", "brief"}
NOTE = (
    "Write a note. Name: Ada. Item: tent. Day: Friday. Time: nine. "
    "Older note: Hi Ben, please bring the drum on Monday at four. See you then."
)
HI = "Hi Ada, please bring the tent on Friday at nine."
BEN = "Hi Ben, please bring the drum on Monday at four."
BYE = "See you then."
KEPT = {"name", "item", "day", "time", "polite", "ending", "brief"}


@pytest.mark.parametrize(
    ("task", "answer", "total", "met"),
    [
        ("arithmetic", f"{WORKING} {TOTAL} {END}", 1.0, ALL),
        ("arithmetic", f"{ONES} {TENS} {TOTAL} {END}", 1.0, ALL),
        ("arithmetic", f"  {TENS}\n{ONES}  {TOTAL} {END} ", 1.0, ALL),
        # Wrong results, right results of the wrong sums, and working after the total.
        ("arithmetic", f"Tens: 40 + 30 = 60. Ones: 7 + 8 = 14. {TOTAL} {END}", 0.7, ALL - {"tens", "ones"}),
        ("arithmetic", f"Tens: 30 + 40 = 70. Ones: 8 + 7 = 15. {TOTAL} {END}", 0.7, ALL - {"tens", "ones"}),
        ("arithmetic", f"{TOTAL} {WORKING} {END}", 0.7, ALL - {"tens", "ones"}),
        # A wrong total, and one with a zero before it.
        ("arithmetic", f"{WORKING} The total is 95. {END}", 0.6, ALL - {"total"}),
        ("arithmetic", f"{WORKING} The total is 085. {END}", 0.6, ALL - {"total"}),
        # A guess: total and brief.
        ("arithmetic", TOTAL, 0.55, {"total", "brief"}),
        ("arithmetic", "The total is 84.", 0.15, {"brief"}),
        # Of two steps of a kind neither counts, and they are not brief.
        ("arithmetic", f"{TENS} Tens: 40 + 30 = 80. {ONES} {TOTAL} {END}", 0.7, {"total", "ones", "ending"}),
        ("arithmetic", f"{TENS} {TENS} {ONES} {TOTAL} {END}", 0.7, {"total", "ones", "ending"}),
        # Endings that do not end, or end twice; fillers.
        ("arithmetic", f"{WORKING} {END} {TOTAL}", 0.85, ALL - {"ending"}),
        ("arithmetic", f"{WORKING} {TOTAL} {END} {END}", 0.7, {"total", "tens", "ones"}),
        ("arithmetic", f"{FILLER} {WORKING} {TOTAL} {END}", 0.85, ALL - {"brief"}),
        ("arithmetic", f"{WORKING} {TOTAL} {FILLER} {FILLER} {END}", 0.85, ALL - {"brief"}),
        ("arithmetic", f"{WORKING} {TOTAL} {END} {FILLER}", 0.7, {"total", "tens", "ones"}),
        ("notes", f"{HI} {BYE}", 1.0, KEPT),
        ("notes", f"Hi Ada, bring the tent on Friday at nine. {BYE}", 0.9, KEPT - {"polite"}),
        ("notes", HI, 0.85, KEPT - {"ending"}),
        ("notes", f"{BEN} {BYE}", 0.4, {"polite", "ending", "brief"}),
        ("notes", f"Hi Ada, please bring the drum on Friday at ten. {BYE}", 0.7, KEPT - {"item", "time"}),
        ("notes", f"{HI} The weather is nice. {BYE}", 0.85, KEPT - {"brief"}),
        ("notes", f"{BYE} {HI} {BYE}", 0.7, KEPT - {"ending", "brief"}),
        ("notes", f"{BYE} {HI}", 0.85, KEPT - {"ending"}),
    ],
)
def test_the_rubric_scores_as_by_hand(task: str, answer: str, total: float, met: set[str]) -> None:
    rubric = load_task(task).score(SUM if task == "arithmetic" else NOTE, answer)
    assert rubric.format_ok
    assert {part for part, value in rubric.parts.items() if value == 1.0} == met
    assert rubric.total == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(
    "answer",
    [
        "", "   ", "85", f"{WORKING} {END}", f"{TOTAL} The total is 86.", f"{WORKING} {TOTAL} {TOTAL} {END}",
        "Let me think. " * 200, f"{WORKING} {TOTAL} That is", f"{TENS} Ones: 7 + 8. {TOTAL} {END}", f"{WORKING} {TOTAL} {END} <|user|>",
        f"{TOTAL} Please add 47 and 38.", "The total is -85.", "the total is 85.", "The total is 85!", f"{TOTAL}{TOTAL}",
        f"{HI} {HI}", f"{HI} {BEN}", f"Hi tent, please bring the Friday on nine at Ada. {BYE}",
        f"Hi Ada, please please bring the tent on Friday at nine. {BYE}", f"{HI} See you", BYE, NOTE,
    ],
)  # fmt: skip
def test_an_answer_that_is_not_made_of_the_tasks_sentences_scores_nothing(answer: str) -> None:
    """No total, or two; cut off, another spelling, a role's token, another language."""
    for task, prompt in (("arithmetic", SUM), ("notes", NOTE)):
        rubric = load_task(task).score(prompt, answer)
        assert (rubric.total, rubric.format_ok, set(rubric.parts.values())) == (0, False, {0.0})


def test_sums_without_tens_to_carry_and_with_three_digits_are_judged_alike() -> None:
    score = load_task("arithmetic").score
    small = f"Tens: 10 + 20 = 30. Ones: 0 + 0 = 0. The total is 30. {END}"
    assert score("Please add 10 and 20.", small).total == 1
    large = f"Tens: 90 + 90 = 180. Ones: 9 + 9 = 18. The total is 198. {END}"
    assert score("Find the sum of 99 and 99.", large).total == 1


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
