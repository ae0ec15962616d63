"""Which pairs are run: their lengths from a file or a named distribution, their tokens at random."""

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slime_ray.errors import InputError
from slime_ray.model.flops import Lengths

PIECE = re.compile(r"\w+|[^\w\s]")
"""What counts as one token of a file's texts: a word, or one mark. No tokenizer is needed, and none is downloaded."""
DRAWN_STEPS = 50
"""Steps' worth of pairs that are drawn, and sorted by length: as many as `group_by_length` of transformers' Trainer
sorts at a time."""
MAX_TOKENS = 2048
"""Of a sequence, before lengths are divided."""


@dataclass(frozen=True)
class BenchPair:
    """Random token ids of one pair."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]

    @property
    def lengths(self) -> Lengths:
        """Tokens of its parts."""
        return Lengths(len(self.prompt_ids), len(self.chosen_ids), len(self.rejected_ids))


Source = Callable[[int, random.Random], list[Lengths]]
"""Gives that many pairs' lengths, before any cut, for a random state."""


def ultrafeedback(count: int, state: random.Random) -> list[Lengths]:
    """Draw lengths about as UltraFeedback's in tokens of a 3-4B model: long-tailed, means 180 and 250."""

    def draw(mean: float, sigma: float) -> int:
        return max(1, round(state.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))

    return [Lengths(draw(180, 1.0), draw(250, 0.7), draw(250, 0.7)) for _ in range(count)]


def longest(count: int, state: random.Random) -> list[Lengths]:
    """Give every sequence as long as allowed, half of it prompt."""
    return [Lengths(*[MAX_TOKENS // 2] * 3)] * count


def from_file(lengths: Sequence[Lengths], count: int, state: random.Random) -> list[Lengths]:
    """Draw from a file's lengths, each once as long as there are enough."""
    return state.sample(lengths, count) if count <= len(lengths) else state.choices(lengths, k=count)


DISTRIBUTIONS: dict[str, Source] = {"ultrafeedback": ultrafeedback, "longest": longest}
"""The named distributions of lengths."""


@dataclass(frozen=True)
class Workload:
    """The pairs of one round, in two orders of the same pairs.

    drawn: the steps as a shuffled data set gives them. bucketed: the steps that sorting by length gives, each of
    pairs of about equal length.
    """

    drawn: tuple[tuple[BenchPair, ...], ...]
    bucketed: tuple[tuple[BenchPair, ...], ...]

    @property
    def pairs(self) -> list[BenchPair]:
        """All pairs of a round."""
        return [pair for step in self.drawn for pair in step]

    @property
    def real_tokens(self) -> int:
        """Tokens of all pairs, each prompt once: what a throughput here counts, whatever a recipe computes."""
        return sum(sum(pair.lengths) for pair in self.pairs)


def find_source(lengths: str) -> Source:
    """Find the distribution of this name, or read that file's lengths. Raises InputError when it is neither."""
    if lengths in DISTRIBUTIONS:
        return DISTRIBUTIONS[lengths]
    path = Path(lengths)
    if not path.is_file():
        raise InputError(f"--lengths {lengths}: neither a file nor one of {', '.join(DISTRIBUTIONS)}.")
    return partial(from_file, read_lengths(path))


def read_lengths(path: Path) -> list[Lengths]:
    """Read the lengths of a JSONL file's `prompt`, `chosen` and `rejected`: pieces of text, see `PIECE`.

    Each of the three is a text or a list of chat messages. Raises InputError with file and line for anything else.
    """
    lengths = []
    # Bytes that are not UTF-8 are marks as others.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            lengths.append(Lengths(*(_pieces(record[key]) for key in Lengths._fields)))
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}:{number}: not a JSON object with prompt, chosen and rejected, each a text with words or a "
                "list of messages with a `content` text. Correct or drop the line."
            ) from None
    if not lengths:
        raise InputError(f"--lengths {path}: holds no pairs. Give one JSON object a line.")
    return lengths


def _pieces(value: Any) -> int:
    texts = [value] if isinstance(value, str) else [message["content"] for message in value]
    pieces = sum(len(PIECE.findall(text)) for text in texts)
    if not pieces:
        raise ValueError("no words")
    return pieces


def cut(lengths: Lengths, shrink: int) -> Lengths:
    """Cut prompts to half of MAX_TOKENS and sequences to all, then shrink both."""
    prompt = min(lengths.prompt, MAX_TOKENS // 2)
    parts = (prompt, min(lengths.chosen, MAX_TOKENS - prompt), min(lengths.rejected, MAX_TOKENS - prompt))
    return Lengths(*(max(1, round(part / shrink)) for part in parts))


def draw_workload(source: Source, *, pairs: int, steps: int, vocabulary: int, shrink: int, seed: int) -> Workload:
    """Draw `steps` steps of `pairs` pairs, the same for the same arguments.

    DRAWN_STEPS steps' worth is drawn and sorted by length, and of every equal share of the sorted steps one is taken:
    so the bucketed order is as good as sorting so many gives, and the pairs are as long as the source's.
    """
    state = random.Random(seed)
    shares = max(1, DRAWN_STEPS // steps)
    lengths = [cut(each, shrink) for each in source(shares * steps * pairs, state)]
    lengths.sort(key=sequence_length)
    buckets = []
    for step in range(steps):
        first = (step * shares + state.randrange(shares)) * pairs
        buckets.append(tuple(_with_tokens(each, vocabulary, state) for each in lengths[first : first + pairs]))
    all_pairs = [pair for bucket in buckets for pair in bucket]
    state.shuffle(all_pairs)
    state.shuffle(buckets)
    drawn = tuple(tuple(all_pairs[start : start + pairs]) for start in range(0, len(all_pairs), pairs))
    return Workload(drawn=drawn, bucketed=tuple(buckets))


def sequence_length(lengths: Lengths) -> int:
    """Return the tokens of the longer of a pair's two sequences, which decides padding."""
    return lengths.prompt + max(lengths.chosen, lengths.rejected)


def _with_tokens(lengths: Lengths, vocabulary: int, state: random.Random) -> BenchPair:
    return BenchPair(*(tuple(state.randrange(1, vocabulary) for _ in range(length)) for length in lengths))
