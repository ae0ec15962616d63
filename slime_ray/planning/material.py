"""How much data an experiment's trials read: counted where it is at hand, else from what is said or known of it."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

from slime_ray.config.settings import Data, Settings
from slime_ray.data.places import missing_file
from slime_ray.errors import InputError
from slime_ray.evaluation.questions import load_questions, load_retention
from slime_ray.model.flops import Lengths
from slime_ray.runs.notes import data_notes
from slime_ray.runs.results import RETENTION

MEASURED = 16_384
"""Examples of a part whose lengths are taken. Of larger parts these stand for all; their order is one of hashes."""
SPREAD = 0.7
"""Width of the log-normal distribution that lengths are taken to have where only their mean is known; that of answers
in UltraFeedback, about."""
LONGEST = 10_000_000
"""Tokens of a prompt or a completion at most."""
KNOWN_PAIRS = {("huggingfaceh4/ultrafeedback_binarized", "train_prefs"): 61_135}
"""Rows of hub data, as their cards say."""
KNOWN_LENGTHS = {"huggingfaceh4/ultrafeedback_binarized": (180.0, 250.0, 250.0)}
"""Mean tokens of prompt, chosen and rejected in the tokens of a 3-4B model, about."""


@dataclass(frozen=True)
class DataAssumptions:
    """What the user says of data that is not at hand. pairs: of the whole data set, before it is split. lengths: mean
    tokens of prompt, chosen and rejected completion."""

    pairs: int | None = None
    lengths: tuple[float, float, float] | None = None


def parse_lengths(text: str) -> tuple[float, float, float]:
    """Parse three mean lengths, such as 180,250,250. Raises InputError."""
    try:
        prompt, chosen, rejected = (float(part) for part in text.split(","))
    except ValueError:
        prompt = chosen = rejected = math.nan
    if not all(1 <= length <= LONGEST for length in (prompt, chosen, rejected)):
        raise InputError(
            f"--lengths {text}: give three numbers of tokens, 1 to {LONGEST:,} each, for prompt, chosen and rejected, "
            "such as 180,250,250."
        )
    return prompt, chosen, rejected


@dataclass(frozen=True)
class DataPart:
    """Pairs, or examples without rejected completions. prompt, chosen, rejected: mean tokens. longest: example."""

    count: int
    prompt: float = 0.0
    chosen: float = 0.0
    rejected: float = 0.0
    longest: int = 0

    @property
    def tokens(self) -> float:
        """Mean tokens of an example in a packed row, its prompt once."""
        return self.prompt + self.chosen + self.rejected

    @property
    def pair(self) -> Lengths:
        """The mean example in whole tokens."""
        return Lengths(*map(round, (self.prompt, self.chosen, self.rejected)))


@dataclass(frozen=True)
class PromptCounts:
    """One set of prompts. turns: answers in all, several to a prompt of several turns. tokens: mean of a prompt."""

    count: int
    turns: int
    tokens: float


@dataclass(frozen=True)
class Material:
    """What trials and stages read.

    answers: lengths of completions, sorted. longest_prompt: tokens. seconds: that reading took here, None where nothing
    was read. provenance: of the figures.
    """

    sft: DataPart
    train: DataPart
    held_out: DataPart
    prompts: Mapping[str, PromptCounts]
    answers: tuple[float, ...]
    longest_prompt: int
    provenance: str
    seconds: float | None = None

    def longest(self, answers: int) -> float:
        """Return the tokens of the longest of so many answers, taken as long as the data's completions."""
        return self.answers[int((1 - 1 / (answers + 1)) * len(self.answers))]

    @property
    def examples(self) -> int:
        """All of them."""
        return self.sft.count + self.train.count + self.held_out.count

    @property
    def answer(self) -> float:
        """Mean tokens of an answer, taken as long as the data's completions."""
        return fmean(self.answers)


