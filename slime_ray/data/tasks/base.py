"""What an embedded task is: facts that become prompts, a noisy process that answers them, and an exact rubric."""

import hashlib
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from slime_ray.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Facts = tuple[Any, ...]

SHARES = {"sft": 56, "train": 19, "held_out": 13, "selection": 4, "report": 8}
"""Percent of a task's facts in each split. A fact's split follows from the fact alone, whatever the seed."""

BREAK_RATE = 0.25
"""How often the noisy process breaks each criterion of an answer, independently of the others."""

DRAWS = 4
"""Noisy answers drawn for each preference pair."""

PIECE = r" ?[A-Za-z]+| ?[0-9]| ?[^A-Za-z0-9\s]|\s"
"""What one token of a task's text is: a word, a digit or a mark, with the space before it. Pieces join to the text."""


@dataclass(frozen=True)
class Rubric:
    """The exact judgment of one answer.

    total: from 0 to 1, the weighted share of criteria met; 0 for an answer that cannot be parsed. parts: 1.0 or 0.0
    for each criterion, unweighted. format_ok: whether the answer could be parsed, however bad it is.
    """

    total: float
    parts: Mapping[str, float]
    format_ok: bool


class Task(ABC):
    """One embedded task. All it makes follows from its arguments: nothing is downloaded, stored or remembered.

    Prompts of different splits never share their facts, hence never their text, whatever the seeds and sizes.
    """

    name: ClassVar[str]
    points: ClassVar[Mapping[str, int]]
    """The rubric's criteria and what each is worth. Whole numbers, so that equal answers tie exactly."""

    # What a task defines

    @abstractmethod
    def all_facts(self) -> Iterable[Facts]:
        """All that prompts can be about, without repetition and in a fixed order."""

    @abstractmethod
    def ask(self, facts: Facts, rng: random.Random) -> str:
        """The user's message about these facts."""

    @abstractmethod
    def answer(self, prompt: str, broken: frozenset[str], rng: random.Random) -> str:
        """An answer that meets every criterion of `points` but those in `broken`."""

    @abstractmethod
    def criteria_met(self, prompt: str, answer: str) -> frozenset[str] | None:
        """The criteria of `points` that an answer meets, from the two texts alone; None where it cannot be parsed.

        Raises InputError where `prompt` is not a prompt of this task.
        """

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """Texts that hold every piece of every prompt and answer; no more, as each piece becomes a token."""

    # What all tasks share

    def score(self, prompt: str, answer: str) -> Rubric:
        """The exact rubric of an answer (the assistant's message) to a prompt (the user's), as `criteria_met`."""
        met = self.criteria_met(prompt, answer)
        return Rubric(
            total=sum(self.points[criterion] for criterion in met or ()) / sum(self.points.values()),
            parts={criterion: float(criterion in (met or ())) for criterion in self.points},
            format_ok=met is not None,
        )

    def vocabulary(self) -> list[str]:
        """Every piece (see `PIECE`) of this task's prompts and answers, sorted."""
        return sorted({piece for text in self.texts() for piece in re.findall(PIECE, text)})

    def capacity(self, split: str) -> int:
        """How many different facts a split has: the most that `pairs` and `prompts` give."""
        return len(self._facts_by_split[split])

    def noisy_answer(self, prompt: str, rng: random.Random) -> str:
        """One draw of the noisy process."""
        broken = frozenset(criterion for criterion in self.points if rng.random() < BREAK_RATE)
        return self.answer(prompt, broken, rng)

    def sft_examples(self, n: int, *, seed: int) -> "Dataset":
        """`n` noisy demonstrations: columns prompt and chosen. Facts repeat, with new answers, once each was used."""
        rng, facts = self._open("sft", n, seed, repeat=True)
        rows = []
        for number in range(n):
            prompt = self.ask(facts[number % len(facts)], rng)
            rows.append((prompt, self.noisy_answer(prompt, rng)))
        return _dataset(("prompt", "chosen"), rows)

    def pairs(self, n: int, *, split: Literal["train", "held_out"] = "train", seed: int) -> "Dataset":
        """`n` preference pairs, each about facts of its own: columns prompt, chosen, rejected, message lists.

        Of four noisy answers the best is chosen, and a random one of those strictly worse is rejected. Raises
        InputError for more pairs than the split has facts.
        """
        rng, facts = self._open(split, n, seed)
        rows = []
        for fact in facts[:n]:
            prompt = self.ask(fact, rng)
            rows.append((prompt, *self._pair(prompt, rng)))
        return _dataset(("prompt", "chosen", "rejected"), rows)

    def prompts(self, n: int, *, purpose: Literal["selection", "report"], seed: int) -> "Dataset":
        """`n` prompts to answer, a column of message lists, each about facts of its own as in `pairs`."""
        rng, facts = self._open(purpose, n, seed)
        return _dataset(("prompt",), [(self.ask(fact, rng),) for fact in facts[:n]])

    def _pair(self, prompt: str, rng: random.Random) -> tuple[str, str]:
        while True:
            draws = [self.noisy_answer(prompt, rng) for _ in range(DRAWS)]
            totals = [self.score(prompt, draw).total for draw in draws]
            best = max(range(DRAWS), key=totals.__getitem__)
            worse = [draw for draw, total in zip(draws, totals, strict=True) if total < totals[best]]
            if worse:
                return draws[best], rng.choice(worse)

    def _open(self, split: str, n: int, seed: int, *, repeat: bool = False) -> tuple[random.Random, list[Facts]]:
        """The random state of one call, and the split's facts in the order in which this seed uses them."""
        capacity = self.capacity(split)
        if n > capacity and not repeat:
            raise InputError(
                f"embedded/{self.name}: cannot give {n} examples for {split}. Ask for from 0 to {capacity}, for so "
                "many different prompts it has for this."
            )
        rng = random.Random(f"{self.name}/{split}/{seed}")
        return rng, rng.sample(self._facts_by_split[split], capacity)

    @cached_property
    def _facts_by_split(self) -> dict[str, list[Facts]]:
        """Slices of all facts in the order of their hashes, so that every split has exactly its share."""

        def place(facts: Facts) -> bytes:
            return hashlib.blake2b("/".join(map(str, facts)).encode(), key=self.name.encode(), digest_size=16).digest()

        facts = sorted(self.all_facts(), key=place)
        splits, start, percent = {}, 0, 0
        for split, share in SHARES.items():
            percent += share
            end = len(facts) * percent // 100
            splits[split], start = facts[start:end], end
        return splits


