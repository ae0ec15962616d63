"""The embedded task `notes`: a short note that carries four facts and leaves those of an older note alone."""

import itertools
import random
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

from slime_ray.data.tasks.base import Facts, Task, any_of, count_kinds
from slime_ray.errors import InputError

# fmt: off
VALUES: dict[str, tuple[str, ...]] = {
    "name": (
        "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo",
        "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Ola", "Pia",
    ),
    "item": (
        "tent", "drum", "lamp", "rope", "map", "kite", "radio", "ladder",
        "basket", "blanket", "camera", "guitar", "kettle", "bucket", "saw", "torch",
    ),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "time": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "noon"),
}
# fmt: on
BODY = "Hi {name}, {please}bring the {item} on {day} at {time}."
ENDING = "See you then."
FILLERS = ("I hope you are well.", "It was a long week.", "The weather is nice.")
REQUEST = "Write a note. Name: {name}. Item: {item}. Day: {day}. Time: {time}. Older note: "

_GROUPS = {fact: f"(?P<{fact}>{any_of(values)})" for fact, values in VALUES.items()}
_BODY = re.compile(
    re.escape(BODY).replace(r"\{", "{").replace(r"\}", "}").format(**_GROUPS, please="(?P<please>please )?")
)
_REQUEST = re.compile(
    re.escape(REQUEST).replace(r"\{", "{").replace(r"\}", "}").format(**_GROUPS) + "(?P<older>.*)", re.DOTALL
)
KINDS = {"body": _BODY, "ending": re.compile(any_of([ENDING])), "filler": re.compile(any_of(FILLERS))}
"""The sentences of which an answer must be made to be parsed."""


class Notes(Task):
    """`Write a note. Name: Ada. Item: tent. Day: Friday. Time: nine. Older note: Hi Ben, please bring the drum ...` ->
    `Hi Ada, please bring the tent on Friday at nine. See you then.`

    An answer can be parsed if it is made of nothing but the sentences of `KINDS` and says one body. Criteria: name,
    item, day, time: the fact is the prompt's. polite: it says please. ending: the last sentence, and only that, is
    the ending. brief: no filler and no ending twice.
    """

    name = "notes"
    points: ClassVar = {"name": 3, "item": 3, "day": 3, "time": 3, "polite": 2, "ending": 3, "brief": 3}

    def all_facts(self) -> Iterable[Facts]:
        """Every name with every item, day and time. The older note is no fact: it may be any that shares none."""
        return itertools.product(*VALUES.values())

    def ask(self, facts: Facts, rng: random.Random) -> str:
        """Write a prompt with the facts, and an older note in which all four are others."""
        values = dict(zip(VALUES, facts, strict=True))
        older = {fact: _other_value(fact, value, rng) for fact, value in values.items()}
        return f"{REQUEST.format(**values)}{BODY.format(**older, please='please ')} {ENDING}"

    def answer(self, prompt: str, broken: frozenset[str], rng: random.Random) -> str:
        """A broken fact is the older note's or any other; please or the ending is missing; fillers stand before it."""
        facts, older = facts_of(prompt)
        stated = dict(facts)
        for fact in facts:
            if fact in broken:
                stated[fact] = older[fact] if rng.random() < 0.5 else _other_value(fact, facts[fact], rng)
        sentences = [BODY.format(**stated, please="" if "polite" in broken else "please ")]
        if "brief" in broken:
            sentences += [rng.choice(FILLERS) for _ in range(rng.randint(1, 3))]
        if "ending" not in broken:
            sentences.append(ENDING)
        return " ".join(sentences)

    def criteria_met(self, prompt: str, answer: str) -> frozenset[str] | None:
        """See the class."""
        facts, _ = facts_of(prompt)
        sentences = count_kinds(answer, KINDS)
        if sentences is None or len(sentences["body"]) != 1:
            return None
        body = _BODY.fullmatch(sentences["body"][0][1])
        assert body is not None  # it was found by this pattern
        last = sum(map(len, sentences.values())) - 1
        checks = {fact: body[fact] == value for fact, value in facts.items()}
        checks["polite"] = body["please"] is not None
        checks["ending"] = [place for place, _ in sentences["ending"]] == [last]
        checks["brief"] = not sentences["filler"] and len(sentences["ending"]) <= 1
        return frozenset(criterion for criterion, met in checks.items() if met)

    def texts(self) -> Iterator[str]:
        """Each value once asked for and once told."""
        for number in range(max(map(len, VALUES.values()))):
            facts = {fact: values[number % len(values)] for fact, values in VALUES.items()}
            please = "please " if number % 2 else ""
            yield f"{REQUEST.format(**facts)}{BODY.format(**facts, please=please)} {ENDING}"
            yield BODY.format(**facts, please=please)
        yield f" {' '.join(FILLERS)}"


def facts_of(prompt: str) -> tuple[dict[str, str], dict[str, str]]:
    """The facts that a prompt gives and those of its older note. Raises InputError where it is another prompt."""
    request = _REQUEST.fullmatch(prompt.strip())
    older = _BODY.match(request["older"]) if request else None
    if request is None or older is None:
        raise InputError(f"{prompt!r} is no prompt of embedded/notes, so its rubric cannot judge an answer to it.")
    return {fact: request[fact] for fact in VALUES}, {fact: older[fact] for fact in VALUES}


def _other_value(fact: str, value: str, rng: random.Random) -> str:
    return rng.choice([candidate for candidate in VALUES[fact] if candidate != value])