def find_material(settings: Settings, assumptions: DataAssumptions) -> Material:
    """Count the data if it is here and nothing is assumed of it. Raises InputError where not enough is known."""
    data = settings.data
    local = data.task is not None or all(Path(source.source).is_absolute() for source in data.sources)
    if local and assumptions == DataAssumptions():
        try:
            return read_material(settings)
        except InputError as error:
            raise InputError(f"{error} A plan can do without the data: --pairs N --lengths P,C,R.") from None
    lengths = assumptions.lengths or KNOWN_LENGTHS.get(data.label.lower())
    pairs = assumptions.pairs or KNOWN_PAIRS.get((data.label.lower(), data.split))
    if lengths is None or (pairs is None and data.pairs is None):
        complaints = (missing_file(source.source) for source in data.sources)
        missing = next((complaint for complaint in complaints if complaint is not None), None)
        lacking = "--lengths P,C,R" if lengths is None else "--pairs N, or data.pairs"
        raise InputError(
            f"data.train {data.label} is not read for a plan{'' if local else ', since it is not on this machine'}"
            f"{missing or ''}. {'Say' if missing is None else 'Correct it, or say'} how much it is with {lacking}."
        )
    provenance = "lengths of {:g}, {:g} and {:g} tokens".format(*lengths)
    provenance += " as given" if assumptions.lengths else ", about those of this data"
    provenance += f"; {pairs:,} pairs {'as given' if assumptions.pairs else 'as its card says'}" if pairs else ""
    provenance += "" if pairs else f"; data.pairs {data.pairs} of them"
    return assumed_material(settings, pairs, lengths, f"{data.label} was not read: {provenance}")


def assumed_material(
    settings: Settings, pairs: int | None, lengths: tuple[float, float, float], provenance: str
) -> Material:
    """Assume every example as long as the mean. pairs: None is just enough for data.pairs."""
    sft, train, held_out = _split(settings.data, pairs)
    data, evaluation = settings.data, settings.evaluation
    prompt, chosen, rejected = lengths
    counts = {"selection": evaluation.selection_prompts, "report": evaluation.prompts}
    if (total := sum(counts.values())) > held_out:
        counts["selection"] = min(max(1, round(held_out * counts["selection"] / total)), held_out - 1)
        counts["report"] = held_out - counts["selection"]
    prompts = {name: PromptCounts(count, count, prompt) for name, count in counts.items()}
    files = [("report", load_questions)] if evaluation.questions else []
    files += [(RETENTION, load_retention)] if evaluation.retention else []
    for name, load in files:
        questions = load(settings)
        prompts[name] = PromptCounts(len(questions), sum(len(question.turns) for question in questions), prompt)
    spread, mean = NormalDist(-(SPREAD**2) / 2, SPREAD), (chosen + rejected) / 2
    longest = math.ceil(sum(lengths))
    return Material(
        sft=DataPart(sft if settings.sft else 0, prompt, chosen, 0.0, math.ceil(prompt + chosen)),
        train=DataPart(train, *lengths, longest),
        held_out=DataPart(held_out, *lengths, longest),
        prompts=prompts,
        answers=tuple(mean * math.exp(spread.inv_cdf((number + 0.5) / 1000)) for number in range(1000)),
        longest_prompt=data.max_prompt_tokens or data.max_tokens,
        provenance=provenance,
    )


def _split(data: Data, pairs: int | None) -> tuple[int, int, int]:
    """Return how many examples `split_pairs` gives SFT, training and held-out pairs."""
    if pairs is None:
        train = data.pairs or 0
        sft = round(train * data.sft_fraction / (1 - data.sft_fraction)) if data.sft_fraction < 1 else 0
        return min(sft, data.sft_examples or sft), train, data.held_out_pairs
    rest = pairs - data.held_out_pairs
    sft = round(data.sft_fraction * rest)
    train = rest - sft
    if train < 1 or (sft < 1 and data.sft_fraction > 0):
        raise InputError(
            f"Of {pairs} pairs {data.held_out_pairs} are held out (data.held_out_pairs), and of the others "
            f"{data.sft_fraction:.0%} are for SFT (data.sft_fraction), which leaves none for the one or the other. "
            "Change these, or give more data."
        )
    return min(sft, data.sft_examples or sft), min(train, data.pairs or train), data.held_out_pairs


