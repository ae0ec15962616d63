"""The embedded task `arithmetic`: add two two-digit numbers, show the working, state the total, stop."""

import random
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

from slime_ray.data.tasks.base import Facts, Task, any_of, count_kinds
from slime_ray.errors import InputError

WORDINGS = ("What is {a} + {b}?", "Please add {a} and {b}.", "Find the sum of {a} and {b}.")
_ASKED = re.compile(
    "|".join(re.escape(wording).replace(r"\{a\}", r"(\d\d)").replace(r"\{b\}", r"(\d\d)") for wording in WORDINGS)
)
ENDING = "That is it."
FILLERS = ("Let me think.", "This is a good question.", "Well, let me see.")
KINDS = {
    "tens": re.compile(r"Tens: \d{1,3} \+ \d{1,3} = \d{1,3}\."),
    "ones": re.compile(r"Ones: \d{1,3} \+ \d{1,3} = \d{1,3}\."),
    "total": re.compile(r"The total is \d{1,3}\."),
    "ending": re.compile(any_of([ENDING])),
    "filler": re.compile(any_of(FILLERS)),
}
"""The sentences of which an answer must be made to be parsed."""


class Arithmetic(Task):
    """`What is 47 + 38?` -> `Tens: 40 + 30 = 70. Ones: 7 + 8 = 15. The total is 85. That is it.`

    An answer can be parsed if it is made of nothing but the sentences of `KINDS` and states one total. Criteria:
    total: the total is right. tens, ones: the step is there once, right, and before the total. ending: the last
    sentence, and only that, is the ending. brief: no filler, and no kind of sentence twice.
    """

    name = "arithmetic"
    points: ClassVar = {"total": 8, "tens": 3, "ones": 3, "ending": 3, "brief": 3}

    def all_facts(self) -> Iterable[Facts]:
        """Every ordered pair of two-digit numbers."""
        return ((a, b) for a in range(10, 100) for b in range(10, 100))

    def ask(self, facts: Facts, rng: random.Random) -> str:
        """One of three wordings."""
        a, b = facts
        return rng.choice(WORDINGS).format(a=a, b=b)

    def answer(self, prompt: str, broken: frozenset[str], rng: random.Random) -> str:
        """A broken step or total is off by a little; a broken ending is missing; fillers follow the total."""
        a, b = numbers(prompt)

        def result(criterion: str, value: int, errors: tuple[int, ...]) -> int:
            wrong = [value + error for error in errors if value + error >= 0]
            return rng.choice(wrong) if criterion in broken else value

        tens = result("tens", a // 10 * 10 + b // 10 * 10, (-20, -10, 10, 20))
        ones = result("ones", a % 10 + b % 10, (-2, -1, 1, 2))
        total = result("total", a + b, (-10, -2, -1, 1, 2, 10))
        sentences = [tens_step(a, b, tens), ones_step(a, b, ones), f"The total is {total}."]
        if "brief" in broken:
            sentences += [rng.choice(FILLERS) for _ in range(rng.randint(1, 3))]
        if "ending" not in broken:
            sentences.append(ENDING)
        return " ".join(sentences)

    def criteria_met(self, prompt: str, answer: str) -> frozenset[str] | None:
        """See the class."""
        a, b = numbers(prompt)
        sentences = count_kinds(answer, KINDS)
        if sentences is None or len(sentences["total"]) != 1:
            return None
        [(total_at, total)] = sentences["total"]
        last = sum(map(len, sentences.values())) - 1

        def once(kind: str, sentence: str) -> bool:
            return [text for _, text in sentences[kind]] == [sentence]

        def step(kind: str, sentence: str) -> bool:
            return once(kind, sentence) and sentences[kind][0][0] < total_at

        checks = {
            "total": total == f"The total is {a + b}.",
            "tens": step("tens", tens_step(a, b, a // 10 * 10 + b // 10 * 10)),
            "ones": step("ones", ones_step(a, b, a % 10 + b % 10)),
            "ending": once("ending", ENDING) and sentences["ending"][0][0] == last,
            "brief": not sentences["filler"] and all(len(texts) <= 1 for texts in sentences.values()),
        }
        return frozenset(criterion for criterion, met in checks.items() if met)

    def texts(self) -> Iterator[str]:
        """Numbers of two digits hold every digit with and without a space before it."""
        for number in range(10, 100):
            yield from (wording.format(a=number, b=number) for wording in WORDINGS)
            yield f"{tens_step(number, number, number)} {ones_step(number, number, number)}"
        yield f"{tens_step(10, 10, 20)} The total is 20. {' '.join(FILLERS)} {ENDING}"


def numbers(prompt: str) -> tuple[int, int]:
    """The two numbers that a prompt asks to add. Raises InputError where it asks something else."""
    match = _ASKED.fullmatch(prompt.strip())
    if match is None:
        raise InputError(f"{prompt!r} is no prompt of embedded/arithmetic, so its rubric cannot judge an answer to it.")
    a, b = (int(number) for number in match.groups() if number is not None)
    return a, b


def tens_step(a: int, b: int, result: int) -> str:
    """The sentence that adds the tens."""
    return f"Tens: {a // 10 * 10} + {b // 10 * 10} = {result}."


def ones_step(a: int, b: int, result: int) -> str:
    """The sentence that adds the ones."""
    return f"Ones: {a % 10} + {b % 10} = {result}."