def sentences(text: str) -> list[str]:
    """The sentences of a text whose blanks are single; each keeps its closing mark."""
    return re.split(r"(?<=[.?!]) ", " ".join(text.split()))


def count_kinds(text: str, kinds: Mapping[str, re.Pattern[str]]) -> dict[str, list[tuple[int, str]]] | None:
    """The sentences of each kind with their places; None where a sentence is of no kind."""
    by_kind: dict[str, list[tuple[int, str]]] = {kind: [] for kind in kinds}
    for place, sentence in enumerate(sentences(text)):
        kind = next((kind for kind, pattern in kinds.items() if pattern.fullmatch(sentence)), None)
        if kind is None:
            return None
        by_kind[kind].append((place, sentence))
    return by_kind


def any_of(texts: Sequence[str]) -> str:
    """A regular expression that matches exactly these texts."""
    return f"(?:{'|'.join(map(re.escape, texts))})"


def _dataset(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> "Dataset":
    """Each text as a message list of its own: the prompt the user's, all others the assistant's."""
    # Half a second, which `check` does without.
    from datasets import Dataset, Features, List, Value

    messages = List({"role": Value("string"), "content": Value("string")})
    roles = {column: "user" if column == "prompt" else "assistant" for column in columns}
    return Dataset.from_dict(
        {
            column: [[{"role": roles[column], "content": row[place]}] for row in rows]
            for place, column in enumerate(columns)
        },
        features=Features(dict.fromkeys(columns, messages)),
    )