def read_material(settings: Settings) -> Material:
    """Read, split and tokenize the data as the first stage does, all of it or enough to know the lengths.

    Raises InputError for data or a tokenizer that cannot be used.
    """
    from slime_ray.data.corpus import load_corpus
    from slime_ray.data.pairs import ID_COLUMNS
    from slime_ray.data.tokenizing import tokenize_pairs
    from slime_ray.model.limits import declared_limits
    from slime_ray.model.loading import load_config, load_tokenizer
    from slime_ray.training.prompts import prompts_to_answer

    data, declared = settings.data, load_config(settings.model)
    model_limits = None if declared is None else declared_limits(declared)
    tokenizer = load_tokenizer(settings.model)
    clock = time.perf_counter()
    corpus = load_corpus(data, settings.evaluation)
    limits: dict[str, Any] = {
        name: getattr(data, name) for name in ("max_tokens", "row_tokens", "max_prompt_tokens", "strict")
    }
    answers, longest_prompt = list[float](), 0

    def tokenized(name: str, part: Any, *, rejected: bool = True) -> DataPart:
        nonlocal longest_prompt
        some = part if len(part) <= MEASURED else part.select(range(MEASURED))
        columns = tokenize_pairs(some, tokenizer, rejected=rejected, **limits).table.to_pydict()
        pairs = list(zip(*(columns[column] for column in ID_COLUMNS), strict=True))
        if model_limits is not None:
            _check_pairs(model_limits, name, pairs)
        lengths = [[len(ids) for ids in columns[column]] for column in ID_COLUMNS]
        if rejected:
            answers.extend(lengths[1] + lengths[2])
            longest_prompt = max(longest_prompt, *lengths[0])
        # Some are dropped, such as those without room for a completion.
        count = round(len(part) * len(lengths[0]) / len(some))
        prompt, chosen, rejected_mean = map(fmean, lengths)
        return DataPart(count, prompt, chosen, rejected_mean, max(map(sum, zip(*lengths, strict=True))))

    sft = tokenized("sft", corpus.sft, rejected=False) if settings.sft else DataPart(0)
    train, held_out = tokenized("train", corpus.train), tokenized("held-out", corpus.held_out)
    prompts, _ = prompts_to_answer(settings, corpus.prompts, tokenizer)
    if model_limits is not None:
        _check_prompts(model_limits, prompts, settings.evaluation.decoding.max_new_tokens)
    seconds = time.perf_counter() - clock
    whole = max(len(part) for part in (corpus.sft, corpus.train, corpus.held_out)) <= MEASURED
    method = "counted" if whole else f"from the lengths of {MEASURED:,} examples of each part"
    tokenizer_source = settings.model.tokenizer or settings.model.source
    provenance = f"{data.label} was read with the tokenizer of {tokenizer_source}: tokens are {method}"
    return Material(
        sft=sft,
        train=train,
        held_out=held_out,
        prompts={
            name: PromptCounts(
                len(some), sum(1 + len(each.later) for each in some), fmean(len(each.token_ids) for each in some)
            )
            for name, some in prompts.items()
        },
        answers=tuple(sorted(answers)),
        longest_prompt=longest_prompt if whole else data.max_prompt_tokens or data.max_tokens,
        provenance=". ".join([provenance, *(line.removesuffix(".") for line in data_notes(corpus.read))]),
        seconds=seconds,
    )


def _check_prompts(limits: Any, prompts: Mapping[str, Any], answer: int) -> None:
    """Raise InputError for prompts with ids beyond the model's, or without room for an answer. answer: tokens."""
    for name, some in prompts.items():
        for number, prompt in enumerate(some):
            limits.check_ids(max(prompt.token_ids, default=0), f"{name} prompt {number}")
            limits.check_answer(len(prompt.token_ids), answer, f"{name} prompt {number}")


def _check_pairs(limits: Any, part: str, pairs: Iterable[tuple[list[int], list[int], list[int]]]) -> None:
    """Raise InputError for ids and positions beyond those that the model's configuration declares."""
    for number, (prompt, chosen, rejected) in enumerate(pairs):
        limits.check_ids(max(prompt + chosen + rejected), f"{part} row {number}")
        length = len(prompt) + max(len(chosen), len(rejected))
        limits.check_length(length, f"{part} row {number}", f"Set data.max_tokens to {limits.positions} or less.")
